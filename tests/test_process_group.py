"""Variables of a launcher that are left in the environment: refused in a line, at once or after a bounded time."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest
from ports import free_port

import finetune
from finetune.common.errors import UsageError
from finetune.config.recipe import Recipe
from finetune.runtime import device as devices
from finetune.runtime import process_group

GROUP = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


@pytest.mark.parametrize(
    ("left", "told"),
    [
        ({**GROUP, "WORLD_SIZE": "0"}, "WORLD_SIZE=0 in the environment is not what a launcher gives"),
        ({**GROUP, "WORLD_SIZE": "two"}, "WORLD_SIZE=two in the environment is not"),
        ({**GROUP, "RANK": "-1"}, "RANK=-1 in the environment is not"),
        ({**GROUP, "RANK": "2"}, "RANK=2 and WORLD_SIZE=2 in the environment contradict each other"),
        ({**GROUP, "LOCAL_RANK": "7"}, "LOCAL_RANK=7 and WORLD_SIZE=2 in the environment contradict"),
        ({**GROUP, "MASTER_PORT": "70000"}, "MASTER_PORT=70000 in the environment is not"),
        (
            {"ACCELERATE_DYNAMO_BACKEND": "foo"},
            "ACCELERATE_DYNAMO_BACKEND=foo in the environment: 'FOO' is not a valid",
        ),
        ({"ACCELERATE_CPU_AFFINITY": "foo"}, "ACCELERATE_CPU_AFFINITY=foo in the environment: invalid truth value foo"),
        ({"LOCAL_WORLD_SIZE": "0"}, "LOCAL_WORLD_SIZE=0 in the environment is not"),
        ({"SLURM_STEP_NUM_TASKS": "x"}, "SLURM_STEP_NUM_TASKS=x in the environment is not"),
        ({"WORLD_SIZE": "2"}, "2 processes were started (WORLD_SIZE) that do not all see each other"),
        ({"PMI_SIZE": "2", "PMI_RANK": "0"}, "2 processes were started (PMI_SIZE) that do not all"),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"}, "2 processes were started (OMPI_COMM_WORLD_SIZE)"),
    ],
)
def test_variables_of_a_launcher_that_cannot_be_right_are_refused(left, told, command, corpus, monkeypatch):
    corpus("text.txt", words=100)
    for name, value in left.items():
        monkeypatch.setenv(name, value)
    code, _, error = command("train", "text.txt", "--tokenizer=char", "--init_from=scratch")
    assert code == 2 and error.startswith(told) and "unset " in error and error.count("\n") == 1
    assert not Path("out").exists()


@pytest.mark.parametrize(
    "left",
    [
        dict.fromkeys(("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"), ""),
        dict.fromkeys(("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "MPI_LOCALNRANKS"), ""),
        {"WORLD_SIZE": "", "RANK": "3", "MASTER_ADDR": "localhost"},
        {"PMI_RANK": "-1"},
        {"OMPI_COMM_WORLD_LOCAL_RANK": "x", "RANK": "y"},
        {"MASTER_PORT": "0"},
    ],
)
def test_variables_that_name_no_group_stop_no_single_process(left, tiny_run, command, monkeypatch):
    for name, value in left.items():
        monkeypatch.setenv(name, value)
    out = tiny_run("r1/", "--max_iters=1")
    code, said, _ = command("train", f"{out}recipe.yaml", f"--out_dir={out}", "--init_from=resume", "--max_iters=2")
    assert code == 0 and ", in r1/best\n" in said


@pytest.mark.parametrize(
    "left",
    [
        GROUP,
        {**GROUP, "RANK": "1", "LOCAL_RANK": "1"},
        {**GROUP, "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RUN_ID": "none"},
        {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1", "MASTER_ADDR": "localhost"},
        {"PMI_SIZE": "3", "PMI_RANK": "0", "MASTER_ADDR": "localhost"},
    ],
)
def test_other_ranks_that_never_come_are_not_awaited_for_ever(left, monkeypatch):
    """Variables of another job: the process ends with a line, whichever rank it takes itself for."""
    for name, value in {**left, "MASTER_PORT": str(free_port())}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(process_group, "SECONDS", 0.5)
    began = time.monotonic()
    with pytest.raises(UsageError) as refused:
        devices.start(Recipe(dataset="x", device="cpu"))
    told = str(refused.value)
    assert time.monotonic() - began < 10 and refused.value.alone and "\n" not in told
    assert "processes came within 0.5 s; if another job left them: unset " in told
    assert set(left) - {"TORCHELASTIC_USE_AGENT_STORE", "TORCHELASTIC_RUN_ID"} <= set(re.findall("[A-Z_]+", told))


def test_a_port_that_is_taken_is_named(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        for name, value in {**GROUP, "MASTER_PORT": str(taken.getsockname()[1])}.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(UsageError, match="MASTER_PORT=.* in the environment is in use by another program; if"):
            devices.start(Recipe(dataset="x", device="cpu"))


def test_an_evaluation_reads_the_variables_as_training_does(tiny_run, command, monkeypatch):
    tiny_run("out", "--max_iters=1")
    monkeypatch.setenv("WORLD_SIZE", "two")
    code, _, error = command("eval", "--out_dir=out", "--device=cpu")
    assert code == 2 and error.startswith("WORLD_SIZE=two in the environment is not") and error.count("\n") == 1
    monkeypatch.setenv("WORLD_SIZE", "")
    assert command("eval", "--out_dir=out", "--device=cpu")[0] == 0


def two_ranks(arguments, world_size, *of_rank):
    """Two ended processes of Python and what they wrote. The names are those of variables of the launcher."""
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), world_size: "2"}
    env = {**os.environ, **group, "PYTHONPATH": str(Path(finetune.__file__).parents[1])}
    ranks = [
        subprocess.Popen(
            [sys.executable, *arguments],
            env={**env, **dict.fromkeys(of_rank, rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    return ranks, [process.communicate(timeout=200) for process in ranks]


@pytest.mark.heavy
def test_mpirun_can_start_an_evaluation(tiny_run):
    """As Open MPI numbers its processes."""
    tiny_run("out", "--max_iters=1")
    command = ["-m", "finetune", "eval", "--out_dir=out", "--device=cpu"]
    ranks, told = two_ranks(command, "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK")
    assert [process.returncode for process in ranks] == [0, 0], told
    assert ", 2 processes on cpu " in told[0][0] and not told[1][0]


SCRIPT = """
import atexit, json, sys
import torch
import finetune

atexit.register(lambda: print(torch.distributed.is_initialized()))
for out_dir in ("one", "two"):
    finetune.train(**json.loads(sys.argv[1]) | {"out_dir": out_dir})
finetune.evaluate("two", device="cpu")
print(torch.distributed.is_initialized())
"""


@pytest.mark.heavy
def test_a_group_serves_all_runs_of_a_process_and_ends_with_it(tiny):
    """Two ranks of gloo; what is registered first to be done at exit is done last."""
    Path("script.py").write_text(SCRIPT)
    usual = asdict(Recipe())
    recipe = asdict(tiny(gradient_accumulation_steps=2, max_iters=2, num_samples=0))
    recipe = json.dumps({name: value for name, value in recipe.items() if value != usual[name]})
    ranks, told = two_ranks(["script.py", recipe], "WORLD_SIZE", "RANK", "LOCAL_RANK")
    assert [process.returncode for process in ranks] == [0, 0], "".join(error for _, error in told)
    assert [out.splitlines()[-2:] for out, _ in told] == [["True", "False"]] * 2
