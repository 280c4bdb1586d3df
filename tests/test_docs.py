"""What README and docs show is true: commands parse, links resolve."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

from finetune.__main__ import VERBS
from finetune.cli import parse
from finetune.recipe import Recipe

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TEXTS = {page: page.read_text(encoding="utf-8") for page in PAGES}
COMMAND = re.compile(r"(?:python -m|accelerate launch -m|torchrun \S+ -m) finetune\.(\w+)([^`\n]*)")


def commands():
    for page, text in TEXTS.items():
        for block in re.findall(r"```sh\n(.*?)```", text, re.S):
            for verb, rest in COMMAND.findall(block.replace("\\\n", " ")):
                yield pytest.param(verb, rest, id=f"{page.name}: {verb}{rest}")


@pytest.mark.parametrize("verb, rest", list(commands()))
def test_commands_are_understood(verb, rest, monkeypatch):
    monkeypatch.chdir(ROOT)
    options = Recipe if verb == "train" else importlib.import_module(f"finetune.{verb}").Options
    parse(options, shlex.split(rest, comments=True), "")


def test_there_are_commands():
    assert len(list(commands())) >= 5


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_resolve(page):
    for target in re.findall(r"\]\(([^)#]+)", TEXTS[page]):
        assert target.startswith("http") or (page.parent / target).exists(), target


def test_flags_named_in_prose_exist():
    verbs = [verb for verb in VERBS if verb != "train"]
    known = {name for verb in verbs for name in importlib.import_module(f"finetune.{verb}").Options.__dataclass_fields__}
    known |= {*Recipe.__dataclass_fields__, "debug", "help", "key", "nproc_per_node", "outfile"}
    known |= set("config_file num_processes num_machines machine_rank main_process_ip main_process_port gpu_ids cpu multi_gpu".split())  # accelerate
    known |= set("nodes ntasks gpus cpus time signal requeue kill".split())  # SLURM
    for page, text in TEXTS.items():
        if page.parent.name == "benchmarks":  # these name flags of the scripts that wrote them
            continue
        for name in re.findall(r"--([a-z][a-z_]+)\b", text):
            assert name in known, f"{page.name}: --{name}"


def test_the_reference_is_that_of_the_code(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import reference

    assert reference.PAGE.read_text(encoding="utf-8") == reference.page(), "run python scripts/reference.py"
