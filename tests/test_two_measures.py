"""Losses of two measures are never compared; paths with a comma and with ~."""

import json
import shutil
from pathlib import Path

import pytest

import finetune
from finetune.config.cli import parse
from finetune.config.paths import as_typed, expand_home, join_paths, split_paths
from finetune.config.recipe import Recipe
from finetune.prepare import Options as PrepareOptions
from finetune.sample import Options as SampleOptions


@pytest.fixture
def run(tiny_run):
    return tiny_run("out", "--max_iters=4", "--eval_interval=2", "--val_fraction=0.3")


def resume(command, *flags):
    return command("train", "out/recipe.yaml", "--init_from=resume", *flags)


def test_another_eval_iters_starts_best_and_patience_afresh(run, command):
    code, out, err = resume(
        command, "--eval_iters=1", "--max_iters=6", "--learning_rate=0", "--min_lr=0", "--patience=9"
    )
    assert code == 0 and "are not compared, so best/ and patience start afresh" in out, err
    lines = map(json.loads, Path("out/metrics.jsonl").read_text().splitlines())
    assert [event["step"] for event in lines if event["event"] == "eval"] == [4, 6]
    assert json.loads(Path("out/best/finetune.json").read_text())["step"] == 4


def test_the_same_blocks_are_the_same_measure(run, command):
    for flags in (["--eval_iters=9999"], ["--batch_size=2", "--gradient_accumulation_steps=4"]):
        code, out, err = resume(command, *flags)
        assert code == 0 and "not compared" not in out, err


@pytest.mark.parametrize("flag", ["--val_fraction=0.2", "--dataset=other.txt", "--dataset=d"])
def test_other_validation_data_are_refused(run, command, flag):
    Path("other.txt").write_text(Path("corpus.txt").read_text() + "more\n")
    prepared = next(path.parent for path in Path("data").glob("*/val.bin"))
    shutil.copytree(prepared, "d")
    content = Path("d/val.bin").read_bytes()
    Path("d/val.bin").write_bytes(content[:-2])
    Path("d/meta.json").unlink()
    before = Path("out/metrics.jsonl").read_bytes()
    code, _, err = resume(command, flag, "--max_iters=6")
    assert code == 2 and Path("out/metrics.jsonl").read_bytes() == before, err


def test_fewer_updates_than_were_made_says_what_was_made(run, command):
    code, out, _ = resume(command, "--max_iters=2", "--eval_interval=2")
    assert code == 0 and "it has made 4 updates, and 2 are asked for" in out


def test_resume_with_another_tokenizer_asks_for_the_data_of_the_run(run, command):
    """Not to prepare a text again, which would be other data too."""
    Path("other.txt").write_text("Ωμέγα und Äther\n" * 300)
    code, _, err = resume(command, "--dataset=other.txt")
    assert code == 2 and "cannot be resumed with other data" in err and "prepare" not in err
    assert "start another run with --init_from=out and another out_dir" in err


def test_a_baseline_that_is_the_run_itself_is_said(run, command):
    shutil.copytree("out/best", "copy")
    for same in ("out", "out/best", "copy"):
        code, out, err = command("eval", "--out_dir=out", f"--baseline={same}")
        assert code == 0 and "is the same model as" in out, err


def test_an_existing_path_with_a_comma_is_one_path(command):
    Path("a,b.txt").write_text("words of a text that are read\n" * 200)
    Path("c.txt").write_text("other words of one\n" * 200)
    Path("data/x,y").mkdir(parents=True)
    assert split_paths("a,b.txt") == ["a,b.txt"]
    assert split_paths("c.txt, a,b.txt,d, x,y") == ["c.txt", "a,b.txt", "d", "x,y"]
    assert split_paths("") == split_paths(None) == []
    assert split_paths("d,") == ["d", ""]
    assert split_paths("""c.txt, "no, such.txt",'my "own", text',x""") == [
        "c.txt",
        "no, such.txt",
        'my "own", text',
        "x",
    ]
    assert split_paths('"quoted"') == ["quoted"] and split_paths("it's,o'clock") == ["it's", "o'clock"]
    Path("'z'").touch()
    assert split_paths("'z','y'") == ["'z'", "y"]
    several = ["a,b.txt", "new, one", 'my "own", text', "x", "'new'", "'z'"]
    assert split_paths(join_paths(several)) == several
    assert expand_home('"~/no, such.txt",x') == f'"{Path.home()}/no, such.txt",x'
    shape = ["--n_layer=1", "--n_head=1", "--n_embd=8", "--block_size=8", "--max_iters=1", "--batch_size=1"]
    code, _, err = command("train", "a,b.txt", "--init_from=scratch", "--tokenizer=char", *shape)
    assert code == 0, err
    code, out, err = command("train", "out/recipe.yaml", "--init_from=resume", "--max_iters=2")
    assert code == 0 and command("diagnose", "--out_dir=out")[0] == 0, err
    assert parse(Recipe, ["--dataset=a,b.txt,c.txt", "--dataset_weights=1,2"], "")[0].dataset == "a,b.txt,c.txt"


@pytest.mark.parametrize("key", ["out_dir", "init_from", "tokenizer", "to"])
def test_a_path_with_a_comma_is_one_path_with_and_without_quotes(key):
    for typed in ("a,b", "'a,b'", '"a,b"'):
        assert as_typed(key, typed) == "a,b"
    assert as_typed(key, '"a","b"') == '"a","b"'
    Path("'a,b'").mkdir()
    assert as_typed(key, "'a,b'") == "'a,b'"  # there is one of that name


def test_a_run_whose_directory_has_a_comma_goes_on(tiny_run, command):
    tiny_run("o,1", "--max_iters=1")
    code, out, err = command("train", "o,1/recipe.yaml", "--init_from=resume", "--max_iters=2")
    assert code == 0 and "resuming o,1 at iteration 1" in out, err
    code, out, err = command("sample", "--init_from='o,1'", "--num_samples=1", "--max_new_tokens=1")
    assert code == 0, err


def test_home_is_expanded_in_python_too(tiny_run, tmp_path, monkeypatch):
    tiny_run("out", "--max_iters=1")
    monkeypatch.setenv("HOME", str(tmp_path))
    Path("start.txt").write_text("ab")
    assert finetune.Run.open("~/out").status == "finished" and finetune.Run("~/out").val_loss
    assert finetune.evaluate("~/out")["targets"]
    assert finetune.sample("~/out", start="FILE:~/start.txt", num_samples=1, max_new_tokens=1)[0].startswith("ab")
    finetune.GPT.from_pretrained("~/out").save_pretrained("~/saved")
    assert Path("saved/config.json").is_file() and not Path("~").exists()
    recipe, _ = parse(Recipe, ["--init_from=auto", "--out_dir=~/out"], "")
    assert recipe.init_from == "resume" and recipe.n_embd == 32


def test_home_is_expanded_everywhere(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    home = tmp_path / "home"
    home.mkdir()
    (home / "r.yaml").write_text("dataset: ~/d,~/e\nout_dir: '~/runs/one'\nbase: ~/b.yaml\n")
    (home / "b.yaml").write_text("init_from: ~/model\n")
    for given in (["--config=~/r.yaml"], ["~/r.yaml"]):
        recipe, _ = parse(Recipe, given, "")
        assert recipe.dataset == f"{home}/d,{home}/e" and recipe.out_dir == f"{home}/runs/one"
        assert recipe.init_from == f"{home}/model"
    monkeypatch.setenv("FINETUNE_OUT_DIR", "~/env")
    assert parse(Recipe, ["--dataset=~/d"], "")[0].out_dir == f"{home}/env"
    assert parse(PrepareOptions, ["~/t.txt", "--out_dir=~/d"], "")[0].sources == [f"{home}/t.txt"]
    options, _ = parse(SampleOptions, ["--out_dir=~/o", "--start=~/is text"], "")
    assert options.out_dir == f"{home}/o" and options.start == "~/is text"
    Path("~").mkdir()
    assert expand_home("~") == "~" and expand_home("a~b") == "a~b"
