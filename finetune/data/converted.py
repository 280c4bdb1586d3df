"""Documents of word processors and the like as text."""

from __future__ import annotations

from pathlib import Path

SUFFIXES = (".docx",)


def is_installed() -> bool:
    return False


def to_text(path: Path) -> str:
    raise NotImplementedError
