"""The flags of a command as keywords of a function: the same names, the same checks."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import os
import re
import sys
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from finetune.common.errors import Failure, UsageError
from finetune.common.objects import as_path, described, way_out
from finetune.config.cli import parse
from finetune.config.mirror import local_copy
from finetune.config.options import describe_default, describe_type
from finetune.config.run_directory import is_run

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

P = ParamSpec("P")
R = TypeVar("R")
Options = TypeVar("Options", bound="DataclassInstance")
LISTS = frozenset(
    {"dataset", "dataset_weights", "val", "metrics", "add_tokens", "tags", "language", "require", "log_with"}
)  # flags of values with commas between
# a flag in a message; a command, in which flags stay, is matched first
FLAG = re.compile(
    r"`[^`]*`|\b(?:finetune \w+|accelerate launch) (?:(?!, )[^;\n])*"
    r"|(?P<quote>')?(?<![\w-])--(?P<name>[a-z_]+)(?:=(?P<text>[^\s;,]*[^\s;,.:?]))?(?(quote)')"
)
NO_KEYWORDS = frozenset({"sources", "json"})
PROCESSES = "is for the command; accelerate.notebook_launcher starts several processes"
OF_THE_COMMAND = {
    "json": "is for the command; the function returns the figures",
    "num_processes": PROCESSES,
    "launch": PROCESSES,
    "dry_run": "is for the command; plan says what a run takes",
}


def parse_keywords(
    cls: type[Options], positional: Sequence[object], keywords: Mapping[str, Any]
) -> tuple[Options, dict[str, str]]:
    """`parse` of the flags that stand for these arguments. Raises UsageError."""
    argv = arguments(cls, positional, keywords)
    return parse(cls, argv, "")


def arguments(cls: type[DataclassInstance], positional: Sequence[object], keywords: Mapping[str, Any]) -> list[str]:
    """The command line for these arguments: Python's values as text. Raises UsageError, all problems in one."""
    argv, places, problems, hints = [], [], [], typing.get_type_hints(cls)
    for place in positional:
        text = os.fspath(place) if isinstance(place, (str, os.PathLike)) else ""
        if not isinstance(text, str) or not text or "\n" in text or (text.startswith("-") and text != "-"):
            problems.append(f"{described(place)}: is no file or name{_way_in(place)}")
        places.append(str(text))
    only_there = [name for name in OF_THE_COMMAND if name in keywords and (name == "json" or name not in hints)]
    problems += [f"{name}: {OF_THE_COMMAND[name]}" for name in only_there]
    for name, value in keywords.items():
        kind = hints.get(name)
        if kind is None:  # `parse` says which keyword was meant
            argv.append(f"--{name}={value}")
            continue
        try:
            if isinstance(value, list | tuple) and name in LISTS:
                text = _with_commas(value)
            else:
                text = as_text(value, kind)
            argv.append(f"--{name}={text}")
        except ValueError as error:
            problems.append(f"{name}: {error}")
    if problems:
        raise UsageError("\n".join(problems))
    return [*argv, "--", *places] if places else argv


EACH = "; write * before it to give each by itself"


def _way_in(place: object) -> str:
    """The end of a message about an argument without a keyword that is no path."""
    if hasattr(place, "read"):
        name = "-" if place is sys.stdin else getattr(place, "name", None)
        return f"; give its name, {name!r}" if isinstance(name, str) else "; write what it holds into a file first"
    if isinstance(place, str) and "\n" in place:
        return "; write a text into a file first"
    if isinstance(place, list | tuple | set) and place:
        is_names = all(isinstance(each, str | os.PathLike) for each in place)
        return EACH if is_names else "; write rows as JSON lines into a file"
    if isinstance(place, Iterator):
        return EACH
    return way_out(place) or "; flags are keywords, written max_iters=100"


def as_text(value: Any, kind: Any = str) -> str:
    """A value as a flag of type `kind` spells it. Raises ValueError for one that no flag can have."""
    kinds = typing.get_args(kind) or (kind,)
    if value is None:
        if type(None) in kinds:
            return "none"
        raise ValueError(f"expected {describe_type(kind)}, got None; leave it out for the default")
    if hasattr(value, "item"):  # a number of numpy or torch
        with contextlib.suppress(ValueError, RuntimeError):  # or several
            value = value.item()
    if isinstance(value, bool) and not set(kinds) <= {str, type(None)}:
        return str(value).lower()
    if isinstance(value, int | float) and not isinstance(value, bool):
        return repr(value)
    if isinstance(value, str | os.PathLike):
        return os.fsdecode(value)
    raise ValueError(f"expected {describe_type(kind)}, got {described(value)}{way_out(value)}")


def _with_commas(values: Sequence[Any]) -> str:
    texts = [as_text(value) for value in values]
    if wrong := [text for text in texts if "," in text or not text]:
        raise ValueError(f"{wrong[0]!r} cannot be one of several, as they are separated by commas")
    return ",".join(texts)


def takes_flags(cls: type[DataclassInstance]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """For a function with `**flags`: its signature and docstring list the flags of `cls`, and an error is a single
    exception, without the ones that led to it."""

    hints = typing.get_type_hints(cls)

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                return function(*args, **kwargs)
            except (UsageError, Failure) as error:
                problem = error
                problem.args = tuple(_as_keywords(text, hints, function.__name__) for text in error.args)
            raise problem.with_traceback(None) from None

        call.__signature__ = _signature(function, cls)  # pyrefly: ignore[missing-attribute]
        call.__doc__ = f"{inspect.getdoc(function)}\n\nKeywords:\n{_describe(cls)}"
        return call

    return decorate


def _as_keywords(message: str, hints: Mapping[str, Any], function: str) -> str:
    """A message with the flags as keywords of Python, but for those of commands to type."""

    def spell(found: re.Match[str]) -> str:
        name, text = found["name"], found["text"]
        if name not in hints:
            return found[0]
        value = {"true": "True", "false": "False", "none": "None"}.get(text or "", text)
        quote = found["quote"] or ""
        if text is not None and value == text and hints[name] not in (int, float) and not text.isupper():
            value = f'"{text}"' if quote else repr(text)
        return quote + (name if value is None else f"{name}={value}") + quote

    message = message.replace("unknown flag --", "unknown keyword ")
    return FLAG.sub(spell, message.replace(" --help lists", f" help({function}) lists"))


def _signature(function: Callable[..., object], cls: type[DataclassInstance]) -> inspect.Signature:
    own = inspect.signature(function)
    named = [one for one in own.parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD]
    hints = typing.get_type_hints(cls)
    for field in _flags(cls):
        default = field.default if field.default is not dataclasses.MISSING else None
        kind = inspect.Parameter.KEYWORD_ONLY
        named.append(inspect.Parameter(field.name, kind, default=default, annotation=hints[field.name]))
    return own.replace(parameters=named)


def _describe(cls: type[DataclassInstance]) -> str:
    return "\n".join(f"  {field.name}: {field.metadata['help']} [{describe_default(field)}]" for field in _flags(cls))


def _flags(cls: type[DataclassInstance]) -> list[dataclasses.Field[Any]]:
    return [field for field in dataclasses.fields(cls) if field.name not in NO_KEYWORDS]


def path_flags(model: str | os.PathLike[str] | None, flags: Mapping[str, Any]) -> dict[str, Any]:
    """The flags with `model` as out_dir if it is the directory of a run, else as init_from."""
    if model is None:
        return dict(flags)
    model = os.path.expanduser(local_copy(as_path(model, "model")))
    name = "out_dir" if is_run(model) else "init_from"
    if name in flags:
        raise UsageError(f"{name}: given twice, as {model!r} and as {described(flags[name])}")
    return {name: model, **flags}
