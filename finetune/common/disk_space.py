"""What a run takes of a disk, and what is free there."""

from __future__ import annotations

import shutil
from pathlib import Path


def used_bytes(out_dir: str | Path) -> int:
    """Bytes of the checkpoints in `out_dir`."""
    folders = [Path(out_dir) / "best", Path(out_dir) / "last"]
    return sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())


def free_bytes(out_dir: str | Path) -> int:
    return shutil.disk_usage(out_dir).free


def nearest_directory(path: str | Path) -> Path:
    """The directory `path`, or the nearest one above it that exists."""
    path = Path(path).resolve()
    return next(place for place in (path, *path.parents) if place.is_dir())
