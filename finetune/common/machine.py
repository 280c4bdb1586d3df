"""The machine that this process runs on."""

from __future__ import annotations

import gc
import os
import platform
import re
import sys
from pathlib import Path


def num_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_name() -> str:
    """The name of the processor, as far as the system tells it."""
    found = re.search(r"model name\s*: (.*)", read_proc("cpuinfo"))
    return found[1] if found else platform.processor() or platform.machine()


def read_proc(name: str) -> str:
    """A file of Linux's /proc; empty if there is none."""
    path = Path("/proc", name)
    return path.read_text(errors="ignore") if path.exists() else ""


def collect_rarely() -> None:
    """Look for garbage after 50,000 new objects, not after Python's 700, and rarely among old ones. The imports of a
    run make a million objects that stay, and looking through them took a sixth of their time."""
    gc.set_threshold(50_000, 20, 10)


def drop_stray_ranks() -> None:
    """Forget a RANK that no launcher has given to this process: one comes with the size of its group and an address."""
    given = [name for name in ("RANK", "LOCAL_RANK") if name in os.environ]
    lacks = [name for name in ("WORLD_SIZE", "MASTER_ADDR") if not os.environ.get(name)]
    if given and lacks:
        for name in given:
            del os.environ[name]
        print(f"{' and '.join(given)} without {' and '.join(lacks)}: left by a launcher, ignored", file=sys.stderr)


def sync(path: str | Path) -> None:
    """Wait until a file, or the names in a directory, are on disk."""
    on_windows = sys.platform == "win32"  # opens no directory, and syncs only what is open for writing
    if on_windows and os.path.isdir(path):
        return
    handle = os.open(path, os.O_RDWR if on_windows else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
