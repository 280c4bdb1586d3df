"""Any launcher, any number of processes: the same run, one set of files, and what cannot be is told in one line."""

import dataclasses
import importlib.util
import json
import os
import shlex
import signal
import sys
import time
from pathlib import Path

import forked
import numpy as np
import pytest
import torch
from conftest import write_bins
from ports import free_port
from test_trust import command, events, harness

from finetune.common.errors import UsageError
from finetune.config.cli import parse
from finetune.config.recipe import Recipe
from finetune.runs.events import read_metrics
from finetune.runtime import device
from finetune.training import micro_batch, trainer
from finetune.training.state import MicroBatch

ROOT = Path(__file__).parents[1]
CONFIGURATIONS = sorted((ROOT / "recipes" / "accelerate").glob("*.yaml"))
ACCELERATE = ["accelerate.commands.accelerate_cli", "launch"]
PLAIN = {"dropout": 0.0, "batch_size": 2, "gradient_accumulation_steps": 6, "max_iters": 6, "eval_interval": 3}


def accelerate(config, *flags):
    return [*ACCELERATE, f"--config_file={ROOT}/recipes/accelerate/{config}.yaml", *flags, "-m"]


def torchrun(processes):
    return ["torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "-m"]


def nodes(count, processes):
    """The commands of so many machines, all of them this one."""
    port = free_port()
    where = [
        "--main_process_ip=127.0.0.1",
        f"--main_process_port={port}",
        f"--num_machines={count}",
        f"--num_processes={processes}",
    ]
    return [accelerate("multi_node", f"--machine_rank={rank}", *where) for rank in range(count)]


def start(recipe, launcher, **options):
    """A launcher with `tests/launched.py`, which is finetune.train and notes what its processes read."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        "OMP_NUM_THREADS": "1",
    }
    argv = ["launched" if word == "finetune.train" else word for word in command(recipe, *launcher)]
    return forked.Process(*argv, env=environment, **options)


def finish(processes):
    """(exit codes, standard output of all, standard error of all)."""
    told = [process.communicate(timeout=200) for process in processes]
    return (
        [process.returncode for process in processes],
        "".join(out for out, _ in told),
        "".join(error for _, error in told),
    )


def notes(ranks):
    """{what was done: [rows of each rank]} of the processes of one run."""
    found = {}
    for rank in range(ranks):
        for line in Path(f"rank-{rank}.jsonl").read_text().splitlines():
            note = json.loads(line)
            if "what" in note:
                found.setdefault(note["what"], [[] for _ in range(ranks)])[rank] += note["rows"]
    return found


def files(out_dir):
    """What training wrote; the page and its picture are made by the command that ends with it."""
    return sorted(
        str(path.relative_to(out_dir))
        for path in Path(out_dir).rglob("*")
        if path.is_file() and path.name not in ("report.html", "share.png")
    )


def same_run(whole, out_dir, ranks):
    """The run in `out_dir`, of so many processes, read what `whole` would read by itself, and learned the same."""
    setup, state = whole
    read, updates = notes(ranks), range(setup.schedule.length)
    for step in updates:
        rows = read[f"update {step}"]
        assert (
            sorted(sum(rows, [])) == sorted(setup.sampler.rows(step).tolist())
            and len({len(each) for each in rows}) == 1
        )
    for event in state.evaluations:
        rows = read[f"val loss {event['step']}"]
        assert sorted(sum(rows, [])) == list(range(setup.val.num_rows)) and all(rows)  # every process evaluates
    one, other = events(setup.recipe.out_dir, "iter"), events(out_dir, "iter")
    assert [event["iter"] for event in other] == list(updates)  # once each, so one process wrote them
    for expected, event in zip(one, other):
        assert event["loss"] == pytest.approx(expected["loss"], abs=1e-5) and event["lr"] == expected["lr"]
    for expected, event in zip(state.evaluations, events(out_dir, "eval")):
        assert event["val_loss"] == pytest.approx(expected["val_loss"], abs=1e-5)
    assert files(out_dir) == files(setup.recipe.out_dir)


@pytest.mark.heavy
def test_processes_build_the_caches_of_several_bins_at_once(tiny):
    """Each its own, and none twice."""
    for number in range(2):
        write_bins(Path(f"d{number}"), np.arange(number, 400 + number) % 9, np.arange(number, 90 + number) % 9)
    recipe = tiny(dataset="d0,d1", tokenizer="auto", max_iters=1, gradient_accumulation_steps=2)
    codes, _, error = finish([start(recipe, torchrun(2))])
    assert codes == [0], error
    built = []
    for rank in range(2):
        lines = map(json.loads, Path(f"rank-{rank}.jsonl").read_text().splitlines())
        built.append([line["renamed"] for line in lines if line.get("renamed", "").endswith(".arrow")])
    there = sorted(path.name for path in Path().glob("d?/.arrow/*.arrow"))
    assert len(there) == 4 and sorted(built[0] + built[1]) == there and all(built)


LAUNCHERS = {
    "torchrun, 3 processes": (3, lambda: [torchrun(3)]),
    "accelerate launch, 2 machines": (2, lambda: nodes(2, 2)),
}
MORE = {
    "accelerate launch, 2 processes": (2, lambda: [accelerate("cpu")]),
    "accelerate launch, 1 process": (1, lambda: [accelerate("one_gpu")]),
    "accelerate launch, 1 process of several possible": (1, lambda: [accelerate("cpu", "--num_processes=1")]),
    "accelerate launch, 3 processes": (3, lambda: [accelerate("cpu", "--num_processes=3")]),
    "accelerate launch --multi_gpu without a GPU": (
        2,
        lambda: [[*ACCELERATE, "--multi_gpu", "--num_processes=2", "--main_process_port=0", "-m"]],
    ),
    "torchrun, 1 process": (1, lambda: [torchrun(1)]),
    "torchrun, 6 processes": (6, lambda: [torchrun(6)]),
    "accelerate launch, 2 machines of 3 processes": (6, lambda: nodes(2, 6)),
    "accelerate launch, 3 machines": (3, lambda: nodes(3, 3)),
}


@pytest.mark.parametrize(
    "name",
    [
        *(pytest.param(name, marks=pytest.mark.heavy) for name in LAUNCHERS),
        *(pytest.param(name, marks=pytest.mark.slow) for name in MORE),
    ],
)
def test_every_launcher_makes_the_same_run_and_one_set_of_files(tiny, name):
    ranks, launchers = {**LAUNCHERS, **MORE}[name]
    whole = trainer.train(tiny("whole", **PLAIN))
    codes, out, error = finish([start(tiny(**PLAIN), launcher) for launcher in launchers()])
    assert set(codes) == {0}, error
    assert f"{ranks} process{'es' * (ranks > 1)} on cpu" in out and out.count("step 6: ") == 1
    assert (
        out.count(
            f"12 blocks an update: {ranks} process{'es' * (ranks > 1)} x {6 // ranks} accumulation"
            f" step{'s' * (ranks < 6)} x batch_size 2"
        )
        == 1
    )
    same_run(whole, "out", ranks)


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert condition()


def pid_of(rank):
    return json.loads(Path(f"rank-{rank}.jsonl").read_text().splitlines()[0])["pid"]


def is_gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def dies(recipe, launchers, ranks, kill):
    """A run of which `kill` ends a part ends soon with a state, from which one process goes on as if nothing had
    happened."""
    trainer.train(dataclasses.replace(recipe, out_dir="whole"))
    processes = [start(recipe, launcher, start_new_session=True) for launcher in launchers]
    try:
        wait_for(lambda: len(list(Path("out/last").glob("step-*"))) > 1)
        pids = [pid_of(rank) for rank in range(ranks)]
        began = time.monotonic()
        kill(processes, pids)
        codes, _, _ = finish(processes)
        wait_for(lambda: all(map(is_gone, pids)), 100)
        assert time.monotonic() - began < 100 and 0 not in codes
    finally:
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    trainer.train(dataclasses.replace(recipe, init_from="resume", n_layer=None, n_head=None, n_embd=None))
    one, other = events("whole", "iter"), events("out", "iter")
    assert [event["iter"] for event in other] == [event["iter"] for event in one]
    for expected, event in zip(one, other):
        assert event["loss"] == pytest.approx(expected["loss"], abs=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_process_that_dies_takes_the_run_down_with_a_state_to_go_on_from(tiny):
    recipe = tiny(**PLAIN | {"max_iters": 200, "eval_interval": 200, "save_interval": 10, "learning_rate": 1e-3})
    dies(recipe, [accelerate("cpu")], 2, lambda processes, pids: os.kill(pids[1], signal.SIGKILL))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_machine_that_dies_takes_the_run_down_with_a_state_to_go_on_from(tiny):
    recipe = tiny(**PLAIN | {"max_iters": 200, "eval_interval": 200, "save_interval": 10, "learning_rate": 1e-3})

    def kill(processes, pids):
        processes[1].kill()
        os.kill(pids[1], signal.SIGKILL)

    dies(recipe, nodes(2, 2), 2, kill)


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: path.stem)
def test_every_configuration_is_understood_by_accelerates_launcher(path, monkeypatch):
    """The command that a file opens with, through accelerate's own parser and its choice of a launcher, up to where
    that would start."""
    import accelerate.commands.launch as launching
    from accelerate.utils import launch as environments

    monkeypatch.chdir(ROOT)
    first = path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
    words = shlex.split(first)
    assert words[:3] == ["accelerate", "launch", f"--config_file=recipes/accelerate/{path.name}"]
    chosen = []
    for kind in ("simple", "multi_gpu"):
        monkeypatch.setattr(launching, f"{kind}_launcher", lambda args, kind=kind: chosen.append((kind, args)))
    monkeypatch.setattr(environments, "is_port_in_use", lambda port: False)  # by another run on this machine
    launching.launch_command(launching.launch_command_parser().parse_args(words[2:]))
    [(kind, args)] = chosen
    assert kind == {"one_gpu": "simple"}.get(path.stem, "multi_gpu")
    prepare = {"simple": "simple_launcher_cmd_env", "multi_gpu": "multi_gpu_env"}[kind]
    prepared = getattr(environments, f"prepare_{prepare}")(args)
    environment = prepared if kind == "multi_gpu" else prepared[1]
    assert environment["ACCELERATE_MIXED_PRECISION"] == "no"  # the recipe decides
    several = "node" in path.stem
    assert (args.num_machines, args.num_processes) == (
        {"cpu": (1, 2), "one_gpu": (1, 1)}.get(path.stem, (2, 16) if several else (1, 8))
    )
    if kind != "simple":
        assert args.nproc_per_node == str(args.num_processes // args.num_machines)
    if several:
        assert (args.nnodes, args.node_rank, args.rdzv_endpoint) == ("2", 0, "10.0.0.1:29500")
    # what it starts is there, and the recipe can be shared among so many
    assert args.module and args.training_script == "finetune.train" and importlib.util.find_spec(args.training_script)
    recipe, _ = parse(Recipe, args.training_script_args, "")
    device.check_accumulation_divides(recipe, args.num_processes)


def test_there_are_these_configurations():
    assert {path.stem for path in CONFIGURATIONS} == {
        "cpu",
        "one_gpu",
        "multi_gpu",
        "multi_node",
        "fsdp2",
        "fsdp2_multi_node",
    }


@pytest.mark.parametrize("name", ["fsdp2", "fsdp2_multi_node"])
def test_fsdp2_wraps_our_blocks(name, monkeypatch):
    import accelerate.commands.launch as launching
    from accelerate.utils import FullyShardedDataParallelPlugin
    from accelerate.utils.launch import prepare_multi_gpu_env

    from finetune import GPT, GPTConfig
    from finetune.gpt.model import Block

    command = [
        f"--config_file={ROOT}/recipes/accelerate/{name}.yaml",
        "--main_process_ip=127.0.0.1",
        "-m",
        "finetune.train",
    ]
    args, _, _ = launching._validate_launch_command(launching.launch_command_parser().parse_args(command))
    args.main_process_port = 0
    for key, value in prepare_multi_gpu_env(args).items():
        monkeypatch.setenv(key, value)
    plugin = FullyShardedDataParallelPlugin()
    network = GPT.from_scratch(GPTConfig(block_size=8, vocab_size=11, n_layer=2, n_head=1, n_embd=8), 0)
    plugin.set_auto_wrap_policy(network)
    assert plugin.fsdp_version == 2 and plugin.reshard_after_forward is True and not plugin.cpu_ram_efficient_loading
    assert (
        plugin.auto_wrap_policy.keywords["transformer_layer_cls"] == {Block}
        and sum(isinstance(module, Block) for module in network.modules()) == 2
    )


def test_a_launch_configuration_is_no_recipe(command):
    code, _, error = command("train", ROOT / "recipes" / "accelerate" / "fsdp2.yaml")
    assert code == 2 and len(error.strip().splitlines()) == 1
    assert "fsdp2.yaml: configures accelerate launch" in error and "--config_file=" in error


@pytest.mark.parametrize("batch_size, steps, processes", [(8, 8, 8), (8, 8, 1), (1, 8, 4), (3, 6, 2)])
def test_an_update_is_shared_out_as_the_recipe_says(batch_size, steps, processes):
    recipe = Recipe(dataset="d", batch_size=batch_size, gradient_accumulation_steps=steps)
    device.check_accumulation_divides(recipe, processes)
    word = "process" if processes == 1 else "processes"
    share = steps // processes
    assert (
        micro_batch.describe_shares(MicroBatch(batch_size, steps), processes)
        == f"{batch_size * steps} blocks an update: {processes} {word} x {share} accumulation"
        f" step{'s' if share > 1 else ''} x batch_size {batch_size}"
    )


@pytest.mark.parametrize(
    "batch_size, steps, processes",
    [(8, 8, 16), (8, 8, 3), (1, 8, 3), (6, 4, 3), (4, 1, 2), (5, 2, 4), (7, 8, 32), (1, 1, 2)],
)
def test_what_cannot_be_shared_is_told_with_what_can(batch_size, steps, processes):
    recipe = Recipe(dataset="d", batch_size=batch_size, gradient_accumulation_steps=steps)
    rows = batch_size * steps
    with pytest.raises(UsageError) as error:
        device.check_accumulation_divides(recipe, processes)
    told = str(error.value)
    assert (
        told.startswith(f"gradient_accumulation_steps: {steps} cannot be shared among {processes} processes")
        and "\n" not in told
    )
    advised, _ = parse(
        Recipe,
        ["--dataset=d", f"--batch_size={batch_size}", *(w.strip(",;") for w in told.split() if w.startswith("--"))],
        "",
    )
    device.check_accumulation_divides(advised, processes)
    there = advised.batch_size * advised.gradient_accumulation_steps
    assert (there == rows) == (rows % processes == 0)  # the same update wherever that is possible
    if there != rows:
        assert f"with {there} blocks an update instead of {rows}" in told
        fewer = int(told.split("; ")[1].split()[0])
        assert fewer < processes and steps % fewer == 0
        device.check_accumulation_divides(recipe, fewer)


STRANGERS = [
    (
        {"SLURM_STEP_NUM_TASKS": "4"},
        "4 processes were started (SLURM_STEP_NUM_TASKS) that do not all see each other",
    ),  # srun without a launcher
    (
        {"MASTER_ADDR": "127.0.0.1", "ACCELERATE_USE_CPU": "True"},
        "--config_file=recipes/accelerate/cpu.yaml --num_processes=N",
    ),  # launch --cpu
]


@pytest.mark.parametrize("environment, told", STRANGERS)
def test_copies_that_do_not_see_each_other_are_refused(command, data, monkeypatch, environment, told):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    code, _, error = command("train", *SCRATCH, f"--dataset={data}")
    assert code == 2 and told in error and len(error.strip().splitlines()) == 1, error
    assert not Path("out").exists()


SCRATCH = (
    "--init_from=scratch --n_layer=1 --n_head=1 --n_embd=8 --block_size=8 --gradient_accumulation_steps=2 --max_iters=1"
    " --out_dir=out".split()
)
BLIND = """
from finetune.config.cli import run
from finetune.train import main

if __name__ == "__main__":
    import torch
    from finetune.runtime import device as machine

    machine.choose_device = lambda choice: torch.device("cuda")
    run(main)
"""


@pytest.mark.heavy
@pytest.mark.skipif(torch.cuda.is_available(), reason="is about a machine without a GPU")
def test_the_independent_copies_of_multi_gpu_without_a_gpu_are_refused(data):
    """accelerate starts both as the first and only process where the program takes GPUs for granted. Ours does not, and
    is made to here."""
    Path("blind.py").write_text(BLIND)
    launcher = [*ACCELERATE, "--multi_gpu", "--num_processes=2", "--main_process_port=0", "-m", "blind"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), "."])}
    done = forked.run(*launcher, *SCRATCH, f"--dataset={data}", env=environment)
    assert (
        done.returncode != 0 and "2 processes were started (WORLD_SIZE) that do not all see each other" in done.stderr
    )
    assert not Path("out").exists()


@pytest.mark.heavy
def test_a_batch_size_that_was_found_is_found_again_where_it_cannot_be_shared(tiny):
    """--batch_size=auto on one process leaves an update of one piece, which three cannot share."""
    auto = PLAIN | {"batch_size": "auto", "gradient_accumulation_steps": 12, "lr_decay_iters": 6, "warmup_iters": 1}
    _, whole = trainer.train(tiny("whole", **PLAIN | {"lr_decay_iters": 6, "warmup_iters": 1}))
    trainer.train(tiny(**auto | {"max_iters": 3}))
    assert harness(tiny(init_from="resume", n_layer=None, n_head=None, n_embd=None, **auto), world=3)["codes"] == [
        0,
        0,
        0,
    ]
    for expected, event in zip(events("whole", "iter"), events("out", "iter"), strict=True):
        assert event["loss"] == pytest.approx(expected["loss"], abs=1e-5)
    written, _ = parse(Recipe, ["out/recipe.yaml"], "")
    assert (written.batch_size, written.blocks_per_update) == ("auto", 12)
    assert whole.step == 6 and [
        event["batch_size"] for event in read_metrics(Path("out/metrics.jsonl")) if event["event"] == "batch_size"
    ] == [12, 4]


@pytest.mark.parametrize(("rank", "local_rank", "speaks"), [("0", "0", True), ("1", "1", False), ("8", "0", True)])
def test_a_mistake_is_told_once_on_each_machine(command, monkeypatch, rank, local_rank, speaks):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("LOCAL_RANK", local_rank)
    monkeypatch.setenv("WORLD_SIZE", "16")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    code, _, error = command("train", "--dataset=gone", "--init_from=scratch", "--max_iter=1")
    assert code == 2 and ("max_iters" in error) == speaks


@pytest.mark.heavy
def test_an_out_dir_that_is_taken_is_told_by_one_process_alone(tiny):
    """The other one waits for data meanwhile, and finds the first gone."""
    recipe = tiny(**PLAIN | {"max_iters": 1})
    trainer.train(recipe)
    codes, _, errors = finish([start(recipe, torchrun(2))])
    assert 0 not in codes and "holds a run already" in errors
    assert "gloo" not in errors and "[rank1]" not in errors


@pytest.mark.heavy
def test_memory_auto_that_cannot_be_shared_is_chosen_anew(tiny):
    """Chosen for one process, 4 blocks at a time; two cannot share that."""
    recipe = tiny(
        memory="auto", batch_size=4, gradient_accumulation_steps=1, max_iters=2, dropout=0.0, lr_decay_iters=9
    )
    _, state = trainer.train(recipe)
    assert state.micro_batch.accumulation == 1
    halved = {
        "batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_iters": 4,
        "init_from": "resume",
        "n_layer": None,
        "n_head": None,
        "n_embd": None,
    }
    assert harness(dataclasses.replace(recipe, **halved), world=2)["codes"] == [0, 0]
    assert [event["iter"] for event in events("out", "iter")] == [0, 1, 2, 3]
