"""A run is where its recipe.yaml lies: copied, moved, ended early, of an older release, or the source of the next."""

import copy
import hashlib
import json
import math
import random
import shutil
from pathlib import Path

import pytest
import torch

from finetune.common.errors import UsageError
from finetune.config.cli import parse
from finetune.config.recipe import Recipe
from finetune.config.recipe_file import edited
from finetune.data.dataset import facts_of, scan
from finetune.runs import state_format
from finetune.runs.datasets import find_datasets
from finetune.runtime.device import best_dtype

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


@pytest.mark.parametrize("name", ["mine.yaml", "../link.yaml", "../child.yaml", "recipe.yaml"])
def test_a_recipe_in_a_copied_run_is_that_runs_under_any_name(run, name):
    shutil.copytree("r1", "r2")
    shutil.copy("r2/recipe.yaml", "r2/mine.yaml")
    Path("link.yaml").symlink_to("r2/recipe.yaml")
    Path("child.yaml").write_text("base: r2/recipe.yaml\n")
    path = str(Path("r2") / name if "/" not in name else Path(name).name)
    for gone in ([], ["r2/recipe.yaml"] if name == "mine.yaml" else []):
        for file in gone:
            Path(file).unlink()
        with pytest.raises(UsageError, match="lies in the run r2; give one: --out_dir=r2 .* --out_dir=r1 the other"):
            parse(Recipe, [path, "--init_from=resume"], "")
    assert parse(Recipe, [path, "--init_from=resume", "--out_dir=r2"], "")[0].out_dir == "r2"
    Path("r2/other.yaml").write_text("out_dir: r3\ndataset: d\n")  # of another run, and only kept there
    Path("r2/recipe.yaml").write_text("out_dir: r2\n")
    assert parse(Recipe, ["r2/other.yaml"], "")[0].out_dir == "r3"


def test_resume_without_a_directory_means_the_default_one(run):
    with pytest.raises(UsageError, match="there is no recipe.yaml in out; give the out_dir of a run"):
        parse(Recipe, ["--init_from=resume"], "")
    Path("r1").rename("out")
    for way in ("resume", "auto"):
        recipe, _ = parse(Recipe, [f"--init_from={way}"], "")
        assert (recipe.init_from, recipe.out_dir, recipe.n_embd) == ("resume", "out", 32)


def test_what_its_owner_wrote_into_recipe_yaml_stays(run, command):
    path = Path("r1/recipe.yaml")
    lines = path.read_text().splitlines()
    edited = ["# mine", "", "learning_rate: 1e-2  # found by a sweep", *lines[::-1]]
    edited = [line.replace("max_iters: 4", "max_iters: 6  # longer") for line in edited]
    edited.remove("learning_rate: 0.01")
    path.write_text("\n".join(edited) + "\n")
    assert command("train", "r1/recipe.yaml", "--init_from=resume")[0] == 0
    kept = path.read_text().splitlines()
    assert [line.partition("#")[0] for line in kept] == [line.partition("#")[0] for line in edited]
    assert {"# mine", "learning_rate: 1e-2  # found by a sweep", "max_iters: 6  # longer"} <= set(kept)
    assert command("train", "r1/recipe.yaml", "--init_from=resume", "--max_iters=7")[0] == 0
    now = [
        line.replace("max_iters: 6  # longer", "max_iters: 7").replace("# 6 in this", "# 7 in this") for line in kept
    ]
    assert path.read_text().splitlines() == now
    before = path.read_text()
    assert command("train", "r1/recipe.yaml", "--init_from=resume", "--max_iters=7")[0] == 0
    assert path.read_text() == before


@pytest.mark.parametrize(
    "before", ["", "seed: [1\n", "- a\n", "x\n", "a: 1\na: 2\nseed: |\n  9\n", "base: small\n", "[" * 9999, "\x00"]
)
def test_what_is_no_recipe_of_a_run_is_replaced_as_a_whole(before):
    Path("recipe.yaml").write_text(before)
    assert edited(Path("recipe.yaml"), "seed: 1\nstart: 'a # b'\n") == "seed: 1\nstart: 'a # b'\n"


def test_a_run_may_be_called_as_the_home_of_nobody(tiny_run, command):
    tiny_run("~nobody-of-this-name", "--max_iters=2")
    for verb in ("sample", "eval", "report"):
        code, _, error = command(verb, "--out_dir=~nobody-of-this-name")
        assert code == 0, (verb, error)


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
    shutil.rmtree("r1/last")
    assert command("train", "r1")[2].strip().endswith("a run that has saved no state; its recipe is r1/recipe.yaml")
    shutil.copytree("r1/best", "model")
    shutil.copy("r1/metrics.jsonl", "model")  # as `finetune eval` leaves it
    assert command("train", "model")[2].strip().endswith("--init_from=model starts from its model")
    assert (
        "--init_from=r1/best starts from it"
        in command("train", "r1/best", "--init_from=scratch", "--tokenizer=char")[2]
    )


@pytest.mark.parametrize(
    ("verb", "named"),
    [
        ("sample", "r1/recipe.yaml"),
        ("sample", "r1/best"),
        ("report", "r1/metrics.jsonl"),
        ("diagnose", "r1/recipe.yaml"),
        ("eval", "r1/report.html"),
    ],
)
def test_what_lies_in_a_run_means_the_run(run, command, verb, named):
    flags = ["--num_samples=1", "--max_new_tokens=1"] if verb == "sample" else []
    code, out, err = command(verb, named, *flags)
    assert code == 0 and "r1" in out, err


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
    assert (
        "init_from=auto" not in err
        and "init_from=auto" not in command("train", "--init_from=resume", "--out_dir=r1")[2]
    )
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
    code, _, err = command("train", "r1/recipe.yaml", "--dataset=corpus.txt,r1/best/README.md", "--overwrite=true")
    assert code == 2 and "dataset=r1/best/README.md" in err and content("r1") == before


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
    # of the run that was not interrupted, where dtype=auto was bfloat16
    error = 1e-5 if best_dtype("auto", torch.device("cpu")) == torch.bfloat16 else 1e-4
    assert losses[-1:] == pytest.approx([2.765320062637329], rel=error)
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
        ({"iteration": True}, "iteration is of another type"),
        ({"iteration": -1}, "iteration must be a whole number and not negative"),
        ({"iteration": 2.0}, "iteration is of another type"),
        ({"updates": 10**30}, "updates is of another type"),
        ({"evaluations": {}}, "evaluations is of another type"),
        ({"evaluations": [3]}, "evaluations is of another type"),
        ({"evaluations": [{"step": 0, "train_loss": math.nan, "val_loss": 1.0}]}, "train_loss is of another type"),
        ({"evaluations": [{"step": 0, "train_loss": 1.0, "val_loss": "1"}]}, "val_loss is of another type"),
        ({"watch": {"recent": [1.0, {}], "high": 0, "overflows": 0}}, "recent is of another type"),
        ({"watch": {"recent": [math.inf], "high": 0, "overflows": 0}}, "recent is of another type"),
        ({"watch": {"recent": [], "high": [], "overflows": 0}}, "high is of another type"),
        ({"lr_scale": "1e400"}, "lr_scale must be above 0"),
        ({"lr_scale": math.nan}, "lr_scale must be above 0"),
        ({"lr_scale": 2}, "lr_scale must be above 0 and at most 1"),
        ({"rollbacks": []}, "rollbacks must be a whole number"),
        ({"eval_rows": -3}, "eval_rows must be a whole number"),
        ({"scaler": {"scale": 1.0}}, "is missing"),
        ({"scaler": {"scale": "big"}}, "scale is of another type"),
        ({"init_from": []}, "init_from is of another type"),
        ({"identity": [[[]]]}, "identity is of another type"),
        ({"config": "gpt2"}, "config is of another type"),
        ({"config": {"n_layer": 1_000_000}}, "n_layer must be a whole number from 1 to 1,000"),
        ({"config": {"n_embd": "16"}}, "n_embd must be"),
        ({"config": {"eos_token_id": {"a": 1}}}, "eos_token_id is of another type"),
        ({"config": {"generation_config": "x"}}, "generation_config is of another type"),
        ({"config": {"new_tokens": 1e308}}, "new_tokens is of another type"),
        (
            {"recipe": {"gradient_accumulation_steps": 0}},
            "gradient_accumulation_steps in its recipe must be at least 1",
        ),
        ({"recipe": {"gradient_accumulation_steps": "8"}}, "gradient_accumulation_steps is of another type"),
        ({"recipe": {"batch_size": [8]}}, "batch_size is of another type"),
        ({"recipe": {"learning_rate": None}}, "learning_rate is of another type"),
        ({"recipe": {"eval_iters": {}}}, "eval_iters is of another type"),
        ({"recipe": {"chunked_loss": 3}}, "chunked_loss is of another type"),
        ({"recipe": {"out_dir": "a\x00b"}}, "out_dir in its recipe"),
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


def leaves(value, path=()):
    """The paths of all values inside a JSON value."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in pairs:
        yield (*path, key)
        yield from leaves(each, (*path, key))


STRANGE = [
    None,
    "x",
    "",
    -1,
    0,
    3,
    True,
    1e308,
    10**30,
    math.nan,
    [],
    {},
    [[1]],
    ["a"],
    {"a": [{}]},
    "a\x00b",
    "../../x",
]


def changed(whole, number, seed):
    """Copies of a JSON value, each with one strange value somewhere in it."""
    rng, places = random.Random(seed), list(leaves(whole))
    for _ in range(number):
        value, (*above, last) = copy.deepcopy(whole), rng.choice(places)
        part = value
        for key in above:
            part = part[key]
        part[last] = rng.choice(STRANGE)
        yield value


def test_a_state_with_any_strange_value_is_read_or_refused_in_a_line():
    whole = json.loads((STATES / "format-1/last/step-00000002/state.json").read_text())
    refused = 0
    for state in changed(whole, 300, seed=1):
        try:
            state_format.read_state(state, "out")
        except UsageError as error:
            assert str(error).startswith("out: its state cannot be resumed: ") and "\n" not in str(error)
            assert len(str(error)) < 300
            refused += 1
    assert 100 < refused < 300


def test_a_resumed_run_refuses_a_strange_state_that_is_sealed(command):
    shutil.copytree(STATES / "format-1", ".", dirs_exist_ok=True)
    place = Path("last/step-00000002")
    state, manifest = (json.loads((place / f"{name}.json").read_text()) for name in ("state", "manifest"))
    text = json.dumps({**state, "watch": {**state["watch"], "recent": [{}]}}).encode()
    manifest["files"]["state.json"] = {"bytes": len(text), "sha256": hashlib.sha256(text).hexdigest()}
    (place / "state.json").write_bytes(text)
    (place / "manifest.json").write_text(json.dumps(manifest))
    Path("out").mkdir()
    shutil.move("last", "out")
    shutil.move("recipe.yaml", "out")
    code, _, error = command("train", "out/recipe.yaml", "--init_from=resume")
    assert code == 2 and error == "out: its state cannot be resumed: recent is of another type in it\n"


def test_a_meta_json_with_any_strange_value_is_read_or_refused_in_a_line():
    shutil.copytree(STATES / "format-1/d", "d")
    whole = json.loads(Path("d/meta.json").read_text())
    for meta in changed(whole, 300, seed=2):
        Path("d/meta.json").write_text(json.dumps(meta))
        try:
            found = find_datasets(Recipe(dataset="d", init_from="scratch"), lambda: "char")
            for split in ("train", "val"):
                scan(found[0], split)
                found[0].document_ends(split)
            json.dumps(facts_of(found))
        except UsageError as error:
            assert "\n" not in str(error)


KILLED = {
    "between the recipe and its start": lambda line: None,
    "before the first byte of its start": lambda line: "",
    "in its start": lambda line: line[:-9],
    "after its start": lambda line: line + "\n",
}


@pytest.mark.parametrize("moment", KILLED)
def test_a_run_that_was_killed_as_it_began_is_begun_again_by_the_same_command(tiny_run, command, moment):
    tiny_run("whole")
    Path("out").mkdir()
    recipe, metrics = Path("whole/recipe.yaml").read_text(), Path("whole/metrics.jsonl").read_text().splitlines()
    Path("out/recipe.yaml").write_text("# mine\n" + recipe.replace("out_dir: whole", "out_dir: out"))
    if (left := KILLED[moment](metrics[0])) is not None:
        Path("out/metrics.jsonl").write_text(left)
    tiny_run("out", "--init_from=auto", text="corpus.txt")
    assert Path("out/recipe.yaml").read_text().startswith("# mine\n")
    assert Path("out/best/model.safetensors").read_bytes() == Path("whole/best/model.safetensors").read_bytes()


@pytest.mark.parametrize("content", ["nothing of ours", '{"event": "iter"}', '{"loss": 3}\n'])
def test_metrics_of_others_are_not_taken_for_a_beginning(tiny_run, command, content):
    tiny_run("whole")
    Path("out").mkdir()
    Path("out/metrics.jsonl").write_text(content)
    code, _, error = command("train", "whole/recipe.yaml", "--init_from=scratch", "--out_dir=out")
    assert code == 2 and "holds a run already (metrics.jsonl)" in error, error
    assert Path("out/metrics.jsonl").read_text() == content
