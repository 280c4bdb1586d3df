"""Fields of options dataclasses: default, help and bounds; their values read from text, and described for --help."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import operator
import os
import re
import types
import typing
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from finetune.common.fits import MOST
from finetune.common.formatting import setting, shown

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T")
BOUNDS = {
    "ge": (operator.ge, "at least"),
    "gt": (operator.gt, "above"),
    "le": (operator.le, "at most"),
    "lt": (operator.lt, "below"),
}
# texts of any characters; others name something
FREE = "start stop separator documents prompt_template add_tokens".split()
FREE += "text_column prompt_column completion_column messages_column".split()
DIRECTORIES = ("out_dir", "to")  # what a command writes into
MOST_BYTES, MOST_LEVELS, MOST_BYTES_OF_NAME = 4000, 200, 255  # of a path, and of each name in it
STEERING = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # control characters, and bytes that are not UTF-8
BOOLEANS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def option(default: T, help: str, **metadata: object) -> T:
    """A field of an options dataclass, typed as its default: `seed: int = option(1337, "random seed", ge=0)`.

    ge, gt, le, lt: bounds of a number.
    derived=True: None means "derived from other keys".
    flag_only=True: only the command line can set it.
    local=True: a directory here, and no address of storage.
    """
    metadata["help"] = help
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)  # pyrefly: ignore
    return dataclasses.field(default=default, metadata=metadata)


def find_problems(options: DataclassInstance) -> Iterator[tuple[str, str]]:
    """(key, message) of each value out of its bounds, then those of `options.problems()`, if it has that method."""
    yield from find_out_of_bounds(options)
    if problems := getattr(options, "problems", None):
        yield from problems()


def find_out_of_bounds(options: DataclassInstance) -> Iterator[tuple[str, str]]:
    """(key, message) of each number out of its bounds, and of each text that can be no name."""
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        bounds = {name: field.metadata[name] for name in BOUNDS if name in field.metadata}
        if isinstance(value, int | float) and not all(BOUNDS[name][0](value, bound) for name, bound in bounds.items()):
            wanted = " and ".join(f"{BOUNDS[name][1]} {bound}" for name, bound in bounds.items())
            yield field.name, f"must be {wanted}, got {shown(value)}"
        elif isinstance(value, int) and abs(value) >= MOST:
            yield field.name, f"must be below {MOST:,}, got {shown(value)}"
        texts = [text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str)]
        if field.name in FREE:
            texts = [text.removeprefix("FILE:") for text in texts if text.startswith("FILE:")]
        for text in texts:
            most = MOST_BYTES_OF_NAME - 75 * (field.name == "to")  # a temporary name holds it, the machine and the pid
            if problem := problem_of_name(text, most):
                yield "SOURCE" if field.name == "sources" else field.name, problem
            elif field.name in DIRECTORIES and text and is_root(text):
                yield field.name, f"{text} is the root directory (is a variable unset?); name another"


def is_root(path: str) -> bool:
    """Whether a path is the directory that all others are in."""
    path = os.path.abspath(path)
    return os.path.dirname(path) == path


def problem_of_name(text: str, most: int = MOST_BYTES_OF_NAME) -> str | None:
    """Why a text is neither a path nor a name, nor several with commas; None if it can be."""
    if found := STEERING.search(text):
        what = "a byte that is not UTF-8" if found[0] >= "\ud800" else f"the character {found[0]!r}"
        return f"{shown(text)} holds {what}; give it another name"
    levels = max(path.count("/") for path in text.split(","))
    if levels > MOST_LEVELS:
        return f"{shown(text)} has {levels:,} levels; {MOST_LEVELS} are possible"
    longest = max(len(name.encode()) for name in re.split(r"[/\\,]", text))
    if longest > most:
        return f"{shown(text)} holds a name of {longest:,} bytes; {most} are possible"
    if len(text.encode()) > MOST_BYTES:
        return f"{shown(text)} has {len(text.encode()):,} bytes; {MOST_BYTES:,} are possible"
    return None


def convert(text: str | None, kind: Any) -> Any:
    """The value of `text` for a field of type `kind`; None stands for a YAML null. Raises ValueError in plain words."""
    choices = typing.get_args(kind)
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return _convert_union(text, kind, choices)
    if text is None:
        raise ValueError(f"expected {describe_type(kind)}, got nothing")
    word = text.lower()
    if typing.get_origin(kind) is typing.Literal:
        if word not in choices:
            raise ValueError(f"expected one of {', '.join(choices)}, got {text!r}")
        return word
    if kind is bool and word in BOOLEANS:
        return BOOLEANS[word]
    if kind is int or kind is float:
        with contextlib.suppress(ValueError):
            value = float(text)
            if kind is float and math.isfinite(value):
                return value
            if kind is int and value.is_integer():  # 5e3 too; but a float rounds large integers
                with contextlib.suppress(ValueError):
                    return int(text)
                return int(value)
    if kind is str:
        return text
    raise ValueError(f"expected {describe_type(kind)}, got {text!r}")


def _convert_union(text: str | None, kind: Any, choices: tuple[Any, ...]) -> Any:
    """The value of `text` for `KIND | None`, `KIND | Literal[...]` or both."""
    if type(None) in choices and (text is None or text.lower() in ("", "none", "null", "~")):
        return None
    first, *others = (choice for choice in choices if choice is not type(None))
    for literal in others:
        if text is not None and text.lower() in typing.get_args(literal):
            return text.lower()
    try:
        return convert(text, first)
    except ValueError as error:
        raise ValueError(str(error).replace(describe_type(first), describe_type(kind))) from None


def help_text(cls: type[DataclassInstance], usage: str) -> str:
    """The text of --help."""
    hints = typing.get_type_hints(cls)
    lines = [usage.strip(), ""]
    for field in dataclasses.fields(cls):
        if field.name == "sources":
            continue
        lines.append(f"  --{field.name}={describe_type(hints[field.name], short=True)}")
        lines.append(f"      {field.metadata['help']} [{describe_default(field)}]")
    lines += ["  --config=RECIPE", "      read keys from a recipe first"]
    lines += ["  --debug=true", "      show the traceback of an error"]
    lines += ["", "--key value is the same as --key=value; --switch and --no-switch are true and false."]
    return "\n".join(lines)


def describe_default(field: dataclasses.Field[Any]) -> str:
    """A field's default as --help and the configuration reference show it."""
    return "derived" if field.default is None and field.metadata.get("derived") else setting(field.default)


def describe_type(kind: Any, short: bool = False) -> str:
    """`a number`, or in short `FLOAT`; of a Literal or a union all choices."""
    choices = [choice for choice in typing.get_args(kind) if choice is not type(None)]
    if typing.get_origin(kind) is typing.Literal:
        return "|".join(choices)
    if choices:
        return ("|" if short else " or ").join(describe_type(choice, short) for choice in choices)
    if short:
        return {bool: "true|false", int: "INT", float: "FLOAT", str: "TEXT"}[kind]
    return {bool: "true or false", int: "a whole number", float: "a number", str: "text"}[kind]
