"""Paths as people type them: `~`, and several separated by commas."""

from __future__ import annotations

import os
from pathlib import Path

# options that hold a path, of every command
KEYS = frozenset(
    "out_dir init_from dataset tokenizer to baseline general val keep_split launch prompts out no_worse_than".split()
)


def expand_home(text: str) -> str:
    """The path, or the paths, with `~` at the beginning as the home directory; a file of that name stays."""
    if "~" not in text or os.path.lexists(text):
        return text
    return ",".join(part if os.path.lexists(part) else os.path.expanduser(part) for part in text.split(","))


def split_paths(text: str | None) -> list[str]:
    """The paths in a text, separated by commas. What exists, here or under data/, is one path in spite of a comma."""
    found, parts = [], text.split(",") if text else []
    while parts:
        ends = range(len(parts), 1, -1)
        end = next((n for n in ends if _exists(",".join(parts[:n]).strip())), 1)
        found.append(",".join(parts[:end]).strip())
        parts = parts[end:]
    return found


def _exists(path: str) -> bool:
    return os.path.lexists(path) or Path("data", path).exists()
