"""What belongs to the user is not touched: files beside those of a run, of prepared data and of an export, and what
links point to."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from finetune.common import files
from finetune.common.errors import UsageError
from finetune.common.lock import lock
from finetune.config import run_directory


def contents(directory):
    return {
        str(path.relative_to(directory)): path.read_bytes() for path in Path(directory).rglob("*") if path.is_file()
    }


def refused(command, *arguments, words=()):
    code, _, error = command(*arguments)
    assert code == 2 and error.count("\n") == 1, error
    for word in words:
        assert word in error
    return error


def test_resume_keeps_what_lies_beside_and_in_its_states(tiny_run):
    out = Path(tiny_run("out", "--eval_interval=5"))
    shutil.copytree(out / "last" / "step-00000010", out / "last" / "step-00000010.bak")
    for name in ("last/step-notes/thesis.txt", "last/step-keep/a.txt", "last/step-00000005/mine.txt", "best/NOTES.txt"):
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text(name)
    backup = contents(out / "last" / "step-00000010.bak")
    tiny_run("out", "--eval_interval=5", "--max_iters=30", "--init_from=resume")
    for name in ("last/step-notes/thesis.txt", "last/step-keep/a.txt", "last/step-00000005/mine.txt", "best/NOTES.txt"):
        assert (out / name).read_text() == name
    assert contents(out / "last" / "step-00000010.bak") == backup
    assert list((out / "last" / "step-00000005").iterdir()) == [out / "last" / "step-00000005" / "mine.txt"]
    assert json.loads((out / "best" / "finetune.json").read_text())["step"] > 10
    tiny_run("out", "--overwrite", "--max_iters=2")
    assert (out / "best" / "NOTES.txt").exists() and (out / "last" / "step-notes" / "thesis.txt").exists()


def test_overwrite_takes_no_directory_for_its_own_by_its_name(tiny_run):
    for name in ("export", "iter_notes", "iter_000005"):
        place = Path("out", name)
        place.mkdir(parents=True)
        (place / "d.txt").write_text("mine")
        (place / "manifest.json").write_text('{"name": "my app", "files": ["d.txt"]}')
    tiny_run("out", "--overwrite=true", "--max_iters=2")
    tiny_run("out", "--overwrite=true", "--max_iters=2")
    assert all(Path("out", name, "d.txt").exists() for name in ("export", "iter_notes", "iter_000005"))


def test_temporary_names_of_others_stay(tmp_path):
    names = [".tmp-work-2023", ".tmp-mine-backup-2019", ".tmp-best-2019", ".old-best", ".tmp-best-old", ".tmp-mine-7"]
    for name in names:
        (tmp_path / name).mkdir()
    for target in ("mine", "*", "best"):
        files.write_directory(tmp_path / target, lambda work: (work / "a").write_text("b"))
        files.write_directory(tmp_path / target, lambda work: (work / "a").write_text("c"))
    files.sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {*names, "mine", "*", "best"}


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path):
    script = """
import os, signal
from finetune.common import files
def fill(work):
    (work / "half").write_text("x")
    os.kill(os.getpid(), signal.SIGKILL)
files.write_directory("best", fill)
"""
    subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    )
    assert list((tmp_path / files.WORK).rglob("half"))
    files.write_directory(tmp_path / "other", lambda work: None)
    assert (tmp_path / files.WORK).exists()  # another target's leftovers may be at work
    files.write_directory(tmp_path / "best", lambda work: None)
    assert {path.name for path in tmp_path.iterdir()} == {"best", "other"}


@pytest.mark.parametrize("name", ["recipe.yaml", "report.html", "share.png", "loss.png", "trackers.json"])
def test_files_that_no_run_wrote_are_not_replaced(command, corpus, name):
    Path("mine").mkdir()
    Path("mine", name).write_text("# my notes\n")
    flags = ("--init_from=scratch", f"--dataset={corpus()}", "--tokenizer=char", "--out_dir=mine", "--max_iters=1")
    refused(command, "train", *flags, words=["out_dir mine", name])
    if name == "recipe.yaml":
        refused(command, "train", *flags, "--overwrite=true", words=["mv mine/recipe.yaml mine.yaml"])
    assert contents("mine") == {name: b"# my notes\n"}


def test_overwrite_is_no_word_of_a_recipe(command, corpus):
    Path("r.yaml").write_text(f"dataset: {corpus()}\noverwrite: true\n")
    refused(command, "train", "r.yaml", words=["r.yaml:2", "--overwrite=true"])


@pytest.mark.parametrize("name", [".finetune-tmp", "last/.finetune-tmp", "metrics.jsonl", "best"])
def test_nothing_is_written_through_a_link(command, tiny_run, tmp_path, name):
    tiny_run("out", "--max_iters=2")
    precious = tmp_path / "precious"
    shutil.copytree("out/best", precious) if name != "metrics.jsonl" else precious.write_text("mine\n")
    before = contents(precious) if precious.is_dir() else precious.read_bytes()
    place = Path("out", name)
    shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)
    place.symlink_to(precious)
    code, _, error = command("train", "out/recipe.yaml", "--init_from=resume", "--max_iters=4")
    assert code == 2 and f"its {name} is a link" in error and error.count("\n") == 1, error
    assert (contents(precious) if precious.is_dir() else precious.read_bytes()) == before


@pytest.mark.parametrize("name", ["loss.png", "recipe.yaml", "report.html", "share.png", "trackers.json"])
def test_a_link_is_replaced_and_what_it_points_to_stays(tiny_run, tmp_path, name):
    tiny_run("out", "--max_iters=2")
    precious = tmp_path / "precious"
    precious.write_text("seed: 1337\n")
    Path("out", name).unlink(missing_ok=True)
    Path("out", name).symlink_to(precious)
    tiny_run("out", "--init_from=resume", "--max_iters=4")
    assert precious.read_text() == "seed: 1337\n"


def test_prepare_writes_into_no_model_and_over_no_bins_of_others(command, corpus, tiny_run):
    text = corpus()
    tiny_run("out", "--max_iters=2", text=text)
    before = contents("out/best")
    refused(command, "prepare", text, "--tokenizer=char", "--out_dir=out/best", words=["is the directory of a model"])
    assert contents("out/best") == before
    Path("nano").mkdir()
    Path("nano/train.bin").write_bytes(bytes(100))
    refused(command, "prepare", text, "--tokenizer=char", "--out_dir=nano", words=["train.bin", "--overwrite=true"])
    assert contents("nano") == {"train.bin": bytes(100)}
    assert command("prepare", text, "--tokenizer=char", "--out_dir=nano", "--overwrite=true", "--doctor=false")[0] == 0
    assert command("prepare", text, "--tokenizer=char", "--out_dir=nano", "--doctor=false")[0] == 0


def test_two_preparations_of_one_directory(command, corpus):
    text = corpus()
    with lock("data/mine"):
        refused(command, "prepare", text, "--tokenizer=char", "--out_dir=data/mine", words=["is in use by process"])
    assert command("prepare", text, "--tokenizer=char", "--out_dir=data/mine", "--doctor=false")[0] == 0
    assert not Path("data/mine/.lock").exists()
    refused(command, "prepare", "none.txt", "--out_dir=deep/er/data")
    assert not Path("deep").exists()


def test_a_lock_that_is_a_link_is_refused(tmp_path):
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".lock").symlink_to(tmp_path / "precious")
    with pytest.raises(UsageError, match="cannot be written"), lock(tmp_path / "out"):
        pass
    assert (tmp_path / "precious").read_text() == "mine"


def test_a_copy_of_a_state_is_no_state(tmp_path):
    """`auto` would resume from it, and find nothing."""
    shutil.copytree(Path(__file__).parent / "states" / "format-1" / "last", tmp_path / "last" / "step-00000010.bak")
    files.write_json(tmp_path / "last" / "step-00000010.bak" / files.MANIFEST, {"format": 1, "files": {}})
    assert not run_directory.has_state(tmp_path)
