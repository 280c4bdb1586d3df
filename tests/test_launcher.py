"""`finetune train` starts accelerate launch by itself: on how many devices, with which file, and how it ends."""

import os
import re
import signal
import sys
import time
from pathlib import Path

import forked
import pytest

from finetune.common.errors import UsageError
from finetune.config.recipe import Recipe
from finetune.runtime import launcher

ROOT = Path(__file__).parents[1]
TINY = (
    "--dataset=t.txt --tokenizer=char --init_from=scratch --n_layer=1 --n_head=1 --n_embd=8 --block_size=8"
    " --batch_size=1 --gradient_accumulation_steps=2 --compile=false".split()
)


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in (*launcher.LAUNCHERS, *launcher.SIZES):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def gpus(monkeypatch):
    return lambda count: monkeypatch.setattr(launcher, "count_gpus", lambda: count)


@pytest.mark.parametrize(
    "here, given, expected",
    [
        (0, {}, None),
        (1, {}, None),
        (2, {}, ("multi_gpu", 2)),
        (8, {}, ("multi_gpu", 8)),
        (6, {}, ("multi_gpu", 4)),  # 8 micro-batches
        (4, {"num_processes": 1}, None),
        (4, {"num_processes": 2}, ("multi_gpu", 2)),
        (0, {"num_processes": 4}, ("cpu", 4)),
        (4, {"device": "cpu"}, None),
        (4, {"device": "cpu", "num_processes": 2}, ("cpu", 2)),
        (4, {"launch": "fsdp2"}, ("fsdp2", 4)),
        (4, {"launch": "fsdp2", "num_processes": 2}, ("fsdp2", 2)),
        (1, {"launch": "fsdp2"}, ("fsdp2", 1)),
        (0, {"launch": "cpu"}, ("cpu", 2)),
        (0, {"launch": "one_gpu"}, None),
        (0, {"launch": "mine.yaml"}, ("mine", 4)),
        (8, {"launch": "mine.yaml"}, ("mine", 4)),  # a file of the user's own is followed
        (6, {"eval_only": True}, ("multi_gpu", 6)),
    ],
)
def test_what_is_started(gpus, here, given, expected):
    Path("mine.yaml").write_text("distributed_type: MULTI_GPU\nnum_processes: 4\n")
    gpus(here)
    num_processes, launch = given.pop("num_processes", None), given.pop("launch", None)
    chosen = launcher.choose(Recipe(dataset="d", **given), num_processes, launch)
    assert (chosen and (chosen.config.stem, chosen.processes)) == expected


@pytest.mark.parametrize(
    "here, given, told",
    [
        (2, {"num_processes": 4}, "4 processes need as many GPUs; here are 2: --num_processes=2"),
        (0, {"num_processes": 3}, "8 cannot be shared among 3 processes; 2 processes can"),
        (4, {"launch": "fsdp"}, "fsdp: no such launch file and no such file. Did you mean fsdp2?"),
        (4, {"launch": "none.yaml"}, "none.yaml: cannot be read: No such file or directory"),
        (4, {"launch": "text.yaml"}, "text.yaml: is no configuration of accelerate launch"),
        (4, {"launch": "broken.yaml"}, "broken.yaml: not YAML"),
        (4, {"launch": "fsdp2_multi_node"}, "is for 2 machines; run on each: accelerate launch --config_file="),
    ],
)
def test_what_cannot_be_started_is_told(gpus, here, given, told):
    Path("text.yaml").write_text("a: b\n")
    Path("broken.yaml").write_text("a: [\n")
    gpus(here)
    with pytest.raises(UsageError) as error:
        launcher.choose(Recipe(dataset="d"), given.get("num_processes"), given.get("launch"))
    assert told in str(error.value)


def test_one_of_several_gpus_is_never_used_in_silence(gpus, capsys):
    gpus(2)
    assert launcher.choose(Recipe(dataset="d", gradient_accumulation_steps=1), None, None) is None
    out = capsys.readouterr().out
    assert out.startswith("one of 2 GPUs: ") and "--batch_size=4 --gradient_accumulation_steps=2" in out


@pytest.mark.parametrize("name, value", [("RANK", "0"), ("ACCELERATE_MIXED_PRECISION", "no"), ("WORLD_SIZE", "2")])
def test_nothing_is_started_behind_another_launcher(gpus, monkeypatch, name, value):
    gpus(4)
    monkeypatch.setenv(name, value)
    assert launcher.choose(Recipe(dataset="d"), None, None) is None
    with pytest.raises(UsageError, match="--num_processes: a launcher has started this process already"):
        launcher.choose(Recipe(dataset="d"), 2, None)


def start(*flags, **options):
    Path("t.txt").write_text("the quick brown fox jumps over the lazy dog. " * 40)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return forked.Process("finetune.train", *TINY, *flags, env=environment, **options)


@pytest.mark.heavy
def test_two_processes_on_a_cpu():
    process = start("--num-processes", "2", "--max_iters=2")
    out, error = process.communicate(timeout=200)
    assert process.returncode == 0, error
    assert out.startswith("accelerate launch starts 2 CPU processes\n") and "2 processes on cpu" in out
    assert Path("out/best/model.safetensors").exists() and out.count("step 2: ") == 1


@pytest.mark.heavy
def test_what_only_the_processes_see_is_told_in_one_line(tiny_run):
    tiny_run("out")
    process = start("--launch=cpu", "--max_iters=2")
    out, error = process.communicate(timeout=200)
    assert process.returncode == 2
    assert re.fullmatch(r"out_dir out: holds a run already .*\n", error), error


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="sends signals to a process group")
@pytest.mark.parametrize(
    "number, whole_group",
    [(signal.SIGINT, True), (signal.SIGINT, False), (signal.SIGTERM, False), (signal.SIGHUP, True)],
)
def test_a_signal_ends_all_processes_with_a_state_and_its_exit_code(number, whole_group):
    process = start("--num_processes=2", "--max_iters=1000000", "--eval_interval=1000000", start_new_session=True)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and "iter 20:" not in (process.stdout.readline()):
        pass
    (os.killpg if whole_group else os.kill)(process.pid, number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 128 + number, error
    assert error.startswith(f"stopped by {number.name}") and "Traceback" not in error and "elastic" not in error
    assert list(Path("out/last").glob("step-*"))
    with pytest.raises(ProcessLookupError):  # nobody of the group is left
        os.killpg(process.pid, 0)


def test_a_launch_file_with_a_word_for_a_number(command, corpus):
    Path("mine.yaml").write_text("distributed_type: MULTI_CPU\nnum_processes: two\n")
    code, _, error = command("train", "--init_from=scratch", f"--dataset={corpus()}", "--launch=mine.yaml")
    assert code == 2 and "mine.yaml: num_processes: expected a whole number, got 'two'" in error
