"""The verbs of `finetune VERB`: each is a module finetune.VERB with a `main(argv)`."""

import ast
from pathlib import Path

VERBS = tuple(
    "prepare doctor plan train sample eval export diagnose report compare recipes tour env completion".split()
)  # in the order of a first project, then what is about finetune itself


def describe(verb: str) -> str:
    """The first line of a command's docstring, without importing it."""
    tree = ast.parse((Path(__file__).parents[1] / f"{verb}.py").read_text(encoding="utf-8"))
    return (ast.get_docstring(tree) or "").partition("\n")[0]
