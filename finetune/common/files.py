"""Crash-safe files: a directory appears complete or not at all."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import re
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from finetune.common.errors import UsageError

MANIFEST = "manifest.json"
FORMAT = 1
CHUNK_BYTES = 1 << 22


def write_directory(target, fill):
    """Make `target` the directory that `fill(directory)` writes. Until the rename the old one stays as it was; after it
    the new one is safely on disk. Raises OSError, and then nothing has changed."""
    target = Path(target)
    work = target.parent / f".tmp-{target.name}-{os.getpid()}"
    shutil.rmtree(work, ignore_errors=True)
    try:
        work.mkdir(parents=True)
        fill(work)
        found = sorted(work.rglob("*"))
        manifest = {
            "format": FORMAT,
            "files": {str(path.relative_to(work)): sha256_of(path) for path in found if path.is_file()},
        }
        for path in found:  # directories as well: the names in them are theirs to keep
            sync(path)
        (work / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        sync(work / MANIFEST)
        sync(work)
        if target.exists():
            exchange(work, target)
        else:
            os.rename(work, target)
        sync(target.parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)  # after an exchange: what stood there before


def is_written(directory):
    """The names of the files that a directory was published with; those of none when it was not."""
    try:
        with open(Path(directory) / MANIFEST, encoding="utf-8") as file:
            return sorted(json.load(file)["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return []


def find_damage(directory):
    """What is wrong with a published directory, in words, or None when every file is as its manifest says."""
    try:
        with open(Path(directory) / MANIFEST, encoding="utf-8") as file:
            manifest = json.load(file)
        for name, wanted in manifest["files"].items():
            path = Path(directory) / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != wanted["bytes"]:
                return f"{name} has {path.stat().st_size:,} bytes instead of {wanted['bytes']:,}"
            if sha256_of(path) != wanted:
                return f"{name} is not what was written (its sha256 differs)"
    except FileNotFoundError:
        return f"it has no {MANIFEST}, so it was never finished"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"its {MANIFEST} is not readable"
    return None


@contextlib.contextmanager
def lock(out_dir: str | Path) -> Iterator[None]:
    """Hold `out_dir` for one run. Raises UsageError if another run holds it, with that run's name, or if the directory
    cannot be written. A refused run leaves no directory behind.

    The kernel frees the lock however the process ends.
    """
    out_dir = Path(out_dir)
    is_new, path = not out_dir.is_dir(), out_dir / ".lock"
    try:
        if is_new:
            out_dir.mkdir(parents=True)
            sync(out_dir.parent)
        held = FileLock(path, timeout=0).acquire()
    except Timeout:
        owner = path.read_text(encoding="utf-8").strip() or "another run"
        raise UsageError(f"out_dir {out_dir}: is in use by {owner}; end that run or choose another out_dir") from None
    except OSError as error:
        raise UsageError(f"out_dir {out_dir}: cannot be written: {error.strerror}") from None
    with held:
        path.write_text(
            f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%H:%M:%S')}\n", encoding="utf-8"
        )
        sweep(out_dir)
        try:
            yield
        except UsageError:
            if is_new and os.listdir(out_dir) == [".lock"]:
                path.unlink()
                os.rmdir(out_dir)
            raise


def sweep(out_dir):
    """Remove what a crashed run left unfinished; put back a directory that was being replaced where that takes two
    renames. Only names that `publish` gives are touched: the directory may hold other things of the user's."""
    for folder in (Path(out_dir), Path(out_dir) / "last"):
        for path in folder.glob(".old-*"):
            target = folder / path.name.removeprefix(".old-")
            if OURS.fullmatch(target.name) and not target.exists():
                os.rename(path, target)
        for path in folder.glob(".*"):
            if path.is_dir() and (UNFINISHED.fullmatch(path.name) or OURS.fullmatch(path.name.removeprefix(".old-"))):
                shutil.rmtree(path, ignore_errors=True)


OURS = re.compile(r"best|iter_\d+|step-\d+")
UNFINISHED = re.compile(r"\.tmp-(best|iter_\d+|step-\d+)-(\d+|old)")


def used_bytes(out_dir):
    """What the checkpoints in `out_dir` take on disk."""
    folders = [Path(out_dir) / "best", Path(out_dir) / "last"]
    return sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())


def free_bytes(out_dir):
    return shutil.disk_usage(out_dir).free


def remove(directory):
    """Delete a published directory so that no half of it can be taken for a whole one."""
    trash = directory.parent / f".tmp-{directory.name}-old"
    os.rename(directory, trash)
    sync(directory.parent)
    shutil.rmtree(trash, ignore_errors=True)


def exchange(work, target):
    """Swap two directories in one step (Linux), else in two, between which the old one lies at .old-NAME for `clean` to
    put back."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if hasattr(libc, "renameat2"):
            AT_FDCWD, RENAME_EXCHANGE = -100, 2
            if libc.renameat2(AT_FDCWD, os.fsencode(work), AT_FDCWD, os.fsencode(target), RENAME_EXCHANGE) == 0:
                return
    old = target.parent / f".old-{target.name}"
    shutil.rmtree(old, ignore_errors=True)
    os.rename(target, old)
    os.rename(work, target)
    sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def read_json(path: str | Path) -> Any:
    """The value in a JSON file. Raises OSError or ValueError."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def read_json_object(path: str | Path) -> dict[str, Any]:
    """The object in a JSON file; {} if there is none that can be read."""
    try:
        value = read_json(path)
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def write_json(path: Path, value: object, ensure_ascii: bool = True) -> None:
    """Write indented JSON, not atomically: into the directory of a `fill`, or to the path of `replacing`."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=ensure_ascii) + "\n", encoding="utf-8")


def sha256_of(path):
    """{"bytes", "sha256"} of a file."""
    summed, size = hashlib.sha256(), 0
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            summed.update(chunk)
            size += len(chunk)
    return {"bytes": size, "sha256": summed.hexdigest()}


def sync(path):
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
