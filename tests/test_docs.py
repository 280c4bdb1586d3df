"""What README and docs show is true: commands parse, links resolve, figures and quotations are those of the code and
the recipes."""

import ast
import importlib
import re
import shlex
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

import finetune
from finetune.config.cli import parse
from finetune.config.recipe import Recipe
from finetune.config.verbs import VERBS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "recipes/README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TEXTS = {page: page.read_text(encoding="utf-8") for page in PAGES}
RECIPES = {
    path.name: yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted((ROOT / "recipes").glob("*.yaml"))
}
COMMAND = re.compile(
    r"(?:(?:python -m|accelerate launch (?:--\S+ )*-m|torchrun \S+ -m) finetune\.|^finetune |(?<=`)finetune )"
    r"(\w+)([^`\n]*)",
    re.M,
)


def commands():
    for page, text in TEXTS.items():
        for block in re.findall(r"```sh\n(.*?)```|(?<!`)`(finetune \w+ [^`\n]+)`", text, re.S):
            for verb, rest in COMMAND.findall("".join(block).replace("\\\n", " ")):
                # an ellipsis stands for something, help ends at once, and the last needs a run
                if verb in VERBS and not re.search(r"\.\.\.|--help|--init_from=resume --out_dir=out-mine", rest):
                    yield pytest.param(verb, rest, id=f"{page.name}: {verb}{rest}")


@pytest.mark.parametrize("verb, rest", list(commands()))
def test_commands_are_understood(verb, rest, monkeypatch):
    monkeypatch.chdir(ROOT)
    options = importlib.import_module(f"finetune.{verb}").Options
    rest = re.sub(
        r"(out-mine|out-novels|copy)/recipe.yaml|RECIPE", "recipes/small.yaml", rest
    )  # which a run would leave
    if "s3://" in rest:
        pytest.importorskip("s3fs")
    parse(options, shlex.split(rest, comments=True), "")


def test_there_are_commands():
    assert len(list(commands())) >= 5


# lines of other people's commands, which no test can run as they are: they install, ask, want a GPU, or serve until
# they are stopped
OTHERS = (
    "python3 -m venv",
    "pip install",
    "hf auth login",
    "accelerate config",
    "pytest",
    "ruff",
    "transformers serve",
    "curl localhost:8000",
    "vllm serve",
    "python llama.cpp/convert_hf_to_gguf.py",
    "llama-cli",
    "python scripts/golden.py",
)


def test_every_block_is_checked():
    seen = set()
    for page, text in TEXTS.items():
        for language, block in re.findall(r"^ *```(\w*)\n(.*?)^ *```$", text, re.S | re.M):
            assert language in ("", "sh", "python", "yaml"), f"{page.name}: {language}"
            if language == "python":
                ast.parse(block)
            elif language == "yaml":
                assert yaml.safe_load(block).keys() <= Recipe.__dataclass_fields__.keys(), page.name
            for line in block.replace("\\\n", " ").splitlines() if language == "sh" else ():
                other = next((other for other in OTHERS if line.startswith(other)), None)
                python = re.match(r'python -c "(.*)"', line)
                assert COMMAND.search(line) or other or (python and ast.parse(python[1])), f"{page.name}: {line}"
                seen.add(other)
    assert seen >= set(OTHERS), set(OTHERS) - seen


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_resolve(page):
    for target in re.findall(r"""(?:\]\(|src=")([^)"]+)""", TEXTS[page]):
        if not target.startswith("http"):
            path, _, anchor = target.partition("#")
            there = page.parent / path if path else page
            assert there.exists(), target
            assert not anchor or anchor in anchors(there.read_text(encoding="utf-8")), target


def test_pictures_are_small_and_shown():
    shown = {Path(name).name for text in TEXTS.values() for name in re.findall(r"images/[\w.-]+", text)}
    pictures = {path.name: path for path in (ROOT / "docs/images").iterdir()}
    assert {"flow.svg", "terminal.svg", "compare.svg", "curve-healthy.webp", "curve-overfitting.webp"} <= shown
    assert shown <= pictures.keys() and len(re.findall(r"<img|!\[", TEXTS[ROOT / "README.md"])) <= 2
    for path in pictures.values():
        assert path.stat().st_size < 100_000, path.name
        if path.suffix == ".svg":
            tags = {element.tag.rpartition("}")[2] for element in ElementTree.parse(path).iter()}
            assert "text" in tags and "script" not in tags


def test_the_picture_of_a_terminal_shows_what_is_printed():
    """Lines that a run and a comparison begin with, against the words of the code."""
    for name, verb, words in (
        ("terminal", "train", ("step 0: train loss ", "saving checkpoint to ", "best val loss ")),
        ("compare", "compare", ("* the lowest validation loss: ", "validation loss")),
    ):
        lines = [text.text or "" for text in ElementTree.parse(ROOT / f"docs/images/{name}.svg").iter() if text.text]
        command = next(line for line in lines if line.startswith("$ finetune "))
        assert command.startswith(f"$ finetune {verb} ")
        parse(importlib.import_module(f"finetune.{verb}").Options, shlex.split(command)[3:], "")
        assert all(any(word in line for line in lines) for word in words)


def anchors(text):
    """The names under which GitHub finds the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_flags_named_in_prose_exist():
    known = {
        name for verb in VERBS for name in importlib.import_module(f"finetune.{verb}").Options.__dataclass_fields__
    }
    known |= {
        *Recipe.__dataclass_fields__,
        "debug",
        "help",
        "key",
        "config",
        "no",
        "learning",
        "quiet",
        "switch",
        "num_train_epochs",
        "nproc_per_node",
        "outfile",
        "version",
    }
    known |= set(
        "config_file num_processes num_machines machine_rank main_process_ip main_process_port gpu_ids cpu"
        " multi_gpu".split()
    )  # accelerate
    known |= set("tag user signals shm volume flavor timeout secrets env cluster".split())  # docker, hf jobs and sky
    known |= {"include"}  # hf download
    known |= set("max nnodes rdzv_backend rdzv_endpoint rdzv_id".split())  # torchrun
    known |= {"write", "compare", "before", "measure"}  # of scripts
    known |= set("nodes ntasks gpus cpus time signal requeue kill container".split())  # SLURM
    for page, text in TEXTS.items():
        if page.parent.name == "benchmarks":  # these name flags of the scripts that wrote them
            continue
        unknown = set(re.findall(r"--([a-z][a-z_]+)\b", text)) - known
        assert not unknown, page.name


def quoted(text):
    """The `key: value` pairs that a text about recipes quotes, as (recipe named last before it, key, value)."""
    name = None
    for named, pair in re.findall(r"(\w+\.yaml)|`(\w+: [^`]+)`", text):
        name = named or name
        for key, value in yaml.safe_load(pair).items() if pair else ():
            yield name, key, value


def test_recipes_are_explained_as_they_are():
    text = TEXTS[ROOT / "recipes/README.md"]
    told = {name: {} for name in RECIPES}
    for name, key, value in quoted(text.partition("## One recipe")[2].partition("## A recipe of your own")[0]):
        assert RECIPES[name][key] == value, f"{name}: {key}: {value}"
        told[name][key] = value
    assert told["small.yaml"] == RECIPES["small.yaml"]
    defaults = {name: field.default for name, field in Recipe.__dataclass_fields__.items()}
    ordinary = {**defaults, **RECIPES["small.yaml"]}
    for name, values in RECIPES.items():
        own = {key for key, value in values.items() if ordinary[key] != value} - {"dataset", "out_dir"}
        assert own <= told[name].keys(), f"{name}: {own - told[name].keys()} is not explained"
        assert f"[{name}]({name})" in text


def table(page, heading):
    """The rows of the table whose headings begin with `heading`, as lists of cells."""
    lines = iter(TEXTS[page].splitlines())
    assert any(line.startswith(f"| {heading} |") for line in lines), f"{page.name}: {heading}"
    next(lines)
    for line in lines:
        if not line.startswith("|"):
            return
        yield [cell.strip() for cell in line.strip("|").split("|")]


GUIDE = ROOT / "docs/guide.md"


def test_what_the_sizes_take_is_what_plan_computes(monkeypatch):
    from finetune.gpt.size import num_parameters
    from finetune.tools.plan import estimate

    monkeypatch.chdir(ROOT)
    rows = list(table(GUIDE, "recipe"))
    assert len(rows) == 4
    for name, count, fixed, peak, disk, *_ in rows:
        options, _ = parse(Recipe, [f"recipes/{name}", "--dataset=x", "--device=cpu", "--dtype=bfloat16"], "")
        plan = estimate.plan(options, {}, tokens=1_000_000)
        parameters = num_parameters(plan.config)
        assert (count, fixed) == (f"{parameters:,}", f"{16 * parameters / 1e9:.1f} GB")
        assert peak == f"{plan.peak_bytes() / 1e9:.1f} GB" and disk == f"{plan.disk_needed / 1e9:.1f} GB"


def test_the_guide_counts_as_we_do():
    passes = {name: RECIPES[f"{name}.yaml"] for name in ("small", "medium", "large", "xl")}
    for name, recipe in passes.items():
        tokens = recipe["batch_size"] * recipe["gradient_accumulation_steps"] * 1024 * recipe["max_iters"]
        assert re.search(rf"{tokens / 301_966:,.0f} (passes over tiny Shakespeare )?at `{name}`", TEXTS[GUIDE]), name


def test_rules_of_thumb_are_those_that_plan_applies():
    from finetune.runs import thresholds

    rates = [
        [float(rate) for rate in re.findall("`(.*?)`", cells[1])]
        for cells in table(GUIDE, "tokens to train on | learning rate, a rule of thumb")
    ]
    assert rates == [[low, high] for _, low, high in thresholds.RATES]
    models = list(table(GUIDE, "tokens to train on | model"))
    assert [cells[1].split("`")[1] for cells in models] == [model for _, model, _ in thresholds.MODELS]
    assert all(recipe in cells[2] for cells, (_, _, recipe) in zip(models, thresholds.MODELS))
    assert [cells[0] for cells in models] == ["fewer than a million", "one to ten million", "more than ten million"]
    assert [limit for limit, _, _ in thresholds.MODELS][:2] == [1_000_000, 10_000_000]
    assert "8,192 to 65,536 is usual" in TEXTS[GUIDE] and thresholds.TOKENS_OF_UPDATE == (8192, 65536)


def test_the_guide_names_what_is_there():
    from finetune.tools.report.diagnosis import ISSUES

    assert {cells[1].strip("`") for cells in table(GUIDE, "you see")} == set(ISSUES)
    for cells in table(GUIDE, "you have"):
        values = RECIPES[cells[1].strip("`")]
        model, rate = re.findall(r"`([^`]+)`", cells[2])
        assert values["init_from"] == model and float(values["learning_rate"]) == float(rate)


def test_the_changelog_knows_this_version():
    assert f"## {finetune.__version__}" in TEXTS[ROOT / "docs/CHANGELOG.md"]


def test_the_reference_is_that_of_the_code(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import reference

    assert reference.PAGE.read_text(encoding="utf-8") == reference.page(), "run python scripts/reference.py"
    assert reference.modules() in reference.README.read_text(encoding="utf-8"), "run python scripts/reference.py"
