"""What people type: flags, recipes and their bases, the environment and nanoGPT's configs, and their mistakes."""

import dataclasses
import importlib
import math
import shlex
from pathlib import Path
from typing import Literal

import pytest

from finetune.common.errors import UsageError
from finetune.config import schedule
from finetune.config.cli import parse
from finetune.config.options import option
from finetune.config.recipe import Recipe
from finetune.config.recipe_file import comments_by_key
from finetune.evaluation import options as evaluation_options

diagnose, export, plan, prepare, report, sample = (
    importlib.import_module(f"finetune.{name}")  # an attribute of finetune is the function of this name
    for name in ("diagnose", "export", "plan", "prepare", "report", "sample")
)

NANOGPT = {
    "config/finetune_shakespeare.py": """import time

out_dir = 'out-shakespeare'
eval_interval = 5
wandb_log = False # feel free to turn on
wandb_run_name = 'ft-' + str(time.time())

dataset = 'shakespeare'
init_from = 'gpt2-xl' # this is the largest GPT-2 model

always_save_checkpoint = False
batch_size = 1
gradient_accumulation_steps = 2 * 16
max_iters = 20
learning_rate = 3e-5
decay_lr = False
""",
    "config/train_char.py": "n_layer = 6\nn_head = 6\nn_embd = 384\nblock_size = 256\nbackend = 'gloo'\n"
    "compile = False\n",
    "config/bad.py": "import os\nseed = os.system('touch ran')\nbias = False\nfor i in range(3):\n    seed = i\n",
    "config/broken.py": "seed = = 3\n",
    "config/decays.py": "learning_rate = 3e-5\nwarmup_iters = 10\nlr_decay_iters = 100\nmin_lr = 3e-6\n",
    "config/tiny.py": "init_from = 'some/model'\n",
    "config/low.py": "learning_rate = 5e-5\n",
}
FILES = {
    "mine.yaml": "dataset: mine.txt\nlearning_rate: 1e-4  # found by a sweep\n",
    "rate.yaml": "learning_rate: 2e-4\n",
    "child.yaml": "base: sub/parent.yaml\nseed: 5\n",
    "sub/mine.yml": "seed: 2\n",
    "sub/parent.yaml": "base: [small, ../rate.yaml]\nseed: 4\nmax_iters: 40  # short\n",
    "bf16.yaml": "bf16: true\nfp16: false\nresume: yes\n",
    "two.yaml": "seed: 1\n---\nseed: 2\n",
    "list.yaml": "dataset: [a, b]\nseed: [1]\n",
    "round.yaml": "base: trip.yaml\n",
    "trip.yaml": "base: round.yaml\n",
    "self.yaml": "base: self.yaml\n",
    "nobase.yaml": "base: smal\n",
    "typo.yaml": "base: wrong.yaml\nsede: 1\n",
    "wrong.yaml": "learning_rat: 1\n",
    "pushes.yaml": "base: pushing.yaml\n",
    "pushing.yaml": "push: true\npush_to_hub: a/b\n",
    "above.yaml": "base: reaching.yaml\n",
    "reaching.yaml": "dataset: ../../secret\n",
    "text.txt": "x",
    "my text.txt": "x",
    "code": "x",
    "prepared/train.bin": "x",
    "data/inside/train.bin": "x",
    "run/recipe.yaml": "dataset: x\n",
    **NANOGPT,
}
D = "--dataset=d "


@dataclasses.dataclass
class Other:
    """Options of a command without recipes or runs."""

    sources: list[str] = option([], "texts")
    out_dir: str = option("", "where to")
    quiet: bool = option(False, "a switch")
    mode: Literal["auto", "true", "false"] = option("auto", "a switch with a third position")
    known: bool | None = option(None, "a switch that may be open")


@pytest.fixture(autouse=True)
def files():
    for name, text in FILES.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text)


UNDERSTOOD = {
    # one flag
    D + "--learning_rate=1e-4": {"learning_rate": 1e-4},
    D + "--learning_rate 1e-4": {"learning_rate": 1e-4},
    D + "--learning-rate=1e-4": {"learning_rate": 1e-4},
    D + "--learning-rate 1e-4": {"learning_rate": 1e-4},
    D + "--Learning_Rate 1e-4": {"learning_rate": 1e-4},
    D + "learning_rate=1e-4": {"learning_rate": 1e-4},
    "--dataset d --seed 3": {"dataset": "d", "seed": 3},
    "--dataset 'my text.txt'": {"dataset": "my text.txt"},
    D + "--start 'Once upon a time'": {"start": "Once upon a time"},
    D + "--start '- an item'": {"start": "- an item"},
    D + "--start=--seed": {"start": "--seed"},
    D + "--start=a=b": {"start": "a=b"},
    D + "--start -1": {"start": "-1"},
    D + "--patience=": {"patience": None},
    D + "--patience none": {"patience": None},
    D + "--max-iters 5e3": {"max_iters": 5000},
    D + "--seed=9_007_199_254_740_993": {"seed": 2**53 + 1},
    D + "--batch_size auto": {"batch_size": "auto"},
    D + "--batch-size AUTO": {"batch_size": "auto"},
    D + "--seed 1 --seed=2 --seed 3": {"seed": 3},
    # switches
    D + "--wandb_log": {"wandb_log": True},
    D + "--wandb-log": {"wandb_log": True},
    D + "--wandb_log true": {"wandb_log": True},
    D + "--wandb_log False": {"wandb_log": False},
    D + "--no-wandb_log": {"wandb_log": False},
    D + "--no_wandb_log": {"wandb_log": False},
    D + "--no-wandb-log": {"wandb_log": False},
    D + "--no-decay_lr": {"decay_lr": False},
    D + "--wandb_log --no-wandb_log": {"wandb_log": False},
    D + "--wandb_log --seed 3": {"wandb_log": True, "seed": 3},
    D + "--wandb_log small": {"wandb_log": True, "epochs": 5},
    D + "--compile": {"compile": "true"},
    D + "--no-compile": {"compile": "false"},
    D + "--compile auto": {"compile": "auto"},
    # recipes
    "mine.yaml": {"learning_rate": 1e-4, "dataset": "mine.txt"},
    "small": {"init_from": "gpt2", "patience": 5},
    "small --dataset=text.txt": {"dataset": "text.txt", "patience": 5},
    "--dataset=text.txt small": {"dataset": "text.txt", "patience": 5},
    "--config small": {"patience": 5},
    "--config=mine.yaml": {"learning_rate": 1e-4},
    "--config_file mine.yaml": {"learning_rate": 1e-4},
    "--config-file=small": {"patience": 5},
    "small mine.yaml": {"patience": 5, "learning_rate": 1e-4},
    "mine.yaml small": {"patience": 5, "learning_rate": 3e-5},
    "--config small --config mine.yaml rate.yaml": {"patience": 5, "learning_rate": 2e-4, "dataset": "mine.txt"},
    "--seed=7 small mine.yaml": {"seed": 7, "learning_rate": 1e-4},
    "child.yaml": {"seed": 5, "max_iters": 40, "learning_rate": 2e-4, "patience": 5},
    "-- mine.yaml": {"learning_rate": 1e-4},
    # a dataset without its flag
    "text.txt": {"dataset": "text.txt"},
    "small text.txt": {"dataset": "text.txt", "patience": 5},
    "small 'my text.txt' --seed 3": {"dataset": "my text.txt", "seed": 3},
    "prepared": {"dataset": "prepared"},
    "inside": {"dataset": "inside"},
    "--dataset=code --seed=1": {"dataset": "code"},
    # nanoGPT's configs
    "config/finetune_shakespeare.py": {
        "init_from": "gpt2-xl",
        "gradient_accumulation_steps": 32,
        "max_iters": 20,
        "warmup_iters": 0,
        "decay_lr": False,
        "block_size": None,
        "wandb_run_name": None,
    },
    "config/train_char.py --dataset=d": {
        "init_from": "scratch",
        "n_layer": 6,
        "block_size": 256,
        "learning_rate": 6e-4,
        "min_lr": 6e-5,
        "batch_size": 12,
        "compile": "false",
    },
    "config/tiny.py": {"init_from": "some/model", "block_size": None},
    "config/train_char.py --init_from=auto": {"init_from": "scratch"},
    "config/low.py --min_lr=none": {"learning_rate": 5e-5, "min_lr": None},
}
REFUSED = {
    D + "--learning_rat 1e-4": "unknown flag --learning_rat. Did you mean '--learning_rate'?",
    D + "--learning-rat=1e-4": "unknown flag --learning-rat. Did you mean '--learning_rate'?",
    D + "-o out": "unknown flag -o. Did you mean '--out_dir'?",
    D + "-b 8": "unknown flag -b. Did you mean '--batch_size'?",
    D + "-learning_rate 3": "unknown flag -learning_rate. Did you mean '--learning_rate'?",
    D + "---seed=3": "unknown flag ---seed. Did you mean '--seed'?",
    D + "\u2014seed=3": "\u2014seed=3: begins with a long dash, not with --; type the flag again",
    D + "\u2013\u2013seed 3": "\u2013\u2013seed: begins with a long dash, not with --; type the flag again",
    D + "--seed": "--seed: has no value; write --seed=INT",
    D + "--seed --wandb_log": "--seed: has no value; write --seed=INT",
    D + "--seed -- small": "--seed: has no value; write --seed=INT",
    D + "--config": "--config: has no value; write --config=RECIPE",
    D + "--seed = 3": "--seed: write --seed=VALUE, without a space before =",
    D + "--seed =3": "--seed: write --seed=VALUE, without a space before =",
    D + "--seed=": "--seed: expected a whole number, got ''",
    D + "--seed -1": "--seed: must be at least 0 and below 9223372036854775808, got -1",
    D + "--wandb_log=": "--wandb_log: expected true or false, got ''",
    D + "--wandb_log=maybe": "--wandb_log: expected true or false, got 'maybe'",
    D + "--no-wandb_log=true": "--no-wandb_log: takes no value; write --wandb_log=true or --wandb_log=false",
    D + "--no-seed": "unknown flag --no-seed. Did you mean '--seed'?",
    D + "--no-wandb_lgo": "unknown flag --no-wandb_lgo. Did you mean '--wandb_log'?",
    D + "bach_size=3": "unknown flag --bach_size. Did you mean '--batch_size'?",
    D + "--learn 3e-5": "unknown flag --learn. Did you mean '--learning_rate'?",
    D + "--train.epochs 3": "unknown flag --train.epochs. Did you mean '--epochs'?",
    D + "--sources x": "unknown flag --sources. --help lists them all.",
    # names of other tools
    D + "--num_train_epochs 3": "unknown flag --num_train_epochs. Did you mean '--epochs'?",
    D + "--per_device_train_batch_size=8": "unknown flag --per_device_train_batch_size. Did you mean '--batch_size'?",
    D + "--output_dir out": "unknown flag --output_dir. Did you mean '--out_dir'?",
    D + "--model_name_or_path gpt2": "unknown flag --model_name_or_path. Did you mean '--init_from'?",
    D + "--lr 3e-5": "unknown flag --lr. Did you mean '--learning_rate'?",
    D + "--warmup-steps=3": "unknown flag --warmup-steps. Did you mean '--warmup_iters'?",
    D + "--max_steps 3": "unknown flag --max_steps. Did you mean '--max_iters'?",
    D + "--eval_steps 3": "unknown flag --eval_steps. Did you mean '--eval_interval'?",
    D + "--bf16 True": "unknown flag --bf16. Did you mean '--dtype=bfloat16'?",
    D + "--bf16 False": "unknown flag --bf16. Did you mean '--dtype'?",
    D + "--fp16=false": "unknown flag --fp16. Did you mean '--dtype'?",
    D + "--no_cuda": "unknown flag --no_cuda. Did you mean '--device=cpu'?",
    D + "--hub_model_id a/b": "unknown flag --hub_model_id. Did you mean '--push_to_hub'?",
    D + "--early_stopping_patience 3": "unknown flag --early_stopping_patience. Did you mean '--patience'?",
    D + "--base_model gpt2": "unknown flag --base_model. Did you mean '--init_from'?",
    D + "--context_length 512": "unknown flag --context_length. Did you mean '--block_size'?",
    D + "--data_seed 3": "unknown flag --data_seed. Did you mean '--seed'?",
    D + "--gradient_clipping 1.0": "unknown flag --gradient_clipping. Did you mean '--grad_clip'?",
    D + "--max_length 512": "unknown flag --max_length. Did you mean '--block_size'?",
    D + "--num_steps 500": "unknown flag --num_steps. Did you mean '--max_iters'?",
    D + "--eval.interval 5": "unknown flag --eval.interval. Did you mean '--eval_interval'?",
    D + "--lr_decay_style cosine": "unknown flag --lr_decay_style. Did you mean '--decay_lr'?",
    D + "--auto_find_batch_size": "unknown flag --auto_find_batch_size. Did you mean '--batch_size=auto'?",
    **{
        f"{D}{flag}": f"unknown flag {flag.partition('=')[0].split()[0]}. --help lists them all."
        for flag in (
            "--local_rank=0",
            "--deepspeed ds.json",
            "--do_eval",
            "--template x",
            "--stage sft",
            "--wandb_entity me",
            "--lora_target all",
            "--quiet",
            "-v",
            "--optim adamw_torch",
            "--vocab_size 50257",
            "--tf32 true",
            "--max_samples 1000",
            "--eval_accumulation_steps 2",
            "--embedding_learning_rate 1e-5",
            "--keep_checkpoints 2",
        )
    },
    D + "bf16.yaml": "bf16.yaml:1: unknown key 'bf16'. Did you mean 'dtype: bfloat16'?\n"
    "bf16.yaml:2: unknown key 'fp16'. Did you mean 'dtype'?\n"
    "bf16.yaml:3: unknown key 'resume'. Did you mean 'init_from: resume'?",
    D + "--bf16 --seed 3": "unknown flag --bf16. Did you mean '--dtype=bfloat16'?",
    # words of init_from, beside the shape of a model from scratch
    **{
        f"{D}--n_layer=2 --n_head=2 --init_from={word}": f"--init_from: there is no {word}. Did you mean {meant}?"
        for word, meant in {
            "Resume": "resume",
            "RESUME": "resume",
            "resum": "resume",
            "last": "resume",
            "Scratch": "scratch",
            "none": "scratch",
            "Auto": "auto",
        }.items()
    },
    "--init_from=Resume": "--init_from: there is no Resume. Did you mean resume?",
    # recipes and datasets
    D + "Smal": "Smal: no such recipe and no such file. Did you mean small? Data are given as --dataset=Smal",
    "code": "code: is a recipe that comes with finetune, and data that are here; --config=code is the recipe,"
    " --dataset=code the data",
    "run": "run: is a directory; its recipe is run/recipe.yaml",
    "text.txt prepared": "prepared: dataset is given already, as text.txt; several"
    " are given as --dataset=text.txt,prepared",
    "text.txt --dataset=d": "d: dataset is given already, as text.txt; several are given as --dataset=text.txt,d",
    "--dataset=d text.txt": "text.txt: dataset is given already, as d; several are given as --dataset=d,text.txt",
    D + "none.yaml": "none.yaml: cannot be read: No such file or directory. Did you mean nobase.yaml?",
    D + "sub/mien.yaml": "sub/mien.yaml: cannot be read: No such file or directory. Did you mean sub/mine.yml?",
    D + "config/train_chars.py": "config/train_chars.py: no such recipe and no such file. Did you mean"
    " config/train_char.py?",
    D + "list.yaml": "list.yaml:1: dataset: expected a single plain value; several are written with commas: a,b\n"
    "list.yaml:2: seed: expected a single plain value",
    D + "two.yaml": "two.yaml:2: begins a second document of YAML; a recipe is one, without ---",
    D + "max_iters = 5": "max_iters: write max_iters=5, without spaces around =",
    D + "max_iters =5": "max_iters: write max_iters=5, without spaces around =",
    D + "--push_to_hub": "--push_to_hub: has no value; write --push_to_hub=USER/NAME",
    D + "round.yaml": "trip.yaml:1: base: round.yaml leads back to itself; remove one of the two",
    D + "self.yaml": "self.yaml:1: base: self.yaml leads back to itself; remove one of the two",
    D + "nobase.yaml": "nobase.yaml:1: base: smal: no such recipe and no such file. Did you mean small?",
    D + "pushes.yaml": "pushing.yaml:1: push: can only be given on the command line, as --push=true",
    "above.yaml": "reaching.yaml:1: dataset: a recipe must not reach above the working directory (../../secret); give"
    " it as --dataset=../../secret",
    "config/low.py": "nanoGPT's default: min_lr: 6e-05 is above learning_rate=5e-05; --min_lr=none makes it a tenth",
    D + "--decay_lr=false --min_lr=0": "--decay_lr: false leaves nothing for min_lr to do; add --min_lr=none",
    D + "config/broken.py": "config/broken.py:1: not Python: invalid syntax",
}


@pytest.mark.parametrize("typed", UNDERSTOOD)
def test_it_is_understood(typed):
    got, _ = parse(Recipe, shlex.split(typed), "")
    assert {name: getattr(got, name) for name in UNDERSTOOD[typed]} == UNDERSTOOD[typed]


@pytest.mark.parametrize("typed", REFUSED)
def test_it_is_refused_in_one_line_that_says_what_to_type(typed):
    with pytest.raises(UsageError) as error:
        parse(Recipe, shlex.split(typed), "")
    assert str(error.value) == REFUSED[typed]


@pytest.mark.parametrize(
    ("verb", "key"),
    [
        *[(verb, "out_dir") for verb in ("prepare", "train", "sample", "eval", "export", "report", "diagnose")],
        *[("eval", key) for key in ("baseline", "general", "no_worse_than", "dataset")],
        *[("prepare", "val"), ("sample", "prompts"), ("sample", "out"), ("export", "to"), ("train", "tokenizer")],
    ],
)
@pytest.mark.parametrize("path", ["../x", "a/../../x", "a,../x", "'\"../x,y\"'"])
def test_no_recipe_of_any_command_reaches_above_the_working_directory(verb, key, path, command):
    Path("reach.yaml").write_text(f"{key}: {path}\n")
    code, _, error = command(verb, "--config=reach.yaml")
    assert code == 2 and f"reach.yaml:1: {key}: a recipe must not reach above the working directory" in error


def test_problems_of_all_files_and_flags_are_told_at_once():
    with pytest.raises(UsageError) as error:
        parse(Recipe, ["typo.yaml", "--lr", "3", "-o", "out", "--seed"], "")
    assert str(error.value).splitlines() == [
        "unknown flag --lr. Did you mean '--learning_rate'?",
        "unknown flag -o. Did you mean '--out_dir'?",
        "--seed: has no value; write --seed=INT",
        "wrong.yaml:1: unknown key 'learning_rat'. Did you mean 'learning_rate'?",
        "typo.yaml:2: unknown key 'sede'. Did you mean 'seed'?",
    ]


def test_a_config_of_nanogpt_is_never_executed_and_what_cannot_be_read_is_named():
    with pytest.raises(UsageError) as error:
        parse(Recipe, ["config/bad.py"], "")
    assert str(error.value).splitlines() == [
        "config/bad.py:2: seed: os.system('touch ran') is computed, and nothing is executed; write the value",
        "config/bad.py:4: only lines of 'key = value' are read, and nothing is executed",
        "config/bad.py:3: unknown key 'bias'. --help lists them all.",
    ]
    assert not Path("ran").exists()


def rate_of_nanogpt(it, decay_lr, learning_rate, warmup_iters, lr_decay_iters, min_lr):
    """As its train.py has it."""
    if not decay_lr:
        return learning_rate
    if it < warmup_iters:
        return learning_rate * (it + 1) / (warmup_iters + 1)
    if it > lr_decay_iters:
        return min_lr
    decay_ratio = (it - warmup_iters) / (lr_decay_iters - warmup_iters)
    return min_lr + 0.5 * (1.0 + math.cos(math.pi * decay_ratio)) * (learning_rate - min_lr)


@pytest.mark.parametrize(
    ("argv", "decay_lr", "values"),
    [
        ("config/decays.py", True, (3e-5, 10, 100, 3e-6)),
        ("config/decays.py --decay_lr=False", False, (3e-5, 10, 100, 3e-6)),
        ("config/decays.py --no-decay_lr", False, (3e-5, 10, 100, 3e-6)),
        ("config/train_char.py", True, (6e-4, 2000, 600000, 6e-5)),
        ("config/train_char.py --decay_lr=False", False, (6e-4, 2000, 600000, 6e-5)),
        ("config/finetune_shakespeare.py --max_iters=200", False, (3e-5, 2000, 600000, 6e-5)),
    ],
)
def test_the_learning_rates_of_a_config_are_those_of_nanogpt(argv, decay_lr, values):
    recipe = parse(Recipe, ["--dataset=d", *argv.split()], "")[0]
    ours = schedule.schedule(recipe, num_rows=1000)
    for it in (0, 5, 9, 10, 50, 99, 150):
        rate = schedule.learning_rate(it, recipe, ours)
        assert rate == pytest.approx(rate_of_nanogpt(it, decay_lr, *values), rel=1e-12)


def test_every_origin_is_the_place_where_the_value_stands(monkeypatch):
    monkeypatch.setenv("FINETUNE_TOP_K", "5")
    argv = ["config/finetune_shakespeare.py", "child.yaml", "mine.yaml", "text.txt", "--Beta1", "0.8", "beta2=0.9"]
    _, origins = parse(Recipe, argv, "")
    found = comments_by_key(origins)
    assert found["max_iters"] == {"origin": "sub/parent.yaml:3", "why": "short"}
    assert found["eval_interval"] == {"origin": "config/finetune_shakespeare.py:4", "why": ""}
    assert found["wandb_log"] == {"origin": "config/finetune_shakespeare.py:5", "why": "feel free to turn on"}
    assert found["learning_rate"] == {"origin": "mine.yaml:2", "why": "found by a sweep"}
    assert found["seed"] == {"origin": "child.yaml:2", "why": ""}
    assert found["patience"]["origin"].endswith("small.yaml:17") and "early stopping" in found["patience"]["why"]
    assert found["dataset"] == {"origin": "--dataset", "why": ""}
    assert found["top_k"] == {"origin": "FINETUNE_TOP_K", "why": ""}
    assert found["beta1"]["origin"] == "--beta1" and found["beta2"]["origin"] == "--beta2"


def test_the_environment_stands_between_recipe_and_flags(monkeypatch):
    monkeypatch.setenv("FINETUNE_LEARNING_RATE", "5e-5")
    monkeypatch.setenv("FINETUNE_SEED", "6")
    monkeypatch.setenv("FINETUNE_WANDB_LOG", "yes")
    monkeypatch.setenv("FINETUNE_OUT_DIR", "../out")  # the user's own, as on the command line
    got, origins = parse(Recipe, ["mine.yaml", "--seed=7"], "")
    assert (got.learning_rate, got.seed, got.wandb_log, got.out_dir) == (5e-5, 7, True, "../out")
    assert origins["learning_rate"] == "FINETUNE_LEARNING_RATE" and origins["seed"] == "--seed"


def test_a_wrong_variable_is_named_and_other_variables_are_left_alone(monkeypatch):
    for name in ("FINETUNE_SHAKESPEARE", "FINETUNE_NANOGPT", "FINETUNE_HOME", "FINETUNE_", "FINETUNE_QUICK"):
        monkeypatch.setenv(name, "x")
    assert parse(Recipe, ["mine.yaml"], "")[0].dataset == "mine.txt"
    monkeypatch.setenv("FINETUNE_LERNING_RATE", "1")
    monkeypatch.setenv("FINETUNE_LR", "1")
    monkeypatch.setenv("FINETUNE_BF16", "1")
    monkeypatch.setenv("FINETUNE_FP16", "0")
    monkeypatch.setenv("FINETUNE_SEED", "x")
    with pytest.raises(UsageError) as error:
        parse(Recipe, ["mine.yaml"], "")
    assert str(error.value).splitlines() == [
        "FINETUNE_BF16: no key has this name. Did you mean 'FINETUNE_DTYPE=bfloat16'?",
        "FINETUNE_FP16: no key has this name. Did you mean 'FINETUNE_DTYPE'?",
        "FINETUNE_LERNING_RATE: no key has this name. Did you mean 'FINETUNE_LEARNING_RATE'?",
        "FINETUNE_LR: no key has this name. Did you mean 'FINETUNE_LEARNING_RATE'?",
        "FINETUNE_SEED: expected a whole number, got 'x'",
    ]


def test_the_environment_is_not_for_commands_whose_flags_mean_something_else(monkeypatch):
    monkeypatch.setenv("FINETUNE_OUT_DIR", "elsewhere")
    assert parse(Other, ["a.txt"], "")[0].out_dir == ""
    assert parse(sample.Options, ["run"], "")[0].out_dir == "run"


@pytest.mark.parametrize(
    "options, typed, expected",
    [
        (sample.Options, "run --num-samples 2", {"out_dir": "run", "num_samples": 2}),
        (sample.Options, "--chat run", {"out_dir": "run", "chat": True}),
        (sample.Options, "run --seed 3 --start -1", {"out_dir": "run", "start": "-1"}),
        (evaluation_options.Options, "run --baseline auto", {"out_dir": "run", "baseline": "auto"}),
        (evaluation_options.Options, "run --no-documents", {"documents": False}),
        (export.Options, "run --to there --no-private --push_to_hub a/b", {"to": "there", "private": False}),
        (report.Options, "run", {"out_dir": "run"}),
        (diagnose.Options, "run --no-verify", {"out_dir": "run", "verify": False}),
        (plan.Options, "small text.txt --quick", {"dataset": "text.txt", "quick": True, "patience": 5}),
        (plan.Options, "small --num-processes 4", {"num_processes": 4}),
        (prepare.Options, "text.txt --out-dir data/mine", {"sources": ["text.txt"], "out_dir": "data/mine"}),
        (prepare.Options, "- --out-dir d", {"sources": ["-"], "out_dir": "d"}),
        (prepare.Options, "text.txt --dry_run", {"sources": ["text.txt"], "dry_run": True}),
        (prepare.Options, "--dry_run text.txt", {"sources": ["text.txt"], "dry_run": True}),
        (prepare.Options, "text.txt --no-doctor", {"doctor": "false"}),
        (prepare.Options, "--overwrite -- --odd.txt", {"sources": ["--odd.txt"], "overwrite": True}),
        (prepare.Options, "text.txt seed=3", {"sources": ["text.txt"], "seed": 3}),
        (prepare.Options, "gs=1.txt", {"sources": ["gs=1.txt"]}),
        (Other, "--known a --mode b --no-mode", {"sources": ["a", "b"], "known": True, "mode": "false"}),
        (Other, "--no-known --quiet no", {"known": False, "quiet": False}),
    ],
)
def test_every_command_understands_the_same_forms(options, typed, expected):
    got, _ = parse(options, shlex.split(typed), "")
    assert {name: getattr(got, name) for name in expected} == expected


@pytest.mark.parametrize(
    "options, typed, told",
    [
        (sample.Options, "run other", "other: out_dir is given already, as run; give --start=other"),
        (sample.Options, "run --out_dir=x", "x: out_dir is given already, as run"),
        (sample.Options, "run --prompt Once", "unknown flag --prompt. Did you mean '--start'?"),
        (sample.Options, "run --max_length 5", "unknown flag --max_length. Did you mean '--max_new_tokens'?"),
        (prepare.Options, "text.txt -o data/mine", "unknown flag -o. Did you mean '--out_dir'?"),
        (
            prepare.Options,
            "text.txt --out_dir = data/mine",
            "--out_dir: write --out_dir=VALUE, without a space before =",
        ),
        (export.Options, "run ex2", "ex2: out_dir is given already, as run; give --to=ex2"),
        (sample.Options, "run Hello", "Hello: out_dir is given already, as run; give --start=Hello"),
        (sample.Options, "'A b' --out_dir=run", "run: out_dir is given already, as A b; give '--start=A b'"),
        (
            evaluation_options.Options,
            "run prepared",
            "prepared: out_dir is given already, as run; give --dataset=prepared",
        ),
        (
            sample.Options,
            "run --init_from=a",
            "--out_dir: out_dir=run and init_from=a are two models; give one of them",
        ),
    ],
)
def test_mistakes_in_other_commands(options, typed, told):
    with pytest.raises(UsageError) as error:
        parse(options, shlex.split(typed), "")
    assert str(error.value) == told


def test_a_second_model_without_a_flag_is_the_only_problem():
    Path("text.txt").write_text("a")
    with pytest.raises(UsageError) as error:
        parse(evaluation_options.Options, ["run", "text.txt"], "")
    assert str(error.value) == "text.txt: init_from is given already, as run; give --dataset=text.txt"


def test_the_table_is_long_enough():
    assert len(UNDERSTOOD) + len(REFUSED) >= 80


@pytest.mark.parametrize("word", ["--help", "-h"])
def test_help_is_printed_wherever_it_stands(word, capsys):
    with pytest.raises(SystemExit) as end:
        parse(Recipe, ["small", "--wrong", word], "usage: x")
    assert end.value.code == 0 and capsys.readouterr().out.startswith("usage: x\n")


def test_a_recipe_reaches_above_behind_a_comma_no_more_than_before_it():
    Path("r.yaml").write_text("dataset: data/a,../b\n")
    with pytest.raises(UsageError, match="must not reach above the working directory"):
        parse(Recipe, ["r.yaml"], "")
