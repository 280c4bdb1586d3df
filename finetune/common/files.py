"""Crash-safe files: a file or directory appears complete or not at all."""

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
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

from finetune.common.errors import UsageError

MANIFEST = "manifest.json"
MAX_JSON, MAX_DEPTH = 1 << 28, 64  # bytes and levels; the largest tokenizer.json of the Hub has 40 MB
CHUNK_BYTES = 1 << 22
PUBLISHED = r"best|iter_\d+|step-\d+"  # directories that `write_directory` writes into an out_dir
UNFINISHED = re.compile(rf"\.tmp-({PUBLISHED})-(\d+|old)|\.old-({PUBLISHED})")


@contextlib.contextmanager
def replacing(path: str | Path) -> Generator[Path]:
    """A temporary path beside `path`. When the block ends, the file written there is synced and replaces `path`; after
    an error `path` is as before."""
    path = Path(path)
    work = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    try:
        yield work
        sync(work)
        os.replace(work, path)
        sync(path.parent)
    finally:
        work.unlink(missing_ok=True)


def write_file(path: str | Path, content: str | bytes) -> None:
    """Write a file, complete or not at all."""
    with replacing(path) as work:
        work.write_bytes(content.encode() if isinstance(content, str) else content)


def write_directory(target: str | Path, fill: Callable[[Path], object]) -> None:
    """Replace `target` by the directory that `fill(directory)` writes. It is on disk when this returns. Raises OSError,
    and then nothing has changed."""
    target = Path(target)
    work = target.parent / f".tmp-{target.name}-{os.getpid()}"
    shutil.rmtree(work, ignore_errors=True)
    try:
        work.mkdir(parents=True)
        fill(work)
        found = sorted(work.rglob("*"))
        entries = {str(path.relative_to(work)): _manifest_entry(path) for path in found if path.is_file()}
        for path in found:  # directories too: they hold the names of the files
            sync(path)
        write_json(work / MANIFEST, {"format": 1, "files": entries})
        sync(work / MANIFEST)
        sync(work)
        if target.exists():
            exchange(work, target)
        else:
            os.rename(work, target)
        sync(target.parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)  # after an exchange: the old directory


@contextlib.contextmanager
def temporary_directory(out_dir: str | Path) -> Generator[Path]:
    """A directory in `out_dir`, which is made if needed; removed when the block ends. Raises UsageError."""
    try:
        Path(out_dir).mkdir(parents=True, exist_ok=True)
        work = tempfile.TemporaryDirectory(prefix=".tmp-", dir=out_dir, ignore_cleanup_errors=True)
    except OSError as error:
        raise UsageError(f"out_dir {out_dir}: cannot be written: {error.strerror}") from None
    with work as name:
        yield Path(name)


def files_in_manifest(directory: str | Path) -> list[str]:
    """The names of the files that `write_directory` put into a directory; [] without a manifest."""
    try:
        return sorted(read_json(Path(directory) / MANIFEST)["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return []


def find_damage(directory: str | Path) -> str | None:
    """How a directory differs from its manifest; None if it does not."""
    try:
        for name, wanted in read_json(Path(directory) / MANIFEST)["files"].items():
            path = Path(directory) / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != wanted["bytes"]:
                return f"{name} has {path.stat().st_size:,} bytes instead of {wanted['bytes']:,}"
            if _manifest_entry(path) != wanted:
                return f"{name} is not what was written (its sha256 differs)"
    except FileNotFoundError:
        return f"it has no {MANIFEST}, so it was never finished"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"its {MANIFEST} is not readable"
    return None


@contextlib.contextmanager
def lock(out_dir: str | Path) -> Generator[None]:
    """Hold `out_dir` for one run; the kernel frees the lock however the process ends. Raises UsageError if another run
    holds it or it cannot be written. After a UsageError in the block, a new `out_dir` is removed again."""
    out_dir = Path(out_dir)
    is_new, path = not out_dir.is_dir(), out_dir / ".lock"
    try:
        if is_new:
            out_dir.mkdir(parents=True)
            sync(out_dir.parent)
        held = FileLock(path, timeout=0).acquire()
    except Timeout:
        owner = "another run"
        with contextlib.suppress(PermissionError):  # Windows lets nobody else read a locked file
            owner = path.read_text(encoding="utf-8").strip() or owner
        raise UsageError(f"out_dir {out_dir}: is in use by {owner}; end that run or choose another out_dir") from None
    except OSError as error:
        raise UsageError(f"out_dir {out_dir}: cannot be written: {error.strerror}") from None
    with held:
        owner = f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%H:%M:%S')}\n"
        with contextlib.suppress(PermissionError):  # Windows: not even through a second handle of the owner
            path.write_text(owner, encoding="utf-8")
        sweep(out_dir)
        try:
            yield
        except UsageError:
            if is_new and os.listdir(out_dir) == [".lock"]:
                with contextlib.suppress(PermissionError):  # Windows deletes no open file
                    path.unlink()
                    os.rmdir(out_dir)
            raise


def is_locked(out_dir: str | Path) -> bool:
    """Whether a run holds `out_dir`; False if the lock is not writable."""
    path = Path(out_dir) / ".lock"
    try:
        if path.is_file():  # FileLock would create it
            FileLock(path, timeout=0).acquire().lock.release()
    except OSError as error:
        return isinstance(error, Timeout)
    return False


def sweep(out_dir: str | Path) -> None:
    """Remove the unfinished checkpoints of a crashed run, and put back one that `exchange` moved away. Other names are
    not touched, because `out_dir` may hold files of the user."""
    for folder in (Path(out_dir), Path(out_dir) / "last"):
        for path in folder.glob(".old-*"):
            target = folder / path.name.removeprefix(".old-")
            if UNFINISHED.fullmatch(path.name) and not target.exists():
                os.rename(path, target)
        for path in folder.glob(".*"):
            if path.is_dir() and UNFINISHED.fullmatch(path.name):
                shutil.rmtree(path, ignore_errors=True)


def sweep_target(target: Path) -> None:
    """Remove the unfinished directories that killed processes left of `write_directory(target)`."""
    for path in target.parent.glob(f".tmp-{target.name}-*"):
        owner = path.name.rpartition("-")[2]
        if owner.isdecimal() and path.is_dir() and not psutil.pid_exists(int(owner)):
            shutil.rmtree(path, ignore_errors=True)


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


def remove(directory: Path) -> None:
    """Delete a directory of `write_directory` in one step, so that it is never half there."""
    trash = directory.parent / f".tmp-{directory.name}-old"
    os.rename(directory, trash)
    sync(directory.parent)
    shutil.rmtree(trash, ignore_errors=True)


def exchange(work: Path, target: Path) -> None:
    """Swap two directories in one step on Linux, else in two. After a crash between the two, `sweep` puts the old one
    back from .old-NAME."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
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
    if os.path.getsize(path) > MAX_JSON:
        raise ValueError(f"has more than {MAX_JSON:,} bytes")
    return parse_json(Path(path).read_bytes())


def parse_json(content: bytes) -> Any:
    """The value of some JSON. Raises ValueError, also for one of more than MAX_DEPTH levels."""
    try:
        value = json.loads(content.decode("utf-8"))
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    level, depth = [value], 0
    while level := [one for one in level if isinstance(one, dict | list)]:
        depth += 1
        if depth > MAX_DEPTH:
            raise ValueError("is nested too deeply")
        level = [one for each in level for one in (each.values() if isinstance(each, dict) else each)]
    return value


def read_json_object(path: str | Path) -> dict[str, Any]:
    """The object in a JSON file; {} if there is none that can be read."""
    with contextlib.suppress(OSError, ValueError):
        value = read_json(path)
        return value if isinstance(value, dict) else {}
    return {}


def write_json(path: Path, value: object, ensure_ascii: bool = True) -> None:
    """Write indented JSON, not atomically: into the directory of a `fill`, or to the path of `replacing`."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=ensure_ascii) + "\n", encoding="utf-8")


def read_text(path: str | Path) -> str:
    """The text of a UTF-8 file, without byte order mark and with every line end as \\n. Raises UsageError."""
    try:
        return Path(path).read_text(encoding="utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: byte at offset {error.start:,} is not UTF-8") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from None


def read_chunks(path: str | Path) -> Iterator[bytes]:
    """The bytes of a file, CHUNK_BYTES at a time."""
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def sha256_of(path: str | Path) -> str:
    digest = hashlib.sha256()
    for chunk in read_chunks(path):
        digest.update(chunk)
    return digest.hexdigest()


def _manifest_entry(path: Path) -> dict[str, int | str]:
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}


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
