"""One command line for every verb: an optional recipe, then --key=value, both typed by a dataclass.

    options, origins = parse(Recipe, ["recipes/small.yaml", "--max_iters=100"])

Recipe values and flags go through the same converter, so a value means the same in both places. Every problem is
collected and reported at once, each in one line that names the file or flag, the key and the nearest key."""

import ctypes
import dataclasses
import os
import re
import signal
import sys
import time
import types
import typing
from pathlib import Path

from finetune.common.errors import Failure, UsageError
from finetune.config.recipe_file import nearest, read_recipe

LOST = re.compile(
    r"connection (was )?(closed|reset|refused)|broken pipe", re.IGNORECASE
)  # what torch.distributed says of the others


def run(main):
    """Run a verb's `main(argv)` and turn its outcome into the exit code of the process."""
    speaks = "0" in (
        os.environ.get("RANK", "0"),
        os.environ.get("LOCAL_RANK"),
    )  # the first process, and that of each machine
    debug = "--debug=true" in sys.argv
    argv = [arg for arg in sys.argv[1:] if not arg.startswith("--debug=")]
    try:
        code = main(argv)
    except (UsageError, Failure) as error:
        if debug:
            raise
        if speaks or getattr(error, "alone", False):
            print(error, file=sys.stderr)
        else:
            time.sleep(
                1
            )  # with the first process that ends a launcher ends all of them, and rank 0 is to speak before that
        code = 2 if isinstance(error, UsageError) else error.code
    except KeyboardInterrupt:
        code = 130
    except RuntimeError as error:
        if debug or "RANK" not in os.environ or not LOST.search(str(error)):
            raise
        if speaks:  # the first may have ended well before; what ended told why
            print("another process of this run has ended, see its own words", file=sys.stderr)
        code = 1
    except OSError as error:
        if debug:
            raise
        print(f"{type(error).__name__}: {error} (--debug=true shows where)", file=sys.stderr)
        code = 1
    sys.stdout.flush()
    sys.exit(code or 0)


def die_with_launcher():
    """Ask the kernel (Linux) to send SIGTERM when the launcher dies: `accelerate launch` does not pass signals on, and
    without this its trainer would live on as an orphan. Does nothing for a process that no launcher started."""
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ or "TORCHELASTIC_RUN_ID" in os.environ
    if launched and sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:  # it died just before
            os.kill(os.getpid(), signal.SIGTERM)


def option(default, help, **metadata):
    """A field of an options dataclass: its default, one line of help and, as metadata, what else there is to know of
    it.

    `derived=True` marks a key whose None means "worked out from the other keys", `path=True` one that may name a place
    on disk: in a recipe, which may be somebody else's, it cannot contain `..`; `flag_only=True` one that such a recipe
    cannot set."""
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata={"help": help, **metadata})
    return dataclasses.field(default=default, metadata={"help": help, **metadata})


def check_run_dir(out_dir):
    """What is wrong with naming this directory as a run, with the runs there are; None when nothing is, or none is
    named."""
    if out_dir is None or Path(out_dir).is_dir():
        return None
    runs = sorted({str(path.parent.parent) for path in Path(".").glob("*/best/config.json")})
    return f"out_dir {out_dir}: no such directory" + (f"; runs here: {', '.join(runs)}" if runs else "")


def parse(cls, argv, usage):
    """`(options, origins)`: an instance of `cls`, and for each key that was given, where: 'recipes/x.yaml:3' or
    '--key'.

    A dataclass field `sources` takes the positional arguments; without one the only positional argument is a recipe.
    `cls.combine(values, given)`, if there is one, changes values that depend on each other. `cls.problems()`, if there
    is one, yields `(key, message)` for values that are of the right type but cannot be used.
    Raises UsageError; prints help and exits 0 on --help.
    """
    if "--help" in argv or "-h" in argv:
        print(help_text(cls, usage))
        sys.exit(0)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    problems, given, sources = [], [], []
    left = list(argv)
    while left:
        arg = left.pop(0)
        if arg.startswith("--"):
            name, equals, text = arg[2:].partition("=")
            if equals:
                given.append((name, text, f"--{name}"))
            elif name not in fields:
                problems.append(f"unknown flag {arg}." + nearest(name, fields, "--"))
            else:
                value = left.pop(0) if left and not left[0].startswith("-") else "VALUE"
                problems.append(f"{arg}: flags are written --key=value; write {arg}={value}")
        elif arg.startswith("-") and len(arg) > 1:
            problems.append(f"{arg}: flags are written --key=value")
        elif "sources" in fields:
            sources.append(arg)
        elif sources:
            problems.append(
                f"{arg}: only one recipe can be given, and {sources[0]} is one already; flags are written --key=value"
            )
        else:
            sources.append(arg)
            given = [*read_recipe(arg, problems), *given]
    values, origins = {}, {}
    for name, text, origin in given:
        if name not in fields or name == "sources":
            place = f"unknown flag {origin}" if origin.startswith("--") else f"{origin}: unknown key '{name}'"
            problems.append(f"{place}." + nearest(name, fields, "--" if origin.startswith("--") else ""))
            continue
        try:
            values[name] = convert(text, typing.get_type_hints(cls)[name])
            origins[name] = origin
            if (
                fields[name].metadata.get("flag_only")
                and not origin.startswith("--")
                and values[name] != fields[name].default
            ):
                problems.append(f"{origin}: {name}: can only be given on the command line, as --{name}={text}")
            if (
                fields[name].metadata.get("path")
                and not origin.startswith("--")
                and ".." in str(text).replace("\\", "/").split("/")
            ):
                problems.append(
                    f"{origin}: {name}: a recipe must not reach above the working directory ({text}); give it as"
                    f" --{name}={text}"
                )
        except ValueError as error:
            problems.append(f"{origin}: {name}: {error}" if not origin.startswith("--") else f"{origin}: {error}")
    if "sources" in fields:
        values["sources"] = sources
    if hasattr(cls, "combine"):
        cls.combine(values, given)
    options = cls(**values)
    if hasattr(options, "problems"):
        found = [(name, message) for name, message in options.problems() if name in origins or not problems]
        problems += [
            (
                f"{origins.get(name, name)}: {message}"
                if origins.get(name, "--").startswith("--")
                else f"{origins[name]}: {name}: {message}"
            )
            for name, message in found
        ]
    if problems:
        raise UsageError("\n".join(problems))
    return options, origins


def convert(text, kind):
    """The value of `text` for a field of type `kind`. `text` is None for a YAML null. Raises ValueError in plain
    words."""
    choices = typing.get_args(kind)
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        if type(None) in choices and (text is None or text.lower() in ("", "none", "null", "~")):
            return None
        first, *others = (choice for choice in choices if choice is not type(None))
        for words in others:  # of a value that may also be one of some words
            if text is not None and text.lower() in typing.get_args(words):
                return text.lower()
        try:
            return convert(text, first)
        except ValueError as error:
            raise ValueError(str(error).replace(type_words(first), type_words(kind))) from None
    if text is None:
        raise ValueError(f"expected {type_words(kind)}, got nothing")
    if typing.get_origin(kind) is typing.Literal:
        if text.lower() not in choices:
            raise ValueError(f"expected one of {', '.join(choices)}, got {text!r}")
        return text.lower()
    if kind is bool:
        if text.lower() in ("true", "yes", "on", "1"):
            return True
        if text.lower() in ("false", "no", "off", "0"):
            return False
    elif kind is int or kind is float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if kind is float and value - value == 0:  # neither nan nor infinite
            return value
        if kind is int and value - value == 0 and value == int(value):
            return int(text) if text.lstrip("+-").isdigit() else int(value)
    else:
        return text
    raise ValueError(f"expected {type_words(kind)}, got {text!r}")


def help_text(cls, usage):
    """What --help prints, generated from the dataclass."""
    hints = typing.get_type_hints(cls)
    lines = [usage.strip(), ""]
    for field in dataclasses.fields(cls):
        if field.name == "sources":
            continue
        lines.append(f"  --{field.name}={type_words(hints[field.name], short=True)}")
        lines.append(f"      {field.metadata['help']} [{default_words(field)}]")
    lines += ["  --debug=true", "      show the traceback of an error"]
    return "\n".join(lines)


def default_words(field):
    """A field's default as help and the configuration reference show it."""
    if field.default is None:
        return "derived" if field.metadata.get("derived") else "none"
    if isinstance(field.default, str):
        return field.default if field.default.strip() else repr(field.default)
    return str(field.default).lower()


def type_words(kind, short=False):
    options = [choice for choice in typing.get_args(kind) if choice is not type(None)]
    if typing.get_origin(kind) is typing.Literal:
        return "|".join(options)
    if options:
        return ("|" if short else " or ").join(type_words(option, short) for option in options)
    long = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    return {bool: "true|false", int: "INT", float: "FLOAT", str: "TEXT"}[kind] if short else long[kind]
