"""A state or a best/ that came from elsewhere, sealed again by whoever changed it: what no run writes is refused in one
line that names the file, and nothing is lost."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from fuzz import sign
from safetensors.torch import load_file, save_file

from finetune.runs import checkpoints

STEP = "out/last/step-00000002"
FC, AVERAGE, SQUARE = "h.0.mlp.c_fc.weight", "exp_avg.h.0.mlp.c_fc.weight", "exp_avg_sq.h.0.mlp.c_fc.weight"
STRANGE = "x\x1b[2J\ny"


@pytest.fixture(autouse=True)
def run():
    source = Path(__file__).parent / "states" / "format-1"
    shutil.copytree(source / "d", "d")
    shutil.copytree(source / "last", "out/last")
    shutil.copy(source / "recipe.yaml", "out")


def replace(name, change):
    """Replace a tensor by what `change` makes of it, or add it."""
    return lambda tensors: tensors.update({name: change(tensors.get(name)).contiguous()})


WEIGHTS = {
    "missing": (lambda tensors: tensors.pop(FC), f"1 missing, such as {FC}"),
    "nothing": (lambda tensors: tensors.clear(), "16 missing"),
    "unknown": (replace(STRANGE, lambda _: torch.zeros(3)), r"1 unknown, such as x\x1b[2J\ny"),
    "another name": (lambda tensors: tensors.update({FC + "s": tensors.pop(FC)}), "1 missing, such as"),
    "another shape": (replace(FC, lambda _: torch.zeros(3)), f"{FC} has shape (3,)"),
    "one number": (replace(FC, lambda _: torch.zeros(1)), f"{FC} has shape (1,)"),
    "transposed": (replace(FC, lambda tensor: tensor.T), f"{FC} has shape (8, 32)"),
    "fewer tokens": (replace("wte.weight", lambda tensor: tensor[:3]), "wte.weight has shape (3, 8)"),
    "more tokens": (replace("wte.weight", lambda tensor: tensor.repeat(2, 1)), "wte.weight has shape"),
    **{
        str(dtype): (replace(FC, lambda tensor, dtype=dtype: tensor.to(dtype)), f"{FC} is {str(dtype)[6:]}, which no")
        for dtype in (torch.int64, torch.int8, torch.bool, torch.complex64, torch.float64, torch.float16)
    },
    "float8": (replace(FC, lambda tensor: tensor.to(torch.float8_e4m3fn)), f"{FC} is float8_e4m3fn"),
    "bfloat16": (replace(FC, lambda tensor: tensor.bfloat16()), f"{FC} is bfloat16"),
    "NaN": (replace(FC, lambda tensor: tensor * float("nan")), f"weights that are NaN or infinite: {FC} has 256"),
    "infinite": (replace(FC, lambda tensor: tensor.fill_(-float("inf"))), "NaN or infinite"),
}
MOMENTS = {
    "missing": (lambda tensors: tensors.pop(AVERAGE), f"1 missing, such as {AVERAGE}"),
    "nothing": (lambda tensors: tensors.clear(), "tensors do not match a GPT-2 of 1 layers: 32 missing"),
    "no squares": (lambda tensors: [tensors.pop(name) for name in [*tensors] if "avg_sq" in name], "16 missing"),
    "unknown": (replace(STRANGE, lambda _: torch.zeros(3)), r"1 unknown, such as x\x1b[2J\ny"),
    "another shape": (replace(AVERAGE, lambda _: torch.zeros(3)), f"{AVERAGE} has shape (3,)"),
    "one number": (replace(SQUARE, lambda _: torch.zeros(1)), f"{SQUARE} has shape (1,)"),
    "fewer tokens": (replace("exp_avg.wte.weight", lambda tensor: tensor[:3]), "has shape (3, 8)"),
    "int64": (replace(AVERAGE, lambda tensor: tensor.long()), f"{AVERAGE} is int64"),
    "complex64": (replace(AVERAGE, lambda tensor: tensor + 1j), f"{AVERAGE} is complex64"),
    "float16": (replace(AVERAGE, lambda tensor: tensor.half()), f"{AVERAGE} is float16"),
    "NaN": (replace(AVERAGE, lambda tensor: tensor * float("nan")), "moments that are NaN or infinite"),
    "infinite": (replace(SQUARE, lambda tensor: tensor + float("inf")), f"NaN or infinite: {SQUARE} has 256"),
    "below zero": (replace(SQUARE, lambda tensor: -1 - tensor), f"{SQUARE} holds negative numbers"),
}


def contents():
    return {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file() and path.name != ".lock"}


def resume(command):
    return command("train", "out/recipe.yaml", "--init_from=resume")


@pytest.mark.parametrize(
    "name, case", [("model", case) for case in WEIGHTS] + [("optimizer", case) for case in MOMENTS]
)
def test_tensors_that_no_run_writes_are_refused(name, case, command):
    change, told = (WEIGHTS if name == "model" else MOMENTS)[case]
    path = Path(STEP, f"{name}.safetensors")
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    sign(path)
    before = contents()
    code, _, error = resume(command)
    assert code == 2 and error.startswith(f"{path}: ") and told in error, error
    assert error.count("\n") == 1 and error.strip().isprintable() and len(error) < 400
    assert contents() == before


@pytest.mark.parametrize("name", checkpoints.PARTS)
def test_a_state_whose_manifest_lacks_a_file_is_damaged(name, command):
    manifest = json.loads(Path(STEP, "manifest.json").read_text())
    del manifest["files"][name]
    Path(STEP, "manifest.json").write_text(json.dumps(manifest))
    Path(STEP, name).unlink()
    before = contents()
    code, _, error = resume(command)
    assert code == 2 and f"{STEP}: its manifest.json does not list {name}\n" in error, error
    assert contents() == before


def test_a_state_under_the_name_of_another_is_refused(command):
    Path(STEP).rename("out/last/step-00000003")
    before = contents()
    code, _, error = resume(command)
    assert code == 2 and "out/last/step-00000003: it holds the state of step 2\n" in error, error
    assert contents() == before


@pytest.mark.parametrize(
    "facts",
    [
        {"val_loss": "1.5"},
        {"val_loss": None},
        {"val_loss": [1]},
        {"val_loss": True},
        {"val_loss": float("nan")},
        {"step": "2"},
        {"step": -1},
        {"step": 1.5},
        {"step": {}},
    ],
    ids=str,
)
def test_a_loss_of_best_that_is_no_number_is_not_believed(facts):
    best = Path("out/best")
    best.mkdir()
    Path(best, "manifest.json").write_text('{"format": 1, "files": {}}')
    for known in ({}, facts):
        Path(best, "finetune.json").write_text(json.dumps({"val_loss": 1.5, "step": 2} | known))
        sign(best / "finetune.json")
        assert checkpoints.read_best("out") == ({} if known else {"val_loss": 1.5, "step": 2})
