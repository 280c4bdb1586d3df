"""Write docs/configuration-reference.md: every flag of every verb, from the dataclasses that define them.

python scripts/reference.py
"""

import dataclasses
import importlib
import typing
from pathlib import Path

from finetune.__main__ import VERBS
from finetune.config.options import describe_default, describe_type
from finetune.config.recipe import Recipe

PAGE = Path(__file__).parents[1] / "docs" / "configuration-reference.md"
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
        options = Recipe if verb == "train" else importlib.import_module(f"finetune.{verb}").Options
        hints = typing.get_type_hints(options)
        resume = verb == "train"
        inherited = set(Recipe.__dataclass_fields__) if options is not Recipe and issubclass(options, Recipe) else set()
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


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")
