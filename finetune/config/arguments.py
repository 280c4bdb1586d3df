"""Arguments as people type them: `--key=value`, `--key value`, `--switch`, `--no-switch`, `key=value`, recipes by file
or by name, and FINETUNE_KEY in the environment of the commands that take a recipe."""

from __future__ import annotations

import dataclasses
import os
import re
import typing
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from finetune.common.errors import UsageError
from finetune.common.formatting import shown
from finetune.config import nanogpt_config, run_directory
from finetune.config.nearest_key import nearest, similar, spelled
from finetune.config.options import BOOLEANS, describe_type, problem_of_name
from finetune.config.paths import expand_home
from finetune.config.recipe import Recipe
from finetune.config.recipe_file import SUFFIXES, Entry, read_recipe
from finetune.config.recipe_names import find_recipe, recipe_names

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

PREFIX = "FINETUNE_"
RECIPE_FLAGS = ("config", "config_file")
SHORT_FLAG = re.compile(r"-[A-Za-z][\w-]*(=.*)?", re.DOTALL)
PAIR = re.compile(r"([A-Za-z]\w*)=.*", re.DOTALL)
DASHES = ("\u2013", "\u2014", "\u2212")  # what editors make of - and --


def read_arguments(cls: type[DataclassInstance], argv: list[str], problems: list[str]) -> tuple[list[Entry], list[str]]:
    """`(entries, sources)`: the entries of recipes, then those of the environment, then the flags; a later one wins.

    An argument without a flag is a source if `cls` has `sources`; else a recipe, or the dataset of a recipe, or, for a
    command that reads a run, its out_dir."""
    reader = Reader(cls, list(argv), problems)
    while reader.remaining:
        reader.read(reader.remaining.pop(0))
    environment = _from_environment(reader.kinds, problems) if reader.trains else []
    recipe = reader.recipe
    if reader.has_nanogpt_config:
        recipe = _as_nanogpt_reads(recipe, [*environment, *reader.flags])
    entries = [*recipe, *environment, *reader.flags]
    if reader.trains:
        from finetune.config import mirror  # other commands start sooner without it

        entries = mirror.fetch_out_dir(entries, problems)
        entries = run_directory.complete(entries, bool(reader.recipe), problems)
    return entries, reader.sources


def _as_nanogpt_reads(recipe: list[Entry], others: list[Entry]) -> list[Entry]:
    """The entries of a recipe with nanoGPT's defaults of the keys that it lacks, and without those that nanoGPT does
    not read. `others` are given beside it."""
    schedule = nanogpt_config.SCHEDULE
    if nanogpt_config.is_constant({entry.key: entry.text or "" for entry in [*recipe, *others]}):
        recipe = [entry for entry in recipe if not (entry.key in schedule and ".py:" in entry.origin)]
        schedule = nanogpt_config.WITHOUT_DECAY
    named = {entry.key for entry in recipe}
    missing = {key: text for key, text in (nanogpt_config.DEFAULTS | schedule).items() if key not in named}
    return [*(Entry(key, text, nanogpt_config.ORIGIN) for key, text in missing.items()), *recipe]


class Reader:
    """Arguments that are not read yet, and what was found in those before."""

    def __init__(self, cls: type[DataclassInstance], remaining: list[str], problems: list[str]) -> None:
        self.remaining, self.problems = remaining, problems
        self.kinds: dict[str, Any] = typing.get_type_hints(cls)
        self.fields = {field.name for field in dataclasses.fields(cls)}
        self.trains = issubclass(cls, Recipe)
        self.recipe: list[Entry] = []
        self.flags: list[Entry] = []
        self.sources: list[str] = []
        self.has_nanogpt_config = False
        self.only_positional = False
        self.target_key = self.target = ""  # out_dir or dataset, if it was an argument without a flag

    @property
    def names(self) -> list[str]:
        return [name for name in self.kinds if name in self.fields and name != "sources"]

    def read(self, arg: str) -> None:
        short = arg[1:].partition("=")[0]
        if self.only_positional:
            self._read_positional(arg)
        elif arg == "--":
            self.only_positional = True
        elif arg.startswith("--"):
            self._read_flag(arg)
        elif SHORT_FLAG.fullmatch(arg):
            self.problems.append(f"unknown flag {shown(arg)}." + nearest(short, [*self.names, "config"], "--"))
            self._skip_value(arg)
        elif arg.startswith(DASHES):
            self.problems.append(f"{shown(arg)}: begins with a long dash, not with --; type the flag again")
            self._skip_value(arg)
        else:
            self._read_positional(arg)

    def _read_flag(self, arg: str) -> None:
        word, equals, text = arg.partition("=")
        name = word[2:].replace("-", "_").lower()
        positive = name.removeprefix("no_")
        if name in self.names:
            value = text if equals else self._take_value(word, name)
            if value is not None and name == self.target_key:
                self._set_target(name, value, is_flag=True)
            elif value is not None:
                self.flags.append(Entry(name, value, f"--{name}"))
        elif name in RECIPE_FLAGS:
            value = text if equals else self._take_value(word, name)
            if value is not None:
                self._read_recipe(value)
        elif name != positive and self._is_switch(positive):
            if equals:
                self.problems.append(f"{word}: takes no value; write --{positive}=true or --{positive}=false")
            self.flags.append(Entry(positive, "false", f"--{positive}"))
        else:
            said = text if equals else self.remaining[0] if self.remaining else "true"
            self.problems.append(f"unknown flag {shown(word)}." + nearest(name, [*self.names, "config"], "--", said))
            self._skip_value(arg)

    def _take_value(self, word: str, name: str) -> str | None:
        """The argument after a flag without =; None, with a problem, if there is none."""
        following = self.remaining[0] if self.remaining else "--"
        if self._is_switch(name):
            is_value = following.lower() in {*BOOLEANS, *_choices(self.kinds[name])}
            return self.remaining.pop(0) if is_value else "true"
        if following.startswith("="):
            self.problems.append(f"{word}: write {word}=VALUE, without a space before =")
            del self.remaining[: 2 if following == "=" else 1]
            return None
        if self._is_flag(following):
            kind = describe_type(self.kinds[name], short=True) if name in self.kinds else "RECIPE"
            kind = "USER/NAME" if name == "push_to_hub" else kind
            self.problems.append(f"{word}: has no value; write {word}={kind}")
            return None
        return self.remaining.pop(0)

    def _skip_value(self, arg: str) -> None:
        """Pass over the value of an unknown flag, which would be another problem."""
        if "=" not in arg and self.remaining and not self._is_flag(self.remaining[0]):
            self.remaining.pop(0)

    def _is_flag(self, arg: str) -> bool:
        """Whether an argument cannot be the value of the flag before it. -1 and "- a" are values."""
        return arg == "--" or bool(SHORT_FLAG.fullmatch(arg)) or bool(re.match(r"--[A-Za-z]", arg))

    def _is_switch(self, name: str) -> bool:
        kind = self.kinds.get(name)
        return name in self.fields and (kind is bool or bool in typing.get_args(kind) or "true" in _choices(kind))

    def _read_positional(self, arg: str) -> None:
        arg, following = expand_home(arg), self.remaining[0] if self.remaining else ""
        if (
            not self.only_positional
            and arg.lower() in self.names
            and following.startswith("=")
            and not os.path.lexists(arg)
        ):
            value = following[1:] or (self.remaining[1] if self.remaining[1:] else "VALUE")
            self.problems.append(f"{arg}: write {quote(f'{arg}={value}')}, without spaces around =")
            del self.remaining[: 1 if following[1:] else 2]
            return
        pair = None if self.only_positional or os.path.lexists(arg) else PAIR.fullmatch(arg)
        if pair and ("sources" not in self.fields or pair[1].lower() in self.names):
            self._read_flag(f"--{arg}")
        elif "sources" in self.fields:
            self.sources.append(arg)
        elif problem := problem_of_name(arg):
            self.problems.append(problem)
        elif not self.trains and "out_dir" in self.names and run_directory.is_file_of_run(arg):
            self._set_target("out_dir", str(Path(arg).parent))
        elif arg.endswith(SUFFIXES):
            self._read_recipe(arg)
        elif self.trains:
            self._read_recipe_or_dataset(arg)
        elif "out_dir" in self.names:
            is_model = "init_from" in self.names and Path(arg).is_file()
            self._set_target("init_from" if is_model else "out_dir", arg)
        else:
            self._read_recipe(arg)

    def _read_recipe(self, name: str) -> None:
        if problem := problem_of_name(name):
            self.problems.append(problem)
            return
        try:
            path = find_recipe(expand_home(name))
        except UsageError as error:
            self.problems.append(str(error))
            return
        self.has_nanogpt_config |= path.suffix == ".py"
        self.recipe += read_recipe(str(path), self.problems)

    def _read_recipe_or_dataset(self, arg: str) -> None:
        is_recipe = arg in recipe_names()
        is_data = Path(arg, "train.bin").exists() or Path(arg).is_file() or Path(arg).is_fifo()
        if is_recipe and is_data:
            ways = f"--config={arg} is the recipe, --dataset={arg} the data"
            self.problems.append(f"{arg}: is a recipe that comes with finetune, and data that are here; {ways}")
        elif is_recipe:
            self._read_recipe(arg)
        elif Path(arg, run_directory.RECIPE).is_file() and not run_directory.is_run(arg):
            self._read_recipe(arg)  # which refuses it, with the file's name
        elif run_directory.is_run(arg):
            self.problems.append(f"{arg}: {run_directory.how_to_go_on(arg)}")
        elif is_data or Path(arg).is_dir() or Path("data", arg, "train.bin").exists() or "," in arg:
            self._set_target("dataset", arg)
        else:
            before = len(self.problems)
            self._read_recipe(arg)
            self.problems[before:] = [
                f"{problem}{'' if problem.endswith('?') else '.'} Data are given as --dataset={arg}"
                for problem in self.problems[before:]
            ]

    def _set_target(self, key: str, arg: str, is_flag: bool = False) -> None:
        given = self.target or next((str(flag.text) for flag in self.flags if flag.key == key), "")
        if given:
            self.problems.append(
                f"{arg}: {key} is given already, as {given}{self._way_of_second(key, given, arg, is_flag)}"
            )
            return
        self.target_key, self.target = key, arg
        self.flags.append(Entry(key, arg, f"--{key}"))

    def _way_of_second(self, key: str, given: str, arg: str, is_flag: bool) -> str:
        """The end of a message about a second argument without a flag: the flag that it was meant for."""
        if key == "dataset":
            return f"; several are given as --dataset={given},{arg}"
        other = given if Path(arg).is_dir() and not Path(given).is_dir() else arg
        if (other == arg) == is_flag:  # it has its flag
            return ""
        kinds = [("to", True), ("dataset", os.path.lexists(other)), ("start", "prompts" in self.names)]
        flag = next((name for name, fits in kinds if fits and name in self.names), None)
        return f"; give {quote(f'--{flag}={other}')}" if flag and key in ("out_dir", "init_from") else ""


def _choices(kind: object) -> tuple[Any, ...]:
    """The words of a Literal, also inside a union."""
    if typing.get_origin(kind) is typing.Literal:
        return typing.get_args(kind)
    return tuple(word for part in typing.get_args(kind) for word in _choices(part))


def _from_environment(names: typing.Collection[str], problems: list[str]) -> list[Entry]:
    """FINETUNE_KEY of each key. A variable that is nearly one is a problem; all others belong to somebody else."""
    entries = []
    for variable, text in sorted(os.environ.items()):
        name = variable.removeprefix(PREFIX).lower()
        if not variable.startswith(PREFIX):
            continue
        if name in names:
            entries.append(Entry(name, text, variable))
        elif close := similar(name, names, cutoff=0.8):
            meant, equals, value = spelled(close, text).partition("=")
            problems.append(f"{variable}: no key has this name. Did you mean '{PREFIX}{meant.upper()}{equals}{value}'?")
    return entries
