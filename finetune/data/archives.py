"""Archives."""

from __future__ import annotations

from pathlib import Path


def is_archive(path: Path) -> bool:
    return False


def unpack(path: Path) -> Path:
    raise NotImplementedError


def from_stdin() -> Path:
    raise NotImplementedError
