"""Nothing a user fears loses work or lies: kills, signals, full memory, bad numbers."""

import dataclasses
import json
import os
import signal
import sys
import time
import weakref
from pathlib import Path

import forked
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from finetune.common.errors import Failure, UsageError
from finetune.common.free_memory import is_out_of_memory
from finetune.config import schedule as schedules
from finetune.config.recipe import Recipe
from finetune.runs import warning_signs
from finetune.runs.events import read_metrics
from finetune.runtime import device as devices
from finetune.runtime.unchanged import unchanged
from finetune.training import micro_batch, monitor
from finetune.training import trainer as trainers
from finetune.training.state import Hooks, MicroBatch


def harness(recipe, world=1, **job):
    """The outcome of a job in a process that forks its runs."""
    path = Path(f"job-{len(list(Path('.').glob('job-*')))}.json")
    path.write_text(json.dumps({"recipe": dataclasses.asdict(recipe), "world": world, **job}))
    done = forked.run("harness", path, timeout=400)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def final(out_dir):
    """The bytes of the newest state's weights and optimizer."""
    newest = sorted(Path(out_dir, "last").glob("step-*"))[-1]
    return [(newest / f"{name}.safetensors").read_bytes() for name in ("model", "optimizer")]


def record(out_dir):
    """What the run learned, as metrics.jsonl tells: updates and evaluations without their times."""
    kept = ("event", "iter", "step", "loss", "lr", "grad_norm", "train_loss", "val_loss")
    return [
        {name: event[name] for name in kept if name in event}
        for event in read_metrics(Path(out_dir) / "metrics.jsonl")
        if event["event"] in ("iter", "eval")
    ]


def events(out_dir, kind):
    return [event for event in read_metrics(Path(out_dir) / "metrics.jsonl") if event["event"] == kind]


def same_run(one, other):
    assert final(one) == final(other)
    assert record(one) == record(other)


@pytest.mark.parametrize(
    "kills", [10, pytest.param(20, marks=pytest.mark.heavy), pytest.param(60, marks=pytest.mark.slow)]
)
def test_kills_lose_nothing_and_change_nothing(tiny, kills):
    recipe = tiny(max_iters=2 * kills, eval_interval=25)
    assert harness(dataclasses.replace(recipe, out_dir="whole"))["codes"] == [0]
    outcome = harness(recipe, kills=kills, seed=1, slowest=0.04)
    assert outcome["codes"] == [0] and outcome["lost"] == 0 and outcome["broken"] == []
    assert outcome["inside_save"] >= kills // 10, "the kills did not meet saves"
    assert outcome["acknowledged"] >= kills // 2, "the kills were over before the run got anywhere"
    same_run("whole", "out")
    assert [event["iter"] for event in events("out", "iter")] == list(range(2 * kills))
    assert not list(Path("out").rglob(".tmp*"))


@pytest.mark.slow
def test_three_processes_killed_and_resumed_equal_three_that_were_not(tiny):
    recipe = tiny(max_iters=16)
    assert harness(dataclasses.replace(recipe, out_dir="whole"), world=3)["codes"] == [0, 0, 0]
    outcome = harness(recipe, world=3, kills=4, seed=2, slowest=0.1)
    assert outcome["codes"] == [0, 0, 0] and outcome["lost"] == 0 and outcome["broken"] == []
    same_run("whole", "out")


@pytest.mark.slow
def test_another_number_of_processes_reads_the_same_rows_and_learns_the_same(tiny):
    """3 processes, then 1, then 2 with another micro-batch, against one process all the way; without dropout, whose
    stream belongs to the micro-batch."""
    plain = {"dropout": 0.0, "lr_decay_iters": 12, "warmup_iters": 2, "batch_size": 2, "gradient_accumulation_steps": 6}
    assert harness(tiny("whole", max_iters=12, **plain))["codes"] == [0]
    assert harness(tiny(max_iters=4, **plain), world=3)["codes"] == [0, 0, 0]
    assert harness(tiny(max_iters=8, init_from="resume", n_layer=None, n_head=None, n_embd=None, **plain))["codes"] == [
        0
    ]
    other = plain | {"batch_size": 3, "gradient_accumulation_steps": 4}
    assert harness(tiny(max_iters=12, init_from="resume", **other), world=2)["codes"] == [0, 0]
    whole, parts = ({event["iter"]: event for event in events(out, "iter")} for out in ("whole", "out"))
    assert whole.keys() == parts.keys()
    for number, event in whole.items():
        assert parts[number]["loss"] == pytest.approx(event["loss"], abs=1e-5), number
        assert parts[number]["lr"] == event["lr"]


def command(recipe, *launcher):
    usual = dataclasses.asdict(Recipe())
    flags = [f"--{name}={value}" for name, value in dataclasses.asdict(recipe).items() if value != usual[name]]
    return [*launcher, "finetune.train", *flags]


def launch(recipe, *launcher, **options):
    return forked.Process(*command(recipe, *launcher), **options)


def until(process, words):
    for line in process.stdout:
        if words in line:
            return
    raise AssertionError(process.stderr.read())


@pytest.mark.heavy
def test_the_real_command_survives_kills(tiny):
    recipe = tiny(max_iters=150)
    trainers.train(dataclasses.replace(recipe, out_dir="whole"))
    for number in range(3):
        with launch(dataclasses.replace(recipe, init_from="resume") if number else recipe) as process:
            until(process, f"iter {30 * (number + 1)}:")
            process.kill()
    trainers.train(dataclasses.replace(recipe, init_from="resume"))
    same_run("whole", "out")


@pytest.mark.parametrize(
    "number, code", [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.heavy)]
)
def test_a_signal_saves_and_ends_and_the_resumed_run_is_the_same(tiny, number, code):
    recipe = tiny(max_iters=120, save_interval=1000, eval_interval=10)
    trainers.train(dataclasses.replace(recipe, out_dir="whole"))
    with launch(recipe) as process:
        until(process, "iter 12:")
        process.send_signal(number)
        assert process.wait(100) == code
        error = process.stderr.read()
    assert f"stopped by {number.name} after" in error and "--init_from=resume" in error and "Traceback" not in error
    trainers.train(dataclasses.replace(recipe, init_from="resume"))
    same_run("whole", "out")


def test_sigusr1_saves_and_goes_on(tiny):
    recipe = tiny(max_iters=400, save_interval=10_000, eval_interval=10_000)
    with launch(recipe) as process:
        until(process, "iter 12:")
        process.send_signal(signal.SIGUSR1)
        deadline = time.time() + 100
        while not list(Path("out/last").glob("step-*")) and time.time() < deadline:
            time.sleep(0.01)
        assert list(Path("out/last").glob("step-*")) and process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(100) == 143


@pytest.mark.heavy
@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_a_trainer_does_not_outlive_its_launcher(tiny):
    recipe = tiny(max_iters=100_000, save_interval=100_000, eval_interval=100_000)
    launcher = ["accelerate.commands.accelerate_cli", "launch", "--num_processes=1", "-m"]
    with launch(recipe, *launcher) as process:
        until(process, "iter 5:")
        trainer = int(Path("out/.lock").read_text().split()[1])
        process.kill()
    deadline = time.time() + 100
    while (
        Path(f"/proc/{trainer}").exists()
        and "Z" not in Path(f"/proc/{trainer}/stat").read_text().split()[2]
        and time.time() < deadline
    ):
        time.sleep(0.05)
    assert not Path(f"/proc/{trainer}").exists() or "Z" in Path(f"/proc/{trainer}/stat").read_text().split()[2]
    assert list(Path("out/last").glob("step-*"))  # and it saved before it went


def test_out_of_memory_halves_the_micro_batch_and_changes_nothing_else(tiny, monkeypatch, capsys):
    from finetune.gpt.model import Transformer

    plain = {"dropout": 0.0, "batch_size": 8, "gradient_accumulation_steps": 1, "max_iters": 10}
    trainers.train(tiny("whole", **plain))
    forward, seen = Transformer.forward, []

    def limited(self, idx, targets=None, position_ids=None):
        if self.training and idx.size(0) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        seen.append(idx.size(0))
        return forward(self, idx, targets, position_ids)

    monkeypatch.setattr(Transformer, "forward", limited)
    trainers.train(tiny(**plain))
    whole, out = (events(name, "iter") for name in ("whole", "out"))
    assert len(whole) == len(out) == 10
    for one, other in zip(whole, out):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-5) and one["lr"] == other["lr"]
    assert "out of memory at iter 0: batch_size 8 -> 4, gradient_accumulation_steps 1 -> 2" in capsys.readouterr().out
    assert [event["batch_size"] for event in events("out", "out_of_memory")] == [4, 2]


def test_a_resumed_run_goes_on_with_what_fitted(tiny, monkeypatch, capsys):
    """Also where more would fit now: dropout is drawn per micro-batch."""
    forward, large = trainers.update, {"batch_size": 8, "gradient_accumulation_steps": 1, "max_iters": 6}

    def limited(setup, state, lr):
        if state.micro_batch.batch_size > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return forward(setup, state, lr)

    def stop(setup, state):
        if state.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(trainers, "update", limited)
    trainers.train(tiny("whole", **large))
    with pytest.raises(Failure, match="stopped by SIGTERM"):
        trainers.train(tiny(**large), hooks=Hooks(stop))
    monkeypatch.setattr(trainers, "update", forward)
    capsys.readouterr()
    again = dataclasses.replace(tiny(**large), init_from="resume")
    trainers.train(again)
    same_run("whole", "out")
    _, state = trainers.train(dataclasses.replace(again, max_iters=8))
    told = (
        "batch_size=2, gradient_accumulation_steps=4, gradient_checkpointing=false: what fitted when this run was out"
    )
    assert capsys.readouterr().out.count(told) == 2 and state.micro_batch == MicroBatch(2, 4)
    assert [event["batch_size"] for event in events("out", "out_of_memory")] == [4, 2]
    other = {"batch_size": 4, "gradient_accumulation_steps": 2, "max_iters": 9}
    _, state = trainers.train(dataclasses.replace(again, **other))
    assert state.micro_batch == MicroBatch(4, 2)


def test_memory_of_an_update_that_failed_is_free_before_the_next_try(tiny, monkeypatch):
    """Its tensors hang on the traceback of the error."""
    failed, alive = [], []

    def fail_once(setup, state):
        if not failed:
            activations = torch.zeros(1)
            failed.append(weakref.ref(activations))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    def reduced(*args):
        alive.append(failed[0]())
        return micro_batch.reduce_micro_batch(*args)

    monkeypatch.setattr(trainers, "reduce_micro_batch", reduced)
    trainers.train(tiny(max_iters=2), hooks=Hooks(before_update=fail_once))
    assert alive == [None]


def test_out_of_memory_right_after_a_save_brings_no_unplanned_save(tiny):
    failed = []

    def fail_once(setup, state):
        if state.step == 2 and not failed:
            failed.append(state.step)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    trainers.train(tiny(max_iters=4, save_interval=2), hooks=Hooks(before_update=fail_once))
    assert [event["step"] for event in events("out", "out_of_memory")] == [2]
    assert sorted(path.name for path in Path("out/last").iterdir()) == ["step-00000002", "step-00000004"]


def test_one_block_that_does_not_fit_recomputes_activations_and_then_says_what_would_fit(tiny, monkeypatch):
    from finetune.gpt.model import Transformer

    forward = Transformer.forward

    def limited(self, idx, targets=None, position_ids=None):
        if self.training and not self.gradient_checkpointing:
            raise RuntimeError(
                "[enforce fail at alloc_cpu.cpp:119] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to"
                " allocate 9 bytes"
            )
        return forward(self, idx, targets, position_ids)

    monkeypatch.setattr(Transformer, "forward", limited)
    setup, state = trainers.train(tiny(max_iters=2))
    assert state.micro_batch == MicroBatch(batch_size=1, accumulation=6, checkpointing=True)
    assert setup.recipe == tiny(max_iters=2)

    def never(self, idx, targets=None, position_ids=None):
        if self.training:
            raise torch.OutOfMemoryError("out of memory")
        return forward(self, idx, targets, position_ids)

    monkeypatch.setattr(Transformer, "forward", never)
    with pytest.raises(Failure, match="out of memory with one block") as failure:
        trainers.train(tiny("other", max_iters=2))
    assert failure.value.code == 1


@pytest.mark.parametrize(
    "told",
    [
        "CUDA out of memory. Tried to allocate 2.00 GiB",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    ],
)
def test_libraries_of_a_gpu_say_that_memory_is_short_in_words_of_their_own(told):
    assert is_out_of_memory(RuntimeError(told)) and not is_out_of_memory(ValueError(told))


def test_an_error_that_is_not_about_memory_is_not_taken_for_one(tiny, monkeypatch):
    def broken(*args):
        raise RuntimeError("a bug")

    monkeypatch.setattr(trainers, "update", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        trainers.train(tiny())


def nan_at(*steps, forever=False):
    """Hooks that make the gradient of these updates NaN, once each or always."""
    done = set()

    def poison(setup, state):
        if state.step in steps and (forever or state.step not in done):
            done.add(state.step)
            setup.model.h[0].mlp.c_fc.weight.grad[0, 0] = float("nan")

    return Hooks(after_backward=poison)


def spike_at(monkeypatch, step):
    """Make the learning rate of an update a hundredfold, once."""
    rate, done = schedules.learning_rate, []

    def spiked(iteration, recipe, schedule):
        lr = rate(iteration, recipe, schedule)
        if iteration == step and not done:
            done.append(True)
            return 100 * lr
        return lr

    monkeypatch.setattr(schedules, "learning_rate", spiked)


SPIKED = {"max_iters": 200, "dropout": 0.0, "eval_interval": 50}


@pytest.fixture(scope="module")
def clean():
    """What runs without a fault reach, found once."""
    return {}


@pytest.mark.parametrize(
    "spike, save_interval",
    [(90, 10), *(pytest.param(*each, marks=pytest.mark.heavy) for each in ((95, 10), (98, 10), (99, 10), (90, 1)))],
)
def test_a_bad_number_and_a_spike_are_survived_and_told(tiny, monkeypatch, clean, spike, save_interval):
    if not clean:
        clean |= trainers.train(tiny("clean", **SPIKED, save_interval=100))[1].best
    spike_at(monkeypatch, spike)
    _, state = trainers.train(tiny(**SPIKED, save_interval=save_interval), hooks=nan_at(33))
    assert state.best["val_loss"] == pytest.approx(clean["val_loss"], rel=0.05)
    assert state.step == 200 and 2 <= state.rollbacks <= 3
    told = [event["problem"] for event in events("out", "rollback")]
    assert told[0].startswith("iter 33: grad_norm is nan") and "far above" in told[1]
    assert events("out", "rollback")[0]["step"] == 33 // save_interval * save_interval
    assert [event["iter"] for event in events("out", "iter")] == list(range(200))  # once each
    assert [event["step"] for event in events("out", "eval")] == [0, 50, 100, 150, 200]


def test_a_kill_does_not_make_a_run_forget_its_rollbacks(tiny):
    hooks = nan_at(7, forever=True)
    with pytest.raises(Failure):
        trainers.train(tiny(max_rollbacks=2), hooks=hooks)
    with pytest.raises(Failure, match="after 2 rollbacks"):
        trainers.train(tiny(max_rollbacks=2, init_from="resume"), hooks=hooks)
    assert len(events("out", "rollback")) == 2


def test_rolling_back_never_makes_best_worse(tiny):
    settings = {"max_iters": 60, "dropout": 0.0, "eval_interval": 10, "save_interval": 30}
    _, state = trainers.train(tiny(**settings), hooks=nan_at(45))
    best = [event["val_loss"] for event in events("out", "best")]
    assert best == sorted(best, reverse=True) and state.best["val_loss"] == best[-1]
    assert json.loads(Path("out/best/finetune.json").read_text())["val_loss"] == best[-1]


def test_a_full_disk_under_the_metrics_loses_no_line(tiny, monkeypatch):
    from finetune.runs import logger

    write, tries = os.write, []

    def full(handle, data):
        if b'"event"' in data or tries and len(tries) < 3:
            tries.append(1)
            if len(tries) == 2:
                return write(handle, data[:7])  # the last bytes that fit
            if len(tries) in (3, 4, 5):
                raise OSError(28, "No space left on device")
        return write(handle, data)

    monkeypatch.setattr(logger.os, "write", full)
    trainers.train(tiny(max_iters=10))
    assert [event["iter"] for event in events("out", "iter")] == list(range(10))


def test_a_signal_in_the_last_update_changes_nothing(tiny):
    def send_signal(setup, state):
        if state.step == 19:
            os.kill(os.getpid(), signal.SIGTERM)

    trainers.train(tiny("whole"))
    trainers.train(tiny(), hooks=Hooks(before_update=send_signal))
    same_run("whole", "out")


def test_one_process_that_gets_a_signal_ends_all_with_a_state(tiny):
    recipe = tiny(max_iters=12, save_interval=100, gradient_accumulation_steps=4)
    assert harness(dataclasses.replace(recipe, out_dir="whole"), world=2)["codes"] == [0, 0]
    outcome = harness(recipe, world=2, signal={"rank": 1, "number": 15, "iteration": 4})
    assert outcome["codes"] == [143, 143]
    assert harness(dataclasses.replace(recipe, init_from="resume"), world=2)["codes"] == [0, 0]
    same_run("whole", "out")


@pytest.mark.slow
def test_torchrun_and_forked_processes_are_the_same_run(tiny):
    recipe = tiny(max_iters=4, eval_iters=8)  # of the ranks, only the forked ones have economies
    assert harness(dataclasses.replace(recipe, out_dir="forked"), world=3, as_launched=True)["codes"] == [0, 0, 0]
    torchrun = ["torch.distributed.run", "--standalone", "--nproc_per_node=3", "-m"]
    with launch(recipe, *torchrun, env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}) as process:
        out, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    assert "3 processes on cpu" in out and out.count("step 4: ") == 1
    same_run("forked", "out")


def test_an_accelerator_of_another_device_is_refused(tiny, monkeypatch):
    """accelerate would keep its device, so the run would train where nobody asked it to."""
    from accelerate import Accelerator

    Accelerator(cpu=True)
    monkeypatch.setattr(devices, "choose_device", lambda choice: torch.device("cuda"))
    with pytest.raises(UsageError, match="device: this process holds an Accelerator on cpu, and cuda is asked for; "):
        devices.start(tiny())


def test_a_gpu_that_was_used_undeterministically_is_refused(monkeypatch):
    """Older versions of torch read the variable at their first product, and then refuse each one."""

    def refused(*matrices):
        raise RuntimeError("this operation is not deterministic; you must set CUBLAS_WORKSPACE_CONFIG=:4096:8")

    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with unchanged():
        devices.be_deterministic(torch.device("cpu"))
        assert torch.are_deterministic_algorithms_enabled()
        monkeypatch.setattr(torch, "mm", refused)
        with pytest.raises(UsageError, match="CUBLAS_WORKSPACE_CONFIG=:4096:8 before Python starts") as told:
            devices.be_deterministic(torch.device("cpu"))
        assert "\n" not in str(told.value) and not torch.are_deterministic_algorithms_enabled()


def test_deterministic_runs_and_refuses_an_environment_that_contradicts_it(tiny, monkeypatch):
    try:
        for out_dir in ("one", "two"):
            trainers.train(tiny(out_dir, deterministic=True))
        same_run("one", "two")
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:1")
        with pytest.raises(UsageError, match="CUBLAS_WORKSPACE_CONFIG=:16:1"):
            trainers.train(tiny("three", deterministic=True))
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.heavy
def test_one_process_that_dies_takes_the_others_along_and_the_run_goes_on(tiny):
    recipe = tiny(max_iters=12)
    assert harness(dataclasses.replace(recipe, out_dir="whole"), world=3)["codes"] == [0, 0, 0]
    outcome = harness(recipe, world=3, signal={"rank": 1, "number": 9, "iteration": 6})
    assert outcome["codes"][1] == -9 and 0 not in outcome["codes"] and outcome["seconds"] < 120
    assert harness(dataclasses.replace(recipe, init_from="resume"), world=3)["codes"] == [0, 0, 0]
    same_run("whole", "out")


IDENTITY = {"seed": 1, "block_size": 16, "batch_size": 4, "n_layer": 2, "n_head": 1, "n_embd": 32}
QUICK = ("learning_rate", "min_lr", "warmup_iters")  # the others are heavy
SCHEDULE = {
    "learning_rate": 5e-3,
    "min_lr": 1e-4,
    "warmup_iters": 1,
    "weight_decay": 0.0,
    "grad_clip": 0.5,
    "beta1": 0.8,
    "beta2": 0.9,
    "dropout": 0.0,
    "decay_lr": False,
}


@pytest.mark.parametrize("name", IDENTITY)
def test_what_makes_a_run_itself_cannot_change_on_resume(tiny, name):
    from finetune.common.errors import UsageError

    trainers.train(tiny(max_iters=2))
    with pytest.raises(UsageError, match=f"cannot be resumed as another run.*\n.*({name}|rows per iteration)"):
        trainers.train(tiny(init_from="resume", **{name: IDENTITY[name]}))


def test_other_data_cannot_be_slipped_under_a_run(tiny, corpus):
    from finetune.common.errors import UsageError
    from finetune.data.prepare import prepare

    trainers.train(tiny(max_iters=2))
    text = Path(corpus("other.txt", words=640)).read_text()
    Path("other.txt").write_text(text[::-1])
    prepare(["other.txt"], "data/other", "char")
    with pytest.raises(UsageError, match="train.bin"):
        trainers.train(tiny(init_from="resume", dataset="data/other"))


@pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(name, marks=pytest.mark.heavy) for name in SCHEDULE if name not in QUICK)]
)
def test_the_schedule_can_change_on_resume_and_is_said(tiny, capsys, name):
    trainers.train(tiny(max_iters=6, lr_decay_iters=12))
    trainers.train(tiny("same", max_iters=6, lr_decay_iters=12))
    changed = {"lr_decay_iters": None if name == "decay_lr" else 12, name: SCHEDULE[name]}
    trainers.train(tiny(init_from="resume", max_iters=8, **changed))
    assert f"resuming with {name} " in capsys.readouterr().out
    trainers.train(tiny("same", init_from="resume", max_iters=8, lr_decay_iters=12))
    assert final("out") != final("same")  # it had its effect


def test_without_rollbacks_a_bad_number_ends_with_exit_code_3_and_the_last_good_state(tiny):
    with pytest.raises(
        Failure, match=r"training diverged: iter 7: grad_norm is nan.*last state is out/last/step-00000007"
    ) as failure:
        trainers.train(tiny(max_rollbacks=0), hooks=nan_at(7))
    assert failure.value.code == 3
    for path in Path("out").rglob("*.safetensors"):
        assert all(torch.isfinite(tensor).all() for tensor in load_file(path).values()), path
    assert events("out", "diverged")[0]["step"] == 7


def test_a_bad_number_that_always_comes_back_ends_after_max_rollbacks(tiny):
    with pytest.raises(Failure, match="after 2 rollbacks") as failure:
        trainers.train(tiny(max_rollbacks=2, save_interval=50), hooks=nan_at(3, forever=True))
    assert failure.value.code == 3
    assert [event["step"] for event in events("out", "rollback")] == [0, 0]  # no state yet: back to the start
    assert [path.name for path in Path("out/last").iterdir()] == ["step-00000000"]


def test_a_bad_number_on_one_of_three_processes_stops_all_of_them(tiny):
    outcome = harness(tiny(max_rollbacks=0), world=3, nan={"rank": 1, "iteration": 5})
    assert outcome["codes"] == [3, 3, 3] and outcome["seconds"] < 120
    assert events("out", "diverged")[0]["step"] == 5
    assert Path("out/last/step-00000005").exists()


def test_a_bad_number_on_one_of_three_processes_is_survived_by_all_of_them(tiny):
    assert harness(tiny(), world=3, nan={"rank": 2, "iteration": 5})["codes"] == [0, 0, 0]
    assert [event["step"] for event in events("out", "rollback")] == [5]


def test_machines_that_see_different_states_do_not_go_back_each_to_its_own(tiny, monkeypatch):
    monkeypatch.setattr(
        "accelerate.Accelerator.gather",  # of the number of the newest state, after the start
        lambda self, tensor: torch.cat([tensor, torch.full_like(tensor, -1)]) if tensor.max() > 1 else tensor,
    )
    with pytest.raises(
        Failure, match="to go back all machines must see the states in out_dir out, on a shared disk"
    ) as failure:
        trainers.train(tiny(), hooks=nan_at(7))
    assert failure.value.code == 3


def test_a_learning_rate_that_ruins_everything_never_writes_a_bad_number(tiny):
    with pytest.raises(Failure) as failure:
        trainers.train(tiny(learning_rate=1e30, max_rollbacks=1, warmup_iters=0, grad_clip=0))
    assert failure.value.code == 3
    for path in Path("out").rglob("*.safetensors"):
        assert all(torch.isfinite(tensor).all() for tensor in load_file(path).values()), path


def test_a_save_that_fails_in_between_is_told_and_training_goes_on(tiny, monkeypatch, capsys):
    from finetune.runs import checkpoints

    real, tries = checkpoints.save_state, []

    def full(*args):
        tries.append(1)
        if len(tries) in (2, 3):
            raise OSError(28, "No space left on device")
        real(*args)

    monkeypatch.setattr(checkpoints, "save_state", full)
    trainers.train(tiny(max_iters=6))
    assert capsys.readouterr().out.count("could not be saved: No space left on device") == 2
    assert [event["step"] for event in events("out", "save_failed")] == [2, 3]
    monkeypatch.setattr(checkpoints, "save_state", lambda *args: full())
    tries[:] = [1]
    with pytest.raises(Failure, match="could not be saved") as failure:
        trainers.train(tiny("other", max_iters=2))
    assert failure.value.code == 1


def test_a_disk_that_is_too_small_is_told_before_training(tiny, monkeypatch):
    from finetune.common import disk_space
    from finetune.common.errors import UsageError

    monkeypatch.setattr(disk_space, "free_bytes", lambda out_dir: 10_000)
    with pytest.raises(UsageError, match="the checkpoints of this run need .* GB, and .* GB are free"):
        trainers.train(tiny())
    assert not Path("out/best").exists()


def test_evaluation_does_not_disturb_training(tiny):
    for out_dir, interval in (("often", 1), ("seldom", 20)):
        trainers.train(tiny(out_dir, eval_interval=interval))
    assert final("often") == final("seldom")


@pytest.mark.heavy
def test_patience_ends_a_run_that_no_longer_gets_better(tiny, capsys):
    _, state = trainers.train(
        tiny(max_iters=2000, dropout=0.0, patience=3, eval_interval=20, learning_rate=3e-2, decay_lr=False)
    )
    assert state.step < 2000
    assert len([e for e in state.evaluations if e["step"] > state.best["step"]]) == 3
    assert "no better validation loss in 3 evaluations" in capsys.readouterr().out
    assert Path(f"out/last/step-{state.step:08d}").exists()


def evaluations(*losses, every=10):
    return [{"step": every * i, "train_loss": train, "val_loss": val} for i, (train, val) in enumerate(losses)]


@pytest.mark.parametrize(
    "losses, vocab, pretrained, expected",
    [
        ([(10.9, 10.9)], 50257, True, {"start"}),
        ([(4.2, 4.2)], 65, False, set()),
        ([(9.0, 9.0)], 65, False, {"start"}),
        ([(1.0, 1.0)], 50257, True, {"known"}),
        ([(4.0, 4.0), (3.5, 3.6), (3.2, 3.7), (3.0, 3.9), (2.8, 4.1)], 50257, True, {"overfitting", "gap"}),
        ([(4.0, 4.0), (3.5, 3.6), (3.2, 3.4), (3.0, 3.3)], 50257, True, set()),
        ([(4.0, 4.0), (3.5, 3.6)] + [(3.4, 3.5)] * 6, 50257, True, {"plateau"}),
        ([(4.2, 4.2), (3.0, 3.0), (2.5, 2.6), (2.2, 2.3), (2.0, 2.15), (1.9, 2.05), (1.8, 2.0)], 65, False, set()),
    ],
)
def test_warning_signs(losses, vocab, pretrained, expected):
    found = warning_signs.warning_signs(evaluations(*losses), vocab, pretrained)
    assert found.keys() == expected
    assert all(any(character.isdigit() for character in line) for line in found.values())


def test_nothing_is_memorized_within_the_first_pass_or_by_noise():
    losses = [(4.0, 4.0), (3.5, 3.6), (3.2, 3.7), (3.0, 3.9), (2.8, 4.1)]
    for passes, expected in ((0.9, set()), (1.0, {"overfitting", "gap"}), (None, {"overfitting", "gap"})):
        assert warning_signs.warning_signs(evaluations(*losses), 50257, True, passes).keys() == expected
    noise = [(4.0, 4.0), (3.5, 3.6), (3.49, 3.605), (3.48, 3.602), (3.47, 3.61)]
    assert not warning_signs.warning_signs(evaluations(*noise), 50257, True)


def test_the_watch_is_not_alarmed_by_an_ordinary_run():
    rng = np.random.default_rng(0)
    watch = monitor.LossMonitor()
    for i in range(2000):
        assert watch.check(4 * 0.998**i + 1 + rng.normal(0, 0.15) + (0.9 if i % 97 == 0 else 0), 1.0) is None


def test_float16_overflows_are_borne_for_a_while():
    watch = monitor.LossMonitor()
    assert all(watch.check(1.0, float("inf"), may_overflow=True) is None for _ in range(monitor.OVERFLOWS))
    assert watch.check(1.0, float("inf"), may_overflow=True) == "grad_norm is inf"


def test_the_variable_that_makes_accelerate_divide_losses_has_no_effect(tiny, monkeypatch):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "7")
    trainers.train(tiny("one", max_iters=3))
    assert "ACCELERATE_GRADIENT_ACCUMULATION_STEPS" not in os.environ
    trainers.train(tiny("two", max_iters=3))
    assert final("one") == final("two")
