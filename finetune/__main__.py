"""`finetune` or `python -m finetune`: list the commands, or run one of them."""

import ast
import importlib
from pathlib import Path

from finetune.common.errors import UsageError
from finetune.config.cli import run

VERBS = ("prepare", "doctor", "plan", "train", "sample", "eval", "export", "diagnose", "report", "compare")


def dispatch(argv: list[str]) -> int | None:
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: finetune VERB [...], the same as python -m finetune.VERB\n")
        for verb in VERBS:
            print(f"  {verb:10} {_first_line(verb)}")
        print("\nfinetune VERB --help lists the flags of a verb.")
        return 0
    if argv[0] not in VERBS:
        raise UsageError(f"{argv[0]}: no such verb; there are {', '.join(VERBS)}")
    return importlib.import_module(f"finetune.{argv[0]}").main(argv[1:])


def _first_line(verb: str) -> str:
    """The first line of a command's docstring, without importing it."""
    tree = ast.parse(Path(__file__).with_name(f"{verb}.py").read_text(encoding="utf-8"))
    return (ast.get_docstring(tree) or "").partition("\n")[0]


def main() -> None:
    run(dispatch)


if __name__ == "__main__":
    main()
