"""Recipes and flags: typed by the dataclass, every problem reported at once, lengths that follow each other."""

import dataclasses
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from finetune.common.errors import UsageError
from finetune.config import recipe_file
from finetune.config.cli import parse
from finetune.config.options import find_problems
from finetune.config.recipe import Recipe
from finetune.config.schedule import schedule

RECIPES = sorted(
    path for path in (Path(__file__).parents[1] / "recipes").rglob("*.yaml") if path.parent.name != "accelerate"
)


def read(text, *flags):
    Path("r.yaml").write_text(text)
    return parse(Recipe, ["r.yaml", *flags], "")[0]


def problems(text, *flags):
    with pytest.raises(UsageError) as error:
        read(text, *flags)
    return str(error.value).splitlines()


@pytest.mark.parametrize(
    "spelling", ["1e-5", "1E-5", "1.0e-5", "0.00001", "10e-6", "'1e-5'", '"1e-5"', ".1e-4", "+1e-5", "1e-05"]
)
def test_numbers_are_numbers_however_they_are_spelled(spelling):
    assert read(f"dataset: x\nlearning_rate: {spelling}\n").learning_rate == 1e-5
    assert read("dataset: x\n", f"--learning_rate={spelling.strip(chr(34)).strip(chr(39))}").learning_rate == 1e-5


def test_scalars_are_typed_by_the_dataclass():
    got = read("dataset: no\nmax_iters: 5e3\ndecay_lr: no\nwandb_run_name: 12\nepochs: 3\nmin_lr: null\nstart: 'a=b'\n")
    assert (got.dataset, got.max_iters, got.decay_lr, got.wandb_run_name, got.epochs, got.min_lr) == (
        "no",
        5000,
        False,
        "12",
        3.0,
        None,
    )
    assert isinstance(got.max_iters, int) and isinstance(got.epochs, float)


def test_the_last_mention_wins_and_a_value_may_hold_an_equals_sign():
    got = read("dataset: x\nseed: 1\n", "--seed=2", "--seed=3", "--start=a=b=c")
    assert (got.seed, got.start) == (3, "a=b=c")


def test_nanogpts_spelling_of_booleans_works():
    assert read("dataset: x\n", "--wandb_log=True", "--compile=False", "--decay_lr=False").compile == "false"


def test_all_problems_are_reported_at_once_with_place_and_nearest_key():
    lines = problems(
        "dataset: x\nlearning_rat: 3e-5\nmax_iters: ten\nseed: 1\nseed: 2\n", "--bach_size=3", "--seed", "--n_layer=2.5"
    )
    assert "r.yaml:5: key 'seed' is given twice, first in line 4" in lines
    assert "r.yaml:2: unknown key 'learning_rat'. Did you mean 'learning_rate'?" in lines
    assert "r.yaml:3: max_iters: expected a whole number, got 'ten'" in lines
    assert "unknown flag --bach_size. Did you mean '--batch_size'?" in lines
    assert "--n_layer: expected a whole number, got '2.5'" in lines
    assert "--seed: has no value; write --seed=INT" in lines
    assert len(lines) == 6


@pytest.mark.parametrize(
    "line",
    [
        "max_iters: 5.5",
        "max_iters: yes",
        "decay_lr: maybe",
        "decay_lr: 2",
        "learning_rate: fast",
        "learning_rate: nan",
        "learning_rate: inf",
        "seed:",
        "dtype: float64",
        "compile: often",
        "batch_size: [1, 2]",
        "batch_size: {a: 1}",
        "batch_size: 12:30:00",
        "dataset: !!python/name:os.system",
        "dataset: !x y",
        "? [a]\n: b",
        "dropout: 1.5",
        "batch_size: 0",
        "beta2: 1",
        "epochs: -1",
        "n_layer: 3",
        "min_lr: 1",
        "- a",
        "a: b: c",
        "'unclosed",
        "dataset: &a x\nout_dir: *b",
        "n_embd: 100\ninit_from: scratch",
        "temperature: -1",
        "top_k: -1",
        "val_fraction: 0.9",
        "eval_interval: 0",
        "dataset: ../x",
        "out_dir: a/../../b",
        "init_from: ..",
    ],
)
def test_each_bad_line_is_one_problem_that_names_its_file(line):
    lines = problems(
        ("" if line.startswith("dataset") or line.startswith(("-", "'")) else "dataset: x\n") + line + "\n"
    )
    assert len(lines) == 1 and lines[0].startswith("r.yaml"), lines


def test_a_yaml_bomb_is_one_short_line():
    lines = ["a: &a [x,x,x,x,x,x,x,x,x]"] + [
        f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]" for i in range(8)
    ]
    began = time.process_time()
    lines = problems("\n".join(lines))
    assert time.process_time() - began < 1 and len(lines) == 9
    assert "KB, which is no recipe" in problems("#" * 300_000)[0]


@pytest.mark.parametrize(
    "values, message",
    [
        ({"n_layer": 2, "init_from": "gpt2"}, "scratch only"),
        ({"decay_lr": False, "min_lr": 1e-6}, "nothing for min_lr"),
        ({"sample_interval": 5}, "no effect without num_samples"),
        ({"dataset": ""}, "python_docs, which needs no download"),
    ],
)
def test_contradictions_are_reported(values, message):
    found = list(find_problems(Recipe(**{"dataset": "x"} | values)))
    assert len(found) == 1 and message in found[0][1]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_recipe_is_read_and_says_how_to_run_it(path):
    parse(Recipe, [str(path)], "")
    first = path.read_text().splitlines()[0]
    assert first.startswith(f"# accelerate launch -m finetune.train recipes/{path.relative_to(RECIPES[0].parent)}")


def test_there_are_recipes():
    assert {"quickstart", "shakespeare_char", "small", "medium", "large", "xl"} <= {path.stem for path in RECIPES}


@pytest.mark.parametrize(
    "name, batch, model",
    [("small", 8, "gpt2"), ("medium", 4, "gpt2-medium"), ("large", 2, "gpt2-large"), ("xl", 1, "gpt2-xl")],
)
def test_the_size_recipes_have_their_documented_values(name, batch, model):
    got = parse(Recipe, [str(RECIPES[0].parent / f"{name}.yaml")], "")[0]
    assert (got.init_from, got.batch_size, got.gradient_accumulation_steps) == (model, batch, 8)
    assert (got.learning_rate, got.warmup_iters, got.max_iters) == (3e-5, 100, 5000)
    assert schedule(got, 1_000_000).min_lr == pytest.approx(3e-6)
    assert schedule(got, 295).length == -(-5 * 295 // (batch * 8))  # tiny Shakespeare ends after five passes


def test_lengths_follow_the_real_length_of_the_run():
    long = schedule(Recipe(dataset="x", max_iters=10000), 10**6)
    assert (long.length, long.lr_decay_iters, long.warmup_iters, long.eval_interval) == (10000, 10000, 100, 250)
    short = schedule(Recipe(dataset="x", epochs=2, batch_size=2, gradient_accumulation_steps=5, warmup_iters=100), 101)
    assert (short.length, short.lr_decay_iters, short.warmup_iters, short.eval_interval) == (21, 21, 2, 2)
    given = schedule(
        Recipe(
            dataset="x",
            max_iters=100,
            warmup_iters=50,
            lr_decay_iters=80,
            min_lr=1e-6,
            eval_interval=33,
            save_interval=7,
        ),
        10,
    )
    assert (given.warmup_iters, given.lr_decay_iters, given.min_lr, given.eval_interval, given.save_interval) == (
        50,
        80,
        1e-6,
        33,
        7,
    )


@pytest.mark.parametrize("changes", [{}, {"lora_rank": 4, "init_from": "gpt2"}, {"max_iters": 5}, {"batch_size": 1}])
@pytest.mark.parametrize("evaluated", [1, 100, 3000, 10**6])
def test_evaluations_take_at_most_a_tenth_of_the_time_or_are_ten(changes, evaluated):
    """Counted in forward passes: a row of training is three of them, two where the weights are frozen."""
    recipe = Recipe(dataset="x", **{"max_iters": 2000, "init_from": "scratch", **changes})
    plan, usual = schedule(recipe, 10**6, evaluated), schedule(recipe, 10**6)
    evaluations = len({*range(0, plan.length, plan.eval_interval), plan.length})
    training = plan.length * recipe.blocks_per_update * (2 if recipe.lora_rank else 3)
    assert evaluations > min(10, plan.length)
    if plan.eval_interval != max(1, plan.length // 10):
        assert evaluations * evaluated <= (training + evaluations * evaluated) / 10
    assert usual.eval_interval <= plan.eval_interval <= plan.length and plan.save_interval == usual.save_interval
    # and no fewer than that allows
    assert plan.eval_interval == usual.eval_interval or 9 * (evaluations + 2) * evaluated > training / 1.5
    given = schedule(dataclasses.replace(recipe, eval_interval=3), 10**6, evaluated)
    assert (given.eval_interval, given.save_interval) == (3, 3)


@pytest.mark.parametrize("length", range(1, 200))
def test_a_run_with_a_large_validation_split_has_ten_evaluations_after_the_first(length):
    plan = schedule(Recipe(dataset="x", max_iters=length, patience=5), 10**6, 10**6)
    assert len({*range(0, length, plan.eval_interval), length}) > min(10, length)


@pytest.mark.parametrize("name, rows, updates", [("small", 450, 36), ("xl_lora", 200, 125)])
def test_a_recipe_with_as_much_to_validate_as_to_train_still_finds_its_best_model(name, rows, updates):
    plan = schedule(parse(Recipe, [str(RECIPES[0].parent / f"{name}.yaml")], "")[0], rows, rows)
    assert plan.length == updates and plan.length // plan.eval_interval >= 10


def test_the_learning_rate_is_nanogpts(monkeypatch):
    import math

    from finetune.config.schedule import learning_rate

    recipe = Recipe(dataset="x", max_iters=50, learning_rate=1e-3, warmup_iters=5)
    plan = schedule(recipe, 10**6)
    for it in range(55):
        if it < 5:
            expected = 1e-3 * (it + 1) / 6
        elif it > 50:
            expected = 1e-4
        else:
            expected = 1e-4 + 0.5 * (1 + math.cos(math.pi * (it - 5) / 45)) * 9e-4
        assert learning_rate(it, recipe, plan) == pytest.approx(expected)
    constant = Recipe(dataset="x", max_iters=50, decay_lr=False, warmup_iters=0)
    assert {learning_rate(it, constant, schedule(constant, 10**6)) for it in range(60)} == {3e-5}


def test_a_dumped_recipe_is_the_same_recipe():
    recipe = Recipe(dataset="a: b # c", start="\"\n'", init_from="scratch", n_layer=2, epochs=1.5, wandb_log=True)
    Path("r.yaml").write_text(recipe_file.dump(recipe, {"min_lr": 1e-9}))
    assert parse(Recipe, ["r.yaml"], "")[0] == recipe
    assert "min_lr: null  # 1e-09 in this run" in Path("r.yaml").read_text()


def test_a_path_above_the_working_directory_is_for_the_command_line():
    recipe = read("", "--dataset=../x", "--out_dir=a/../../b")
    assert (recipe.dataset, recipe.out_dir) == ("../x", "a/../../b")
    again = read(recipe_file.dump(recipe, {}))  # the resolved recipe names the same places in full
    assert Path(again.dataset) == Path("../x").resolve() and Path(again.out_dir) == Path("a/../../b").resolve()


def test_every_key_says_what_changing_it_on_resume_means():
    for field in dataclasses.fields(Recipe):
        assert field.metadata["resume"] in ("identity", "schedule", "free"), field.name
        assert field.metadata["help"], field.name


@pytest.mark.parametrize("verb", ["prepare", "plan", "train", "sample", "export", "__main__"])
def test_help_answers_at_once(verb):
    before = os.times()
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", f"finetune.{verb}", "--help"],
        capture_output=True,
        text=True,
        env=os.environ,
    )
    after = os.times()
    assert after.children_user + after.children_system - before.children_user - before.children_system < 1.0
    assert done.returncode == 0 and "usage:" in done.stdout
    assert "torch" not in done.stderr and "transformers" not in done.stderr


def test_batch_size_auto_keeps_the_blocks_of_an_update(tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("dataset: d\nbatch_size: 4\ngradient_accumulation_steps: 6\n")
    auto, _ = parse(Recipe, [str(recipe), "--batch_size=auto"], "")
    assert (auto.batch_size, auto.blocks_per_update) == ("auto", 24)
    back, _ = parse(Recipe, [str(recipe), "--batch_size=auto", "--batch_size=2"], "")
    assert (back.batch_size, back.gradient_accumulation_steps) == (2, 6)
    recipe.write_text("dataset: d\nbatch_size: auto\n")
    alone, _ = parse(Recipe, [str(recipe)], "")
    assert (alone.batch_size, alone.blocks_per_update) == ("auto", Recipe().blocks_per_update)
    recipe.write_text("dataset: d\nbatch_size: auto\ngradient_accumulation_steps: 5\n")
    assert parse(Recipe, [str(recipe)], "")[0].blocks_per_update == 5
    assert parse(Recipe, [str(recipe), "--batch_size=auto"], "")[0].blocks_per_update == 5
    flags, _ = parse(Recipe, ["--dataset=d", "--gradient_accumulation_steps=2", "--batch_size=auto"], "")
    assert flags.blocks_per_update == 2 * Recipe().batch_size


def test_batch_size_auto_keeps_the_blocks_of_an_evaluation():
    before, _ = parse(Recipe, ["--dataset=d", "--batch_size=4", "--eval_iters=3"], "")
    auto, _ = parse(Recipe, ["--dataset=d", "--batch_size=4", "--eval_iters=3", "--batch_size=auto"], "")
    assert auto.max_eval_rows == before.max_eval_rows == 12 and auto.blocks_per_update == before.blocks_per_update


@pytest.mark.parametrize("auto", [True, False])
def test_a_recipe_written_when_auto_was_a_key_of_its_own_is_the_same_run(tmp_path, auto):
    lines = f"dataset: d\nbatch_size: 4\ngradient_accumulation_steps: 6\nauto_batch_size: {str(auto).lower()}\n"
    (tmp_path / "r.yaml").write_text(lines)
    recipe, _ = parse(Recipe, [str(tmp_path / "r.yaml")], "")
    assert recipe.batch_size == ("auto" if auto else 4) and recipe.blocks_per_update == 24


def test_batch_size_auto_survives_the_written_recipe(tmp_path):
    auto, _ = parse(Recipe, ["--dataset=d", "--batch_size=4", "--batch_size=auto"], "")
    (tmp_path / "r.yaml").write_text(recipe_file.dump(auto, {}))
    assert parse(Recipe, [str(tmp_path / "r.yaml")], "")[0] == auto


def test_a_recipe_that_cannot_be_read_is_not_meant_in_place_of_itself(command):
    Path("mine.yaml").symlink_to("mine.yaml")
    why = "mine.yaml: cannot be read: Too many levels of symbolic links"
    assert command("train", "mine.yaml") == (2, "", f"{why}\n")
    Path("mind.yaml").write_text("seed: 1\n")
    assert command("train", "mine.yaml") == (2, "", f"{why}. Did you mean mind.yaml?\n")
