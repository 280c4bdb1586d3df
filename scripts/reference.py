"""Write from the code: docs/configuration-reference.md, every flag of every command; their types for Python,
finetune/flags.pyi; and the README's list of modules.

python scripts/reference.py
"""

import ast
import dataclasses
import importlib
import json
import re
import typing
from pathlib import Path

from finetune.config.options import describe_default, describe_type
from finetune.config.recipe import Recipe
from finetune.config.verbs import VERBS
from finetune.keywords import LISTS, NO_KEYWORDS

ROOT = Path(__file__).parents[1]
PAGE, README = ROOT / "docs" / "configuration-reference.md", ROOT / "README.md"
FLAGS = ROOT / "finetune" / "flags.pyi"  # types of the keywords of finetune.train and the others
FUNCTIONS = {
    "prepare": "Prepare",
    "train": "Train",
    "sample": "Sample",
    "eval": "Evaluate",
    "export": "Export",
    "plan": "Plan",
}
MODULES = re.compile(r"```\nfinetune/\n.*?```\n", re.S)  # the list in the README
RESUME = {"identity": "refused", "schedule": "applied", "free": ""}


def page():
    """The page as text."""
    parts = [
        "# Every key and flag\n",
        (
            "Written by `python scripts/reference.py` from the code. A key of a recipe is a line `key: value`; as a"
            " flag it is `--key=value`."
        ),
        (
            "The last column of train says what changing a key does to a run that is resumed: *refused*, as it would be"
            " another run; *applied*, from"
        ),
        "there on; nothing, where the key has no influence on what is learned.",
    ]
    for verb in VERBS:
        options = importlib.import_module(f"finetune.{verb}").Options
        hints = typing.get_type_hints(options)
        resume = verb == "train"
        inherited = set(Recipe.__dataclass_fields__) if issubclass(options, Recipe) and not resume else set()
        parts += [f"\n## {verb}\n", *(["The keys of [train](#train), and:\n"] if inherited else [])]
        parts += [f"| key | value | default | what it is |{' resume |' if resume else ''}", "|---" * (4 + resume) + "|"]
        for field in dataclasses.fields(options):
            if field.name == "sources" or field.name in inherited:
                continue
            cells = [
                f"`{field.name}`",
                describe_type(hints[field.name], short=True),
                f"`{describe_default(field)}`",
                field.metadata["help"],
            ]
            cells += [RESUME[field.metadata["resume"]]] if resume else []
            parts.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(parts) + "\n"


def flags():
    """The stub with a TypedDict of the flags of each command that is a function."""
    parts = [
        '"""The keywords of the functions for type checkers. Written by `python scripts/reference.py`."""\n',
        "from collections.abc import Sequence\nfrom os import PathLike",
        "from typing import Literal, TypeAlias, TypedDict\n",
        "Text: TypeAlias = str | float | PathLike[str]\nTexts: TypeAlias = Text | Sequence[Text]",
    ]
    for verb, name in FUNCTIONS.items():
        options = Recipe if verb == "train" else importlib.import_module(f"finetune.{verb}").Options
        hints, base = typing.get_type_hints(options), "TypedDict"
        if options is not Recipe and issubclass(options, Recipe):
            hints, base = {key: hints[key] for key in hints if key not in Recipe.__dataclass_fields__}, "TrainFlags"
        parts.append(f"\nclass {name}Flags({base}, total=False):")
        for key, kind in hints.items():
            if key not in NO_KEYWORDS:
                parts.append(f"    {key}: {typed(key, kind)}")
    return "\n".join(parts) + "\n"


def typed(key, kind):
    """The annotation of a keyword: what text stands for, or the text itself."""
    if kind is str:
        return "Texts" if key in LISTS else "Text"
    if typing.get_origin(kind) is typing.Literal:
        choices = typing.get_args(kind)
        return f"Literal[{', '.join(map(json.dumps, choices))}]" + (" | bool" if "true" in choices else "")
    if typing.get_args(kind):
        return " | ".join(typed(key, one) for one in typing.get_args(kind))
    return "None" if kind is type(None) else kind.__name__


def modules():
    """The list of modules in the README: each file with the first sentence of its docstring."""
    folders = [
        "",
        *(f"{name}/" for name in "common config gpt data runtime runs evaluation training publishing".split()),
    ]
    folders += ["tools/plan/", "tools/doctor/", "tools/report/"]
    lines = ["finetune/"]
    for folder in folders:
        lines += [f"  {folder}"] if folder else []
        for path in sorted((ROOT / "finetune" / folder).glob("*.py")):
            if path.name == "__init__.py":
                continue
            text = " ".join(ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))).split("\n\n")[0].split())
            sentence = re.match(r".*?[^.]\.(?= [A-Z]|$)", text)[0].removesuffix(".")
            lines.append(f"  {'  ' if folder else ''}{path.name:<{20 if folder else 22}} {sentence}")
    return "\n".join(["```", *lines, "```", ""])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    FLAGS.write_text(flags(), encoding="utf-8")
    README.write_text(MODULES.sub(lambda match: modules(), README.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"wrote {PAGE}, {FLAGS} and the list of modules in {README}")
