"""Paths as people type them: `~`, and several separated by commas."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable
from pathlib import Path

# options that hold a path, of every command
KEYS = frozenset(
    "out_dir init_from dataset tokenizer to baseline general val keep_split launch prompts out no_worse_than".split()
)
LISTS = frozenset({"dataset", "val"})  # of KEYS: several paths, separated by commas
QUOTED = re.compile(r"""\s*(["'])(.+?)\1\s*(?:,|$)""")  # a path, and the comma after it


def as_typed(key: str, text: str) -> str:
    """The value of an option that holds a path: without quotes around it, and with `~` as the home directory."""
    if key in LISTS or os.path.lexists(text):
        return expand_home(text)
    quoted = re.fullmatch(r"""(["'])([^"']+)\1""", text)
    return os.path.expanduser(quoted[2] if quoted else text)


def expand_home(text: str) -> str:
    """The path, or the paths, with `~` at the beginning as the home directory; a file of that name stays."""
    if "~" not in text or os.path.lexists(text):
        return text
    return join_paths(part if os.path.lexists(part) else os.path.expanduser(part) for part in split_paths(text))


def split_paths(text: str | None) -> list[str]:
    """The paths in a text, separated by commas. One in quotes may hold commas. What exists, here or under data/, is one
    path in spite of a comma or of quotes."""
    found, rest = [], text or None
    while rest is not None:
        parts = rest.split(",")
        ends = range(len(parts), 0, -1)
        end = next((n for n in ends if _exists(",".join(parts[:n]).strip())), None)
        if end is None and (quoted := QUOTED.match(rest)):
            found.append(quoted[2])
            rest = rest[quoted.end() :] if quoted[0].endswith(",") else None
            continue
        end = end or 1
        found.append(",".join(parts[:end]).strip())
        rest = ",".join(parts[end:]) if parts[end:] else None
    return found


def join_paths(paths: Iterable[str]) -> str:
    """The paths as a text for `split_paths`, where what holds a comma, or has quotes of its own, is quoted."""
    return ",".join(_quote(path) if "," in path or QUOTED.match(path) else path for path in paths)


def _quote(path: str) -> str:
    return f"'{path}'" if '"' in path else f'"{path}"'


def _exists(path: str) -> bool:
    return os.path.lexists(path) or os.path.exists(os.path.join("data", path))


def names_of(text: str | None) -> list[str]:
    """The last name of each path in a text, but for `.` and `..`, which name nothing."""
    return [name for path in split_paths(text) if (name := Path(path).name).strip(".")]


def fixed_part(pattern: str) -> Path:
    """The directory of a pattern before its first part with *, ? or [."""
    parts = Path(pattern).parts
    fixed = next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts) - 1)
    return Path(*parts[:fixed])


def stem_of(path: str) -> str:
    """The last name of a path without its suffix; of `.`, `..` and a pattern that of the directory they mean."""
    path = path.partition("://")[2].partition("?")[0] or path
    is_pattern = glob.has_magic(path) and not os.path.lexists(path)
    found = fixed_part(path) if is_pattern else Path(path)
    return found.stem if found.stem.strip(".") else found.resolve().stem or "texts"
