"""`finetune` or `python -m finetune`: list the commands, or run one of them."""

import difflib
import importlib
import sys

import finetune


def dispatch(argv: list[str]) -> int | None:
    from finetune.common.errors import UsageError
    from finetune.config.verbs import VERBS, describe

    if not argv or argv[0] in ("-h", "--help"):
        print("usage: finetune VERB [...], the same as python -m finetune.VERB\n")
        for verb in VERBS:
            print(f"  {verb:10} {describe(verb)}")
        print("\nfinetune VERB --help lists the flags of a verb; finetune --version prints the version.")
        return 0
    if argv[0] in ("--version", "-V"):
        print(f"finetune {finetune.__version__}")
        return 0
    if argv[0] not in VERBS:
        close = difflib.get_close_matches(argv[0].lower(), VERBS, n=1)
        hint = f"Did you mean {close[0]}?" if close else f"There are {', '.join(VERBS)}"
        raise UsageError(f"{argv[0]}: no such verb. {hint}")
    return importlib.import_module(f"finetune.{argv[0]}").main(argv[1:])


def main() -> None:
    try:
        from finetune.config.cli import run  # here, so that Ctrl-C while it is imported ends like any other
    except KeyboardInterrupt:
        sys.exit(130)
    run(dispatch)


if __name__ == "__main__":
    main()
