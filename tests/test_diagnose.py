"""Each problem gets its label and healthy runs get none; the suggested commands work; a run that fails prints its
diagnosis."""

import dataclasses
import functools
import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import forked
import pytest
from ports import free_port

from finetune.common import files
from finetune.common.errors import UsageError
from finetune.config import recipe_file
from finetune.config.cli import parse
from finetune.config.recipe import Recipe
from finetune.config.schedule import schedule
from finetune.runs.events import read_metrics
from finetune.runtime import fsdp, memory_modes
from finetune.tools.report import diagnosis, record

GPU = "1 process on cuda (NVIDIA A100-SXM4-40GB), bfloat16"
CPU = "1 process on cpu (8 threads), bfloat16"


def synthesised(
    losses,
    every=50,
    end="end",
    events=(),
    machine=GPU,
    seconds=0.05,
    mfu=0.3,
    best=True,
    states=1,
    out_dir="out",
    **values,
):
    """A run with these (train loss, val loss), `every` updates apart. `end` is its last event, None after a kill;
    `events` come before it."""
    out = Path(out_dir)
    out.mkdir()
    recipe = Recipe(**{"dataset": "data/d", "out_dir": out_dir} | values)
    steps = [every * number for number in range(len(losses))]
    length = max(values.get("max_iters", 0), steps[-1]) if losses else 5000
    derived = {"block_size": recipe.block_size or 1024, "min_lr": recipe.learning_rate / 10}
    (out / "recipe.yaml").write_text(recipe_file.dump(recipe, derived))
    began = time.time() - 3600
    shape = {"recipe": dataclasses.asdict(recipe) | derived, "identity": {}, "machine": machine, "memory": 16e9}
    lines = [{"event": "start", "step": 0, "length": length, **shape}]
    for (train, val), step in zip(losses, steps):
        lines.append({"event": "eval", "step": step, "train_loss": train, "val_loss": val})
        if step < steps[-1]:
            pace = {"seconds": seconds, "tokens_per_second": 65536 / seconds, "mfu": mfu, "memory": 2e9}
            lines += [
                {"event": "iter", "iter": i, "loss": train, "lr": 3e-5, "grad_norm": 1.0, **pace}
                for i in range(step, step + every, 10)
            ]
    lines += [
        *events,
        *([{"event": end, "step": steps[-1] if steps else 0}] if isinstance(end, str) else [end] if end else []),
    ]
    (out / "metrics.jsonl").write_text(
        "".join(json.dumps({"time": began + number} | event) + "\n" for number, event in enumerate(lines))
    )
    for name in ["best"] * best + [f"last/step-{step:08d}" for step in (steps[-states:] if states else [])]:
        (out / name).parent.mkdir(exist_ok=True)
        files.write_directory(out / name, lambda place: (place / "config.json").write_text('{"vocab_size": 50257}'))
    return out_dir


def labels(out_dir="out"):
    return [finding.label for finding in diagnosis.diagnose(record.load(out_dir, verify=True))]


LEARNS = [(4.0, 4.0), (3.6, 3.62), (3.42, 3.45), (3.33, 3.38), (3.29, 3.34), (3.27, 3.33)]
OUT_OF_MEMORY = "out of memory at iter 3 with batch_size 8; halve it"


def killed_by_the_kernel():
    synthesised([*LEARNS[:3]], end=None, machine=CPU)
    path = Path("out/metrics.jsonl")
    path.write_text(path.read_text().replace("2000000000.0", "14800000000.0"))


def damaged():
    synthesised(LEARNS)
    (Path("out/best/config.json")).write_text("{}")


BROKEN = {
    "out of memory": (
        "out_of_memory",
        lambda: synthesised(LEARNS[:1], end={"event": "failed", "problem": OUT_OF_MEMORY, "code": 1}),
    ),
    "one of several processes out of memory": (
        "out_of_memory",
        lambda: synthesised(
            LEARNS[:3],
            events=[{"event": "failed", "problem": OUT_OF_MEMORY, "code": 1, "rank": 1}],
            end={"event": "failed", "problem": "Connection closed by peer [127.0.0.1]:60000", "code": 1},
        ),
    ),
    "killed with all memory in use": ("out_of_memory", killed_by_the_kernel),
    "killed before anything was saved": ("missing_checkpoint", lambda: synthesised([], end=None, best=False, states=0)),
    "best/ removed": ("missing_checkpoint", lambda: synthesised(LEARNS, best=False)),
    "best/ damaged": ("missing_checkpoint", damaged),
    "a full disk": (
        "missing_checkpoint",
        lambda: synthesised(
            LEARNS[:3],
            events=[
                {
                    "event": "save_failed",
                    "step": 100,
                    "problem": "last at step 100 could not be saved: No space left on device",
                }
            ],
            end={
                "event": "failed",
                "problem": "out_dir out: the state after 100 updates could not be saved",
                "code": 1,
            },
        ),
    ),
    "another tokenizer's ids": ("gibberish", lambda: synthesised([(10.7, 10.8), (8.0, 8.1), (7.0, 7.2), (6.8, 7.0)])),
    "diverged": (
        "gibberish",
        lambda: synthesised(
            LEARNS[:3], end={"event": "failed", "problem": "training diverged: loss is nan", "code": 3}
        ),
    ),
    "both losses rise": (
        "gibberish",
        lambda: synthesised([(4.0, 4.0), (3.8, 3.85), (4.9, 5.0), (6.5, 6.6)], learning_rate=1e-2),
    ),
    "a learning rate too low": ("not_learning", lambda: synthesised([(4.03, 4.01)] * 6, learning_rate=1e-8)),
    "from scratch, stuck": (
        "not_learning",
        lambda: synthesised([(10.9, 10.9)] + [(10.7, 10.7)] * 5, init_from="scratch", learning_rate=1e-7),
    ),
    "learned by heart": (
        "overfitting",
        lambda: synthesised([(4.0, 4.0), (3.3, 3.5), (2.6, 3.6), (1.8, 3.8), (1.0, 4.3), (0.6, 4.9)]),
    ),
    "samples that are copies": (
        "overfitting",
        lambda: synthesised(
            LEARNS,
            events=[
                {
                    "event": "evaluation",
                    "split": "val",
                    "loss": 3.3,
                    "memorisation": {"ngram": 8, "copied": 0.93, "longest": 120},
                }
            ],
        ),
    ),
    "a GPU at 1%": ("slow", lambda: synthesised(LEARNS, seconds=20.0, mfu=0.01, compile="false")),
    "days on a CPU": ("slow", lambda: synthesised(LEARNS, seconds=375.0, machine=CPU, max_iters=5000, end="stop")),
    "ended while it fell": (
        "disappointing",
        lambda: synthesised([(4.0, 4.0), (3.9, 3.9), (3.8, 3.8), (3.7, 3.7), (3.6, 3.6), (3.5, 3.5)]),
    ),
    "no better than its baseline": (
        "disappointing",
        lambda: synthesised(
            LEARNS,
            events=[
                {
                    "event": "evaluation",
                    "split": "val",
                    "loss": 3.5,
                    "baseline": {"name": "gpt2"},
                    "difference": {"mean": 0.02},
                }
            ],
        ),
    ),
    "killed": ("interrupted", lambda: synthesised(LEARNS[:4], end=None)),
    "an error": (
        "interrupted",
        lambda: synthesised(
            LEARNS[:4], end={"event": "failed", "problem": "CUDA error: device-side assert", "code": 1}
        ),
    ),
}
HEALTHY = {
    "finetuned": lambda: synthesised(LEARNS),
    "ended by patience": lambda: synthesised(
        [*LEARNS, (3.2, 3.34), (3.1, 3.36), (3.0, 3.4), (2.9, 3.45), (2.8, 3.5)], max_iters=5000, patience=5
    ),
    "from scratch": lambda: synthesised(
        [(4.2, 4.2), (2.6, 2.65), (2.1, 2.2), (1.8, 1.9), (1.65, 1.78), (1.6, 1.75)], init_from="scratch"
    ),
    "recovered by itself": lambda: synthesised(
        LEARNS,
        events=[
            {
                "event": "out_of_memory",
                "step": 3,
                "done": "batch_size 8 -> 4",
                "batch_size": 4,
                "gradient_accumulation_steps": 16,
            },
            {"event": "rollback", "step": 50, "reached": 60, "lr_scale": 0.5, "problem": "loss is nan"},
        ],
    ),
    "stopped by its user": lambda: synthesised(
        LEARNS[:3], max_iters=5000, end={"event": "stop", "step": 100, "signal": "SIGTERM"}
    ),
    "a try of three updates": lambda: synthesised([(4.0, 4.0), (4.0, 4.0)], every=3),
    "a slow but short run": lambda: synthesised(LEARNS, seconds=1.0, mfu=0.01, machine=CPU),
}


def test_every_issue_has_a_case():
    cases = {label for label, _ in BROKEN.values()}
    assert cases == diagnosis.ISSUES.keys() and len(cases) == 8
    assert len(HEALTHY) >= 5


@pytest.mark.parametrize("name", BROKEN)
def test_broken_runs_get_their_label(name):
    label, make = BROKEN[name]
    make()
    findings = diagnosis.diagnose(record.load("out", verify=True))
    assert [finding.label for finding in findings] == [label]
    assert any(character.isdigit() for line in findings[0].evidence for character in line)
    if findings[0].command and "finetune train" in findings[0].command:
        options, _ = parse(Recipe, shlex.split(findings[0].command.split("finetune train")[1]), "")
        fresh = options.init_from != "resume" and not options.overwrite
        assert (options.out_dir == "out-2") == fresh, "another run goes beside this one"
        assert options != parse(Recipe, ["out/recipe.yaml"], "")[0]


@pytest.mark.parametrize("max_iters", [300, 5000])
def test_twice_as_long_is_twice_as_long_under_a_ceiling(max_iters):
    out = Path(BROKEN["ended while it fell"][1]())
    for path in (out / "recipe.yaml", out / "metrics.jsonl"):
        text = path.read_text().replace('"epochs": null', '"epochs": 2.0').replace("epochs: null", "epochs: 2.0")
        path.write_text(re.sub(r"(max_iters\"?: )5000", rf"\g<1>{max_iters}", text))
    (finding,) = diagnosis.diagnose(record.load(out))
    recipe, _ = parse(Recipe, shlex.split(finding.command.split("finetune train")[1]), "")
    assert schedule(recipe, num_rows=250 * recipe.blocks_per_update // 2).length == 500


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_runs_get_none(name):
    HEALTHY[name]()
    assert labels() == []


def test_a_running_run_misses_no_checkpoint():
    synthesised([], end=None, best=False, states=0)
    code = (
        "import fcntl, sys, time; f = open('out/.lock', 'a+'); fcntl.flock(f, fcntl.LOCK_EX); print(1, flush=True);"
        " sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        assert labels() == []
        other.stdin.close()
    assert labels() == ["missing_checkpoint"]


def test_the_command_prints_all_of_a_broken_run(command):
    synthesised(LEARNS)
    assert command("diagnose", "--out_dir=out") == (0, "out: nothing to say\n", "")
    synthesised([(4.0, 4.0), (3.3, 3.5), (2.6, 3.6), (1.8, 3.8), (1.0, 4.3), (0.6, 4.9)], out_dir="other")
    code, out, error = command("diagnose", "--out_dir=other")
    assert (code, error) == (0, "")
    assert out.startswith("overfitting: the model memorizes the training data\n")
    assert "val loss 3.5000 at step 50 -> 4.9000" in out and "--max_iters=50" in out
    code, _, error = command("diagnose", "--out_dir=nowhere")
    assert (code, error) == (2, "out_dir nowhere: no such directory; runs here: other, out\n")
    Path("theirs").mkdir()
    Path("theirs/ckpt.pt").write_bytes(b"")
    assert "finetune sample --init_from=theirs/ckpt.pt" in command("diagnose", "--out_dir=theirs")[2]


def test_a_real_healthy_run_has_no_finding(tiny_run):
    tiny_run("out", "--max_iters=30", "--eval_interval=10", "--n_layer=1")
    assert labels() == []
    assert not [event for event in read_metrics("out/metrics.jsonl") if event["event"] == "failed"]


def train(command, corpus, *flags):
    return command(
        "train",
        "--init_from=scratch",
        f"--dataset={corpus()}",
        "--tokenizer=char",
        "--n_layer=1",
        "--n_head=1",
        "--n_embd=16",
        "--block_size=16",
        "--batch_size=2",
        "--gradient_accumulation_steps=1",
        "--log_interval=1",
        "--dtype=float32",
        *flags,
    )


def test_a_run_that_diverges_is_diagnosed_by_itself(command, corpus, monkeypatch):
    from finetune.training import trainer
    from finetune.training.state import Hooks

    def poison(setup, state):
        if state.step == 7:
            setup.model.ln_f.bias.data[0] = float("nan")

    monkeypatch.setattr(trainer, "train", functools.partial(trainer.train, hooks=Hooks(before_update=poison)))
    code, _, error = train(command, corpus, "--max_iters=20", "--max_rollbacks=0", "--learning_rate=0.5")
    lines = error.splitlines()
    assert code == 3 and lines[0].startswith("training diverged: iter 7: loss is nan")
    assert lines[1].startswith("diagnosis: gibberish: training diverged")
    assert "--learning_rate=0.05" in lines[2]
    assert lines[3] == "report in out/report.html"
    assert read_metrics("out/metrics.jsonl")[-1]["code"] == 3


def test_a_run_without_memory_is_diagnosed_by_itself_and_the_advice_is_a_recipe(command, corpus, monkeypatch):
    from finetune.training import trainer

    def exhausted(*_):
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "update", exhausted)
        code, _, error = train(command, corpus, "--max_iters=20")
    assert code == 1 and error.startswith("out of memory with one block of 16 tokens and gradient_checkpointing=true")
    assert "\ndiagnosis: out_of_memory: " in error and "--block_size=8" in error
    advice = next(line for line in error.splitlines() if line.startswith("what would help: "))
    code, out, error = command("train", *shlex.split(advice.split("finetune train")[1]), "--max_iters=2")
    assert code == 0, error
    assert labels("out") == []


def test_less_memory_is_suggested_in_the_order_of_training():
    """Each step is added to those before, until only a smaller model is left."""
    from finetune.gpt import GPTConfig

    values, taken = {"init_from": "gpt2-large", "batch_size": 2, "gradient_accumulation_steps": 4}, []
    while "init_from" not in taken:
        out_dir = f"out{len(taken)}"
        synthesised(LEARNS[:1], end={"event": "failed", "problem": OUT_OF_MEMORY, "code": 1}, out_dir=out_dir, **values)
        (finding,) = diagnosis.diagnose(record.load(out_dir))
        options, _ = parse(Recipe, shlex.split(finding.command.split("finetune train")[1]), "")
        before, _ = parse(Recipe, [f"{out_dir}/recipe.yaml"], "")
        keys = (
            "batch_size",
            "gradient_checkpointing",
            "optimizer_dtype",
            "lora_rank",
            *(["init_from"] if options.init_from != "resume" else []),
        )
        changed = {name: getattr(options, name) for name in keys if getattr(options, name) != getattr(before, name)}
        assert len(changed) == 1
        taken += changed
        values |= changed | {
            "gradient_accumulation_steps": options.gradient_accumulation_steps,
            "learning_rate": options.learning_rate,
        }
        values["block_size"] = 1024
    assert taken == ["batch_size", "gradient_checkpointing", "optimizer_dtype", "lora_rank", "init_from"]
    assert (values["learning_rate"], values["init_from"]) == (2e-4, "gpt2-medium")
    words = memory_modes.oom_advice(
        GPTConfig(n_layer=36, n_head=20, n_embd=1280), 1024, Recipe(dataset="x", init_from="gpt2-large")
    )
    assert list(dict.fromkeys(re.findall(r"--(\w+)=", words))) == [*taken[2:], "block_size"]


def test_sharded_runs_and_runs_from_scratch_get_no_useless_advice():
    out, failed = Recipe(dataset="x"), {"event": "failed", "problem": OUT_OF_MEMORY, "code": 1}
    least = {"batch_size": 1, "gradient_checkpointing": True, "block_size": 64}
    synthesised(LEARNS[:1], end=failed, machine=f"2 processes on cuda (H100), {fsdp.FSDP(True).describe()}", **least)
    synthesised(LEARNS[:1], end=failed, out_dir="scratch", init_from="scratch", optimizer_dtype="bfloat16", **least)
    for out in ("out", "scratch"):
        (finding,) = diagnosis.diagnose(record.load(out))
        assert "--block_size=32" in finding.command and "memory=auto" not in finding.advice


TWO = """
import sys
import functools
from finetune.train import main
from finetune.config import cli
from finetune.training import trainer
from finetune.training.state import Hooks

exhausted = int(sys.argv.pop(1))

def fail(setup, state):
    if state.step == 3 and setup.device.accelerator.process_index == exhausted:
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")

trainer.train = functools.partial(trainer.train, hooks=Hooks(before_update=fail))
cli.run(main)
"""


@pytest.mark.parametrize("rank", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_only_the_rank_out_of_memory_prints_the_diagnosis(tiny, rank):
    recipe = tiny(gradient_accumulation_steps=2, batch_size=2)
    given = vars(Recipe(dataset="x")).items()
    flags = [f"--{name}={getattr(recipe, name)}" for name, default in given if getattr(recipe, name) != default]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    Path("two.py").write_text(TWO)
    environment = {**os.environ, **place, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    processes = [
        forked.Process("two.py", rank, *flags, env=environment | {"RANK": str(number), "LOCAL_RANK": str(number)})
        for number in range(2)
    ]
    output = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [1, 1]
    error = output[rank][1]
    assert (
        error.startswith("out of memory at iter 3 with batch_size 2")
        and "\ndiagnosis: out_of_memory: out of memory at iter 3" in error
    )
    assert "--batch_size=1" in error and "\nreport in out/report.html" in error
    assert "diagnosis" not in "".join(output[1 - rank]) and "report in" not in "".join(output[1 - rank])
    failed = [event for event in read_metrics("out/metrics.jsonl") if event["event"] == "failed"]
    assert failed[0].get("rank", 0) == rank and "out of memory" in failed[0]["problem"] and len(failed) == 1 + rank
    assert labels() == ["out_of_memory"]
    page = Path("out/report.html").read_text()
    assert "updates, failed, 2 processes" in page and "out of memory at iter 3" in page


def test_any_crash_is_recorded_and_diagnosed(command, corpus, monkeypatch, capsys):
    from finetune.training import trainer

    def broken(*_):
        raise ZeroDivisionError("in a kernel")

    monkeypatch.setattr(trainer, "update", broken)
    with pytest.raises(ZeroDivisionError):
        train(command, corpus, "--max_iters=20")
    assert "diagnosis: interrupted: after 0 updates: in a kernel" in capsys.readouterr().err
    assert labels() == ["interrupted"]


def test_a_mistake_before_the_run_begins_does_not_diagnose_the_run_before(command, corpus):
    synthesised(LEARNS[:3], end=None)
    before = Path("out/metrics.jsonl").read_bytes()
    code, _, error = train(command, corpus, "--max_iters=20")
    assert code == 2 and error.count("\n") == 1 and "diagnosis" not in error
    assert Path("out/metrics.jsonl").read_bytes() == before and not Path("out/report.html").exists()


def test_the_rule_for_memory_matches_the_message():
    from finetune.gpt import GPTConfig

    assert "out of memory" in memory_modes.oom_advice(GPTConfig(), 1024, Recipe(dataset="x"))


def test_old_and_malformed_records_are_read():
    Path("out").mkdir()
    with pytest.raises(UsageError, match="holds no run"):
        record.load("out")
    lines = [
        '{"event": "eval", "step": 0, "train_loss": "nan", "val_loss": 1}',
        '{"event": "iter"}',
        "[1]",
        "{",
        '{"event": "start", "time": 1}',
    ]
    Path("out/metrics.jsonl").write_text("\n".join(lines))
    assert labels() == ["missing_checkpoint"]


def test_only_a_damaged_best_is_written_again():
    synthesised(LEARNS, states=2)
    Path("out/last/step-00000250/config.json").write_text("{}")
    (finding,) = diagnosis.diagnose(record.load("out", verify=True))
    assert finding.label == "missing_checkpoint" and finding.advice == "out/last/step-00000200 is complete"
    Path("out/best/config.json").write_text("{}")
    (finding,) = diagnosis.diagnose(record.load("out", verify=True))
    assert finding.advice == "out/last/step-00000200 is complete, and the next evaluation writes best/"
