"""Sharded checkpoints: the same tensors as in full files, in files that each rank writes."""

import dataclasses
import hashlib
import json
import os
import re
import shutil
from pathlib import Path

import forked
import pytest
import torch
from safetensors.torch import load_file, safe_open, save_file
from test_fsdp import events, finish, harness, is_sharded, job, logits, numbers

from finetune.common.errors import UsageError
from finetune.gpt import pretrained
from finetune.runs import checkpoints
from finetune.runtime import fsdp, shards
from finetune.training import trainer

ROOT = Path(__file__).parents[1]


def states(out_dir):
    return sorted(Path(out_dir, "last").glob("step-*"))


def joined(state):
    """{name: full tensor} of a state in shards, put together by the offsets in the files."""
    parts = {}
    for path in sorted(state.glob("shard-*.safetensors")):
        with safe_open(path, "pt") as file:
            places = json.loads(file.metadata()["DCP_SHARDING_INFO"])
            for name in file.keys():  # noqa: SIM118  it is no dict
                parts.setdefault(name, []).append((places[name]["saved_offsets"], file.get_tensor(name)))
    return {
        name: torch.cat([part for _, part in sorted(found, key=lambda one: one[0])]) for name, found in parts.items()
    }


def resumed(recipe, **values):
    return dataclasses.replace(recipe, init_from="resume", n_layer=None, n_head=None, n_embd=None, **values)


@pytest.mark.heavy
def test_shards_are_the_full_tensors_and_go_on_with_any_number_of_processes(tiny):
    """Written by 2 ranks and by 3, which have no equal parts; read by 3, by one process and by two with DDP."""
    shape = {"n_embd": 10, "dropout": 0.0, "gradient_accumulation_steps": 6, "eval_interval": 4}
    recipe = tiny(max_iters=4, lr_decay_iters=12, warmup_iters=2, sharded_checkpoints=True, **shape)
    trainer.train(dataclasses.replace(recipe, out_dir="whole", max_iters=12))
    full = dataclasses.replace(recipe, out_dir="full", sharded_checkpoints=False)
    finish(job(recipe), job(full))
    assert is_sharded("out") and [path.name for path in sorted(states("out")[-1].iterdir())] == [
        "manifest.json",
        "shard-00001-model-00001-of-00001.safetensors",
        "shard-00002-model-00001-of-00001.safetensors",
        "state.json",
    ]
    ours = joined(states("out")[-1])
    wanted = load_file(states("full")[-1] / "model.safetensors") | load_file(
        states("full")[-1] / "optimizer.safetensors"
    )
    assert ours.keys() == wanted.keys()
    for name, tensor in wanted.items():  # the embedding has rows of padding in the shards
        assert torch.equal(ours[name][: len(tensor)], tensor), name
    read = checkpoints.load_state("out")
    assert (read.weights | read.optimizer).keys() == wanted.keys()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in (read.weights | read.optimizer).items())
    finish(job(resumed(recipe, max_iters=6), world=3))
    assert len(list(states("out")[-1].glob("shard-*"))) == 3
    finish(
        job(resumed(recipe, max_iters=8), world=1, environment={}), job(resumed(recipe, max_iters=10), environment={})
    )
    assert (states("out")[-1] / "optimizer.safetensors").is_file() and not is_sharded("out")
    finish(job(resumed(recipe, max_iters=12)))
    assert [event["step"] for event in events("out", "resume")] == [4, 6, 8, 10]
    assert numbers("out")[0] == pytest.approx(numbers("whole")[0], abs=1e-5)
    assert torch.allclose(logits("out/best"), logits("whole/best"), rtol=0, atol=1e-4)


@pytest.mark.parametrize("kills", [pytest.param(3, marks=pytest.mark.heavy), pytest.param(100, marks=pytest.mark.slow)])
def test_no_acknowledged_state_in_shards_is_lost_by_kills(tiny, kills):
    recipe = tiny(max_iters=30, gradient_accumulation_steps=2, sharded_checkpoints=True)
    killed = dataclasses.replace(recipe, out_dir="killed")
    (_, found), error = harness(job(recipe), job(killed, kills=kills, seed=2, slowest=0.05))
    assert found["codes"] == [0, 0], error
    assert (found["lost"], found["broken"]) == (0, []) and found["acknowledged"] > 0
    assert numbers("killed") == numbers("out")
    ours, wanted = (checkpoints.load_state(name) for name in ("killed", "out"))
    for kind in ("weights", "optimizer"):
        assert all(torch.equal(tensor, getattr(ours, kind)[name]) for name, tensor in getattr(wanted, kind).items())


def test_a_nan_rolls_back_to_shards(tiny):
    recipe = tiny(max_iters=8, gradient_accumulation_steps=2, sharded_checkpoints=True)
    finish(job(recipe, nan={"rank": 1, "iteration": 5}))
    assert [event["step"] for event in events("out", "rollback")] == [5]
    assert checkpoints.load_state("out").state["iteration"] == 8


@pytest.mark.heavy
def test_a_disk_that_fails_one_rank_costs_no_state(tiny):
    """A rank may write 4 KB to a file and no more, after it has written a state."""
    recipe = tiny(max_iters=6, gradient_accumulation_steps=2, sharded_checkpoints=True)
    (outcome,), _ = harness(job(recipe, full={"rank": 1, "iteration": 3}))
    assert outcome["codes"] == [1, 1]  # as the last save of a run has to succeed
    failed = events("out", "save_failed")
    assert {event["step"] for event in failed} >= {4, 5} and all(
        "File too large" in event["problem"] for event in failed
    )
    assert checkpoints.load_state("out").state["iteration"] == 3
    assert not list(Path("out", "last").glob(".*/*"))  # and leaves nothing
    finish(job(resumed(recipe, max_iters=8)))
    assert checkpoints.load_state("out").state["iteration"] == 8


def test_a_rank_that_can_begin_no_state_costs_none(tiny):
    """Rank 0 makes the directory, and the others wait for it."""
    recipe = tiny(max_iters=8, gradient_accumulation_steps=2, sharded_checkpoints=True)
    finish(job(recipe, blocked={"rank": 0, "iteration": 3}))
    assert {event["step"] for event in events("out", "save_failed")} == {4, 5}
    assert checkpoints.load_state("out").state["iteration"] == 8


@pytest.mark.heavy
def test_training_goes_on_while_shards_are_written(tiny):
    recipe = tiny(max_iters=60, save_interval=10, eval_interval=60, gradient_accumulation_steps=2)
    finish(job(dataclasses.replace(recipe, sharded_checkpoints=True), slow={"rank": 1, "iteration": 0}))
    assert len(Path("written-beside").read_text().splitlines()) >= 5
    assert checkpoints.load_state("out").state["iteration"] == 60


@pytest.fixture
def state(tiny):
    """The newest of several states of two ranks."""
    finish(job(tiny(max_iters=4, gradient_accumulation_steps=2, sharded_checkpoints=True)))
    return states("out")[-1]


def test_damaged_shards_are_passed_over_and_crafted_ones_refused(state):
    kept, holed = (Path(shutil.copytree(state, name)) for name in ("kept", "holed"))
    names, lines = os.listdir(state), []
    (state / "shard-00002-model-00001-of-00001.safetensors").unlink()
    assert checkpoints.load_state("out", lines.append).state["iteration"] == 3
    assert re.search("step-00000004: .*shard-00002.* missing", lines[0])
    (holed / "shard-00001-model-00001-of-00001.safetensors").unlink()
    with pytest.raises(ValueError, match="some rows of .* are missing"):  # as if it were sealed
        shards.read(holed, os.listdir(holed))
    path = kept / "shard-00001-model-00001-of-00001.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="shards cannot be read"):
        shards.read(kept, names)


def test_tensors_of_the_user_beside_the_shards_are_not_read(state):
    tensors = shards.read(state, os.listdir(state))
    save_file({"wte.weight": torch.zeros(3, 3), "mine": torch.ones(1)}, state / "mine.safetensors")
    save_file(tensors, state / "shard-00003-model-00001-of-00001.safetensors")
    assert checkpoints.load_state("out").state["iteration"] == 4
    for name, tensor in checkpoints.load_state("out").weights.items():
        assert torch.equal(tensor, tensors[name][: len(tensor)])


def test_a_state_without_a_configuration_is_passed_over(state):
    content = {**json.loads((state / "state.json").read_text()), "config": None}
    manifest = json.loads((state / "manifest.json").read_text())
    text = json.dumps(content).encode()
    manifest["files"]["state.json"] = {"bytes": len(text), "sha256": hashlib.sha256(text).hexdigest()}
    (state / "state.json").write_bytes(text)
    (state / "manifest.json").write_text(json.dumps(manifest))
    lines = []
    assert checkpoints.load_state("out", lines.append).state["iteration"] == 3 and "no vocab_size" in lines[0]


@pytest.mark.parametrize(
    "error",
    [
        OSError(5, "Input/output error"),
        *(pytest.param(one, marks=pytest.mark.heavy) for one in (MemoryError(), KeyboardInterrupt())),
    ],
)
def test_what_is_no_fault_of_a_state_does_not_pass_it_over(state, error, monkeypatch):
    def read_data(reader, plan, planner):
        raise error

    monkeypatch.setattr("torch.distributed.checkpoint.HuggingFaceStorageReader.read_data", read_data)
    with pytest.raises(type(error)):
        checkpoints.load_state("out")


APART = """
import os, sys
from pathlib import Path
import torch
from torch.distributed.tensor import DTensor, Shard, init_device_mesh
from finetune.common.errors import UsageError
from finetune.runtime import shards

rank = int(os.environ["RANK"])
torch.distributed.init_process_group("gloo")
mesh, rows = init_device_mesh("cpu", (2,)), {"a": torch.ones(2, 3)}
tensors = {"a": DTensor.from_local(rows["a"], mesh, [Shard(0)])}
os.chdir(f"machine{rank}")
Path("last").mkdir()
if rank == 0:
    Path("last/new").mkdir()
try:
    shards.write(Path("last/new") if rank == 0 else None, tensors, rows, shards.new_group())
except UsageError as error:
    Path("told").write_text(str(error))
"""


@pytest.mark.heavy
def test_machines_that_share_no_disk_are_refused_before_they_write():
    for rank in range(2):
        Path(f"machine{rank}").mkdir()
    Path("apart.py").write_text(APART)
    launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node=2", "apart.py"]
    done = forked.run(*launcher, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=200)
    assert done.returncode == 0, done.stderr
    assert all("share the disk" in Path(f"machine{rank}/told").read_text() for rank in range(2))
    assert not list(Path().rglob("*.safetensors")) and not list(Path("machine1/last").iterdir())


def test_a_run_that_is_not_sharded_says_so_and_saves_full_tensors(tiny, capsys):
    trainer.train(tiny(max_iters=2, sharded_checkpoints=True))
    assert "sharded_checkpoints: FSDP2 does not shard this run" in capsys.readouterr().out
    assert (states("out")[-1] / "model.safetensors").is_file()
    with pytest.raises(UsageError, match="a checkpoint to resume from; the best model of its run is --init_from=out"):
        pretrained.find("out/last/step-00000002")


def test_an_old_torch_is_refused(monkeypatch):
    shards.check(True, fsdp.FSDP(), print)
    monkeypatch.delattr("torch.distributed.checkpoint.HuggingFaceStorageWriter")
    with pytest.raises(UsageError, match="2.9 has it"):
        shards.check(True, fsdp.FSDP(), print)
