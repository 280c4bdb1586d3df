"""Files in memory that must not shrink while they are read."""

from __future__ import annotations

import mmap
from pathlib import Path

from finetune.common.errors import Failure


def map_file(path: str | Path) -> mmap.mmap:
    """A file in memory, to be checked by `check_mapped`. Another file that gets its name does not change it."""
    with open(path, "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def check_mapped(mapped: object, name: str) -> None:
    """Raise Failure if a mapped file has been cut: reading beyond its end would kill the process without a word."""
    if isinstance(mapped, mmap.mmap) and mapped.size() < len(mapped):
        problem = f"was cut from {len(mapped):,} to {mapped.size():,} bytes while it was read"
        raise Failure(f"{name} {problem}; start again", 1, alone=True)
