"""A run is where its recipe.yaml lies: copied, moved, ended early, of an older release, or the source of the next."""

import json
import shutil
from pathlib import Path

import pytest

from finetune.common.errors import UsageError
from finetune.config.cli import parse
from finetune.config.recipe import Recipe
from finetune.runs import state_format

STATES = Path(__file__).parent / "states"
LONGER = ("--max_iters=12", "--lr_decay_iters=12")


def events(out_dir, name):
    lines = map(json.loads, Path(out_dir, "metrics.jsonl").read_text().splitlines())
    return [event for event in lines if event["event"] == name]


def content(directory):
    return {path: path.read_bytes() for path in Path(directory).rglob("*") if path.is_file() and path.name != ".lock"}


@pytest.fixture
def run(tiny_run):
    return tiny_run("r1", "--max_iters=4", "--eval_interval=2")


def test_a_copied_run_asks_which_of_the_two_is_meant(run, command):
    shutil.copytree("r1", "r2")
    before = content("r1"), content("r2")
    for flags in (["--init_from=resume"], ["--overwrite=true"], ["--init_from=auto"], ["--max_iters=9"]):
        code, _, err = command("train", "r2/recipe.yaml", *flags)
        assert code == 2 and len(err.splitlines()) == 1, err
        assert "--out_dir=r2 " in err and "--out_dir=r1 " in err and "r2/recipe.yaml:" in err
        assert before == (content("r1"), content("r2"))
    code, _, err = command("train", "r2/recipe.yaml", "--init_from=resume", "--out_dir=r2", *LONGER)
    assert code == 0, err
    assert before[0] == content("r1") and events("r2", "end")[-1]["step"] == 12


def test_a_moved_run_and_another_working_directory(run, command, monkeypatch):
    Path("r1").rename("moved")
    assert "--out_dir=moved " in command("train", "moved/recipe.yaml", "--init_from=resume")[2]
    Path("elsewhere").mkdir()
    Path("moved").rename("elsewhere/r1")
    code, _, err = command("train", "elsewhere/r1/recipe.yaml", "--init_from=resume")
    assert code == 2 and "--out_dir=elsewhere/r1 " in err
    Path("link").symlink_to("elsewhere")
    monkeypatch.chdir("elsewhere")
    parse(Recipe, ["../link/r1/recipe.yaml", "--init_from=resume"], "")  # the same place by another way


def test_resume_needs_no_recipe(run, command):
    shutil.copytree("r1", "r2")
    code, out, err = command("train", "--init_from=resume", "--out_dir=r2", *LONGER)
    assert code == 0 and "resuming r2 at iteration 4" in out, err
    recipe, _ = parse(Recipe, ["--init_from=resume", "--out_dir=r2", "--learning_rate=0.5"], "")
    assert (recipe.n_embd, recipe.learning_rate, recipe.out_dir) == (32, 0.5, "r2")


def test_the_directory_of_a_run_says_how_to_go_on(run, command):
    shutil.copytree("r1", "r 2")
    for place, told in (
        ("r1", "finetune train r1/recipe.yaml --init_from=resume"),
        ("r 2", "finetune train 'r 2/recipe.yaml' --init_from=resume '--out_dir=r 2'"),
    ):
        code, _, err = command("train", place)
        assert code == 2 and err.strip().endswith(told)


def test_auto_starts_then_resumes(tiny_run, command):
    flags = ["--init_from=auto", "--out_dir=out"]
    tiny_run("first", "--max_iters=2")
    recipe = Path("first/recipe.yaml").read_text()
    Path("mine.yaml").write_text(recipe.replace('"first"', '"out"'))
    code, out, err = command("train", "mine.yaml", *flags)
    assert code == 0 and "initializing a new model from scratch" in out, err
    code, out, err = command("train", "mine.yaml", *flags, "--max_iters=4")
    assert code == 0 and "resuming out at iteration 2" in out, err
    assert command("train", "mine.yaml", *flags, "--overwrite=true", "--max_iters=6")[1].count("resuming out") == 1


@pytest.mark.parametrize("below", [[], ["--init_from=scratch"], ["recipe.yaml"]])
def test_auto_is_what_stands_below_it(below, monkeypatch, tmp_path):
    Path("recipe.yaml").write_text("init_from: gpt2-medium\n")
    monkeypatch.setenv("FINETUNE_INIT_FROM", "auto")
    recipe, _ = parse(Recipe, ["--dataset=d", *[arg for arg in below if arg.endswith("yaml")]], "")
    assert recipe.init_from == ("gpt2-medium" if below == ["recipe.yaml"] else "gpt2")
    recipe, _ = parse(Recipe, ["--dataset=d", *below, "--init_from=auto"], "")
    assert (
        recipe.init_from == {"": "gpt2", "--init_from=scratch": "scratch", "recipe.yaml": "gpt2-medium"}["".join(below)]
    )


def killed_before_its_first_state(out_dir, keep_best):
    shutil.rmtree(f"{out_dir}/last")
    lines = Path(out_dir, "metrics.jsonl").read_text().splitlines()
    kept = [
        line for line in lines if json.loads(line)["event"] in ("start", "eval", "best") and '"step": 2' not in line
    ]
    Path(out_dir, "metrics.jsonl").write_text("\n".join(kept) + "\n")
    if not keep_best:
        shutil.rmtree(f"{out_dir}/best")


@pytest.mark.parametrize("keep_best", [True, False])
def test_a_run_that_was_killed_before_its_first_state_starts_anew(tiny_run, command, keep_best):
    tiny_run("out", "--max_iters=2", "--eval_interval=2", "--learning_rate=0")  # best/ is of step 0
    wanted = content("out/last")
    killed_before_its_first_state("out", keep_best)
    code, _, err = command("train", "out/recipe.yaml", "--init_from=resume")
    assert code == 2 and "--init_from=auto" in err
    if keep_best:
        code, _, err = command("train", "out/recipe.yaml")
        assert code == 2 and "finetune train out/recipe.yaml --init_from=auto" in err
    code, out, err = command("train", "out/recipe.yaml", *(["--init_from=auto"] if keep_best else []))
    assert code == 0 and "ended before it saved a state; it starts anew" in out, err
    assert wanted.keys() == content("out/last").keys()
    assert [event["step"] for event in events("out", "eval")] == [0, 2]


def test_auto_never_replaces_a_run_that_is_worth_something(run, command):
    shutil.rmtree("r1/last")  # a finished run, whose states were removed
    before = content("r1")
    code, _, err = command("train", "r1/recipe.yaml", "--init_from=auto")
    assert code == 2 and "holds a run already" in err and content("r1") == before
    shutil.copytree("r1/best", "r3/best")
    code, _, err = command("train", "r1/recipe.yaml", "--init_from=auto", "--out_dir=r3")
    assert code == 2 and "holds a run already" in err


def test_a_run_does_not_remove_what_it_starts_from(run, command):
    Path("link").symlink_to("r1")
    Path("best").symlink_to("r1/best")
    before = content("r1")
    start = ["--dataset=corpus.txt", "--overwrite=true", "--max_iters=1"]
    for source, out_dir in (("r1", "r1"), ("r1/best", "r1"), ("best", "r1"), ("link", "r1"), ("r1", "link")):
        code, _, err = command("train", f"--init_from={source}", f"--out_dir={out_dir}", *start)
        assert code == 2 and "from which this run starts" in err, err
        assert content("r1") == before
    code, _, err = command("train", "--init_from=gpt2", "--tokenizer=r1/best", "--out_dir=r1", *start)
    assert code == 2 and "tokenizer=r1/best" in err and content("r1") == before


def resume_format(number, command, out_dir="out"):
    shutil.copytree(STATES / f"format-{number}", ".", dirs_exist_ok=True)
    Path(out_dir).mkdir()
    shutil.move("last", out_dir)
    shutil.move("recipe.yaml", out_dir)
    return command("train", f"{out_dir}/recipe.yaml", "--init_from=resume")


def test_there_is_a_state_of_every_format():
    """The newest has the keys of today: who changes the content changes the number and adds a state."""
    assert sorted(path.name for path in STATES.iterdir()) == [
        f"format-{n + 1}" for n in range(state_format.STATE_FORMAT)
    ]


@pytest.mark.parametrize("number", range(1, state_format.STATE_FORMAT + 1))
def test_a_state_of_an_older_release_goes_on(number, command):
    code, _, err = resume_format(number, command)
    assert code == 0, err
    losses = [event["loss"] for event in events("out", "iter")]
    assert losses[-1:] == pytest.approx([2.765320062637329], rel=1e-5)  # of the run that was not interrupted
    old = json.loads((STATES / f"format-{number}/last/step-00000002/state.json").read_text())
    new = json.loads(Path("out/last/step-00000004/state.json").read_text())
    if number == state_format.STATE_FORMAT:
        assert old.keys() == new.keys()
        assert old["watch"].keys() == new["watch"].keys()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"format": 99}, "a newer finetune wrote it"),
        ({"format": None}, "no release wrote it"),
        ({"recipe": None}, "recipe is missing"),
        ({"config": {"n_layer": 1, "rope": True}}, "rope"),
        ({"watch": {"recent": []}}, "high is missing"),
        ({"evaluations": [{"step": 1}]}, "train_loss is missing"),
        ({"iteration": "2"}, "iteration is of another type"),
    ],
)
def test_a_state_that_cannot_be_read_is_refused_in_a_line(change, told):
    state = json.loads((STATES / "format-1/last/step-00000002/state.json").read_text())
    for key, value in change.items():
        state[key] = value
        if value is None:
            del state[key]
    with pytest.raises(UsageError, match=told) as error:
        state_format.read_state(state, "out")
    assert "\n" not in str(error.value)


def test_keys_that_states_lacked_at_first_have_their_defaults():
    state = json.loads((STATES / "format-1/last/step-00000002/state.json").read_text())
    whole = state_format.read_state(state, "out")
    for key in ("eval_rows", "lr_scale", "rollbacks", "scaler"):
        del state[key]
    del state["recipe"]["lora_rank"]
    assert state_format.read_state(state, "out") == whole
