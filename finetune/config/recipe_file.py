"""Recipe files: flat YAML, read with line numbers and written with comments. `base: small` reads another one first."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import itertools
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from finetune.common.errors import UsageError
from finetune.config import nanogpt_config
from finetune.config.paths import KEYS, LISTS, expand_home, join_paths, split_paths
from finetune.config.recipe_names import find_recipe

if TYPE_CHECKING:
    from yaml import MappingNode, Node

    from finetune.config.recipe import Recipe

MAX_RECIPE_BYTES, MAX_RECIPES = 256 * 1024, 100
SUFFIXES = (".yaml", ".yml", ".py")
SEVERAL = LISTS | {"dataset_weights", "log_with", "require", "metrics", "add_tokens"}  # keys of values with commas
# of a line 'key: value  # comment', in Python 'key = value  # comment'
KEY = re.compile(r"""\s*[\w"']+\s*[:=]""")
QUOTED = re.compile(r"""\s*(?:"(?:[^"\\]|\\.)*"|'(?:[^']|'')*')""")
COMMENT = re.compile(r"\s#\s*(.*)")


class Entry(NamedTuple):
    """A line of a recipe, a variable of the environment, or a flag."""

    key: str
    text: str | None  # None is a YAML null
    origin: str  # 'recipes/x.yaml:3', 'FINETUNE_KEY' or '--key'; empty for a default

    @property
    def is_flag(self) -> bool:
        return self.origin.startswith("--")

    @property
    def in_recipe(self) -> bool:
        return not self.is_flag and self.origin.rpartition(":")[2].isdigit()

    @property
    def place(self) -> str:
        """The beginning of an error message."""
        if self.origin.startswith(("--", "FINETUNE_")) and not self.in_recipe:
            return self.origin
        if not self.origin:
            return self.key
        return f"{self.origin}: {self.key}"


def comments_by_key(origins: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """{key: {"origin", "why"}} for the `origins` of `parse`; `why` is the comment on that line of the recipe."""
    lines: dict[str, list[str]] = {}
    found = {}
    for name, origin in origins.items():
        path, _, number = origin.rpartition(":")
        if path and path not in lines:
            lines[path] = Path(path).read_text(encoding="utf-8").splitlines()
        why = _comment(lines[path][int(number) - 1]) if path else ""
        if why.endswith(" in this run"):  # the value that a key had in another run, written by `dump`
            why = ""
        found[name] = {"origin": origin, "why": why}
    return found


def _comment(line: str) -> str:
    """The comment at the end of a line, found in time linear in its length."""
    key = KEY.match(line)
    value = key and (QUOTED.match(line, key.end()) or key)
    found = COMMENT.search(line, value.end()) if value else None
    return found[1].strip() if found else ""


def read_recipe(
    path: str, problems: list[str], above: tuple[Path, ...] = (), count: Iterator[int] | None = None
) -> list[Entry]:
    """The entries of a flat YAML file, or of a config/*.py of nanoGPT, after those of its `base`; problems are appended
    to `problems`. `above` are the files that name this one as base; `count` counts all. Raises UsageError for too many.
    """
    count = count or itertools.count(1)
    if next(count) > MAX_RECIPES:
        raise UsageError(f"{above[0]}: its bases and theirs are more than {MAX_RECIPES} recipes")
    try:
        if path.endswith(".py"):
            assignments = nanogpt_config.read_assignments(path, _read_text(path), problems)
            return [Entry(name, text, f"{path}:{line}") for name, text, line in assignments]
        root = _compose(path)
    except UsageError as error:
        problems.append(str(error))
        return []
    entries: list[Entry] = []
    bases: list[Entry] = []
    first_lines: dict[str, int] = {}
    for name_node, node in root.value if root else ():
        line, name = name_node.start_mark.line + 1, name_node.value
        place = f"{path}:{line}"
        if not isinstance(name, str):
            problems.append(f"{place}: a key must be a word")
            continue
        if name in first_lines:
            problems.append(f"{place}: key '{name}' is given twice, first in line {first_lines[name]}")
        elif name == "base":
            bases += _read_bases(path, place, node, problems, (*above, Path(path).resolve()), count)
        elif not _is_plain(node):
            problems.append(f"{place}: {name}: expected a single plain value{_with_commas(name, node)}")
        elif name == "auto_batch_size":  # in recipe.yaml of runs before 2026-11-29, after the number in batch_size
            entries += [Entry("batch_size", "auto", place)] if node.value == "true" else []
        else:
            is_null = node.style is None and node.tag == "tag:yaml.org,2002:null"
            entries.append(Entry(name, None if is_null else node.value, place))
        first_lines.setdefault(name, line)
    return [*bases, *entries]


def _with_commas(name: str, node: Node) -> str:
    """The end of a message about a list, of a key that takes several values."""
    values = [each.value for each in node.value if _is_plain(each)] if node.tag.endswith(":seq") else []
    if name not in SEVERAL or not values or any("," in value for value in values):
        return ""
    return f"; several are written with commas: {','.join(values)}"


def _is_plain(node: Node) -> bool:
    return isinstance(node.value, str) and node.tag.startswith("tag:yaml.org,2002:") and "python" not in node.tag


def _read_bases(
    path: str, place: str, node: Node, problems: list[str], above: tuple[Path, ...], count: Iterator[int]
) -> list[Entry]:
    """The entries of the recipes that `base` names, one or a list: files beside this one, or recipes by name."""
    nodes = node.value if isinstance(node.value, list) else [node]
    entries: list[Entry] = []
    for each in nodes:
        if not hasattr(each, "tag") or not _is_plain(each) or not each.value:
            problems.append(f"{place}: base: expected a recipe, or a list of recipes")
            continue
        is_file = each.value.endswith(SUFFIXES) or "/" in each.value
        try:
            found = Path(path).parent / expand_home(each.value) if is_file else find_recipe(each.value)
        except UsageError as error:
            problems.append(f"{place}: base: {error}")
            continue
        if found.resolve() in above:
            problems.append(f"{place}: base: {each.value} leads back to itself; remove one of the two")
        elif found.suffix == ".py":
            problems.append(f"{place}: base: {each.value} is a config of nanoGPT; give it on the command line")
        elif not found.is_file():
            problems.append(f"{place}: base: {found}: no such file" + _nearest_recipe(str(found)))
        else:
            entries += read_recipe(str(found), problems, above, count)
    return entries


def _read_text(path: str) -> str:
    """A recipe as text. Raises UsageError."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise UsageError(f"{path}: cannot be read: it is not a file")
    try:
        with open(path, "rb") as file:
            raw = file.read(MAX_RECIPE_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}" + _nearest_recipe(path)) from None
    if len(raw) > MAX_RECIPE_BYTES:
        raise UsageError(f"{path}: over {MAX_RECIPE_BYTES // 1024} KB, which is no recipe")
    try:
        return raw.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: byte {error.start} is not UTF-8") from None


def _compose(path: str) -> MappingNode | None:
    """The node graph of a recipe, None of an empty file. Nothing is constructed, so that tags cannot run code and
    aliases cannot expand. Raises UsageError."""
    import yaml

    if not path.endswith((".yaml", ".yml")):
        raise UsageError(f"{path}: a recipe is a .yaml file; flags are written --key=value")
    text = _read_text(path)
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except RecursionError:
        raise UsageError(f"{path}: nested too deeply for a recipe") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        if "another document" in str(error):
            raise UsageError(f"{path}{line}: begins a second document of YAML; a recipe is one, without ---") from None
        raise UsageError(f"{path}{line}: not YAML: {getattr(error, 'problem', None) or error}") from None
    if root is not None and not isinstance(root, yaml.MappingNode):
        raise UsageError(f"{path}: a recipe is lines of 'key: value'")
    if root and "distributed_type" in [name.value for name, _ in root.value]:
        ways = f"--launch={path}, or accelerate launch --config_file={path} -m finetune.train RECIPE.yaml"
        raise UsageError(f"{path}: configures accelerate launch and is no recipe; {ways}")
    return root


def _nearest_recipe(path: str) -> str:
    """The end of a message about a recipe that is not there: a similar one, or the first in that folder."""
    found = (str(file) for file in Path(path).parent.glob("*.y*ml") if file.suffix in SUFFIXES)
    recipes = sorted(set(found) - {str(Path(path))})  # it may be there, but not readable
    close = difflib.get_close_matches(path, recipes, n=1) or recipes[:1]
    return f". Did you mean {close[0]}?" if close else ""


def dump(recipe: Recipe, derived: Mapping[str, Any]) -> str:
    """The recipe as YAML that can be read as a recipe. A derived key stays null, with its value in this run as a
    comment, so that it still follows from the other keys."""
    lines = []
    for field in dataclasses.fields(recipe):
        value = getattr(recipe, field.name)
        if value is None:
            note = f"  # {derived[field.name]} in this run" if derived.get(field.name) is not None else ""
            lines.append(f"{field.name}: null{note}")
            continue
        lines.append(f"{field.name}: {scalar(without_parents(field.name, value) if field.name in KEYS else value)}")
    return "\n".join(lines) + "\n"


def is_dumped(path: Path, kind: type[Recipe]) -> bool:
    """Whether a recipe has every key, as one that `dump` wrote."""
    try:
        keys = {line.partition(":")[0] for line in _read_text(str(path)).splitlines()}
    except UsageError:
        return False
    return keys.issuperset(field.name for field in dataclasses.fields(kind))


def edited(path: Path, dumped: str) -> str:
    """A dumped recipe with the comments, and in the order, of the file that it replaces."""
    import yaml

    try:
        before = "" if path.is_symlink() or not path.is_file() else _read_text(str(path))
        lines = {line.partition(":")[0]: line for line in dumped.splitlines()}
        kept = []
        for line in before.splitlines():
            key = line.partition(":")[0]
            if not line.strip() or line.startswith("#"):
                kept.append(line)
            elif key in lines:
                new = lines.pop(key)
                is_same = line == new or (_values(line) == _values(new) and not line.endswith(" in this run"))
                kept.append(line if is_same else new)
        text = "\n".join([*kept, *lines.values()]) + "\n"
        return text if text == dumped or _values(text) == _values(dumped) else dumped
    except (UsageError, ValueError, TypeError, yaml.YAMLError, RecursionError):  # what no run wrote, and no recipe
        return dumped


def _values(text: str) -> dict[str, Any]:
    import yaml

    def number(value: Any) -> Any:
        with contextlib.suppress(ValueError):  # YAML takes 1e-4 for a text
            return float(value) if isinstance(value, str) else value
        return value

    return {key: number(value) for key, value in dict(yaml.safe_load(text)).items()}


def without_parents(key: str, text: str) -> str:
    """The path of a key, or its paths, as a recipe may hold them: absolute where they had `..`."""
    paths = split_paths(text) if key in LISTS else [text]
    paths = [str(Path(path).resolve()) if ".." in Path(path).parts else path for path in paths]
    return join_paths(paths) if key in LISTS else paths[0]


def scalar(value: str | bool | float) -> str:
    """A value as YAML writes it."""
    import yaml

    if isinstance(value, str):
        return yaml.safe_dump(value, default_style='"', width=math.inf).strip()
    return str(value).lower() if isinstance(value, bool) else repr(value)
