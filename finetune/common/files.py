"""Crash-safe files: a file or directory appears complete or not at all."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import json
import os
import shutil
import socket
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import psutil

from finetune.common.errors import UsageError, full_disk_named
from finetune.common.formatting import unify_newlines
from finetune.common.json_text import parse_json
from finetune.common.machine import sync

MANIFEST = "manifest.json"
MAX_JSON = 1 << 28  # bytes; the largest tokenizer.json of the Hub has 40 MB
MAX_TEXT = 1 << 26  # bytes of a file of prompts
CHUNK_BYTES = 1 << 22
MAKE_TRIES = 100  # of a file in a folder that other processes remove whenever it is empty
# beside what is written: all in it was begun here, as PID@HOST~NAME, or is old~NAME, replaced, or removed~NAME
WORK = ".finetune-tmp"


@contextlib.contextmanager
def replacing(path: str | Path) -> Generator[Path]:
    """A temporary path for the content of `path`. When the block ends, the file written there is synced and replaces
    `path`; after an error `path` is as before."""
    path = Path(path)
    with _working(path, lambda work: os.close(os.open(work, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))) as work:
        yield work
        sync(work)
        os.replace(work, path)
        sync(path.parent)


@contextlib.contextmanager
def _working(target: Path, make: Callable[[Path], object]) -> Generator[Path]:
    """A path on the disk of `target` for its content, where `make(path)` makes a file or directory; removed when the
    block ends. What a killed process left of `target` is removed first. Raises OSError."""
    sweep(target.parent, target.name)
    work = target.parent / WORK / f"{os.getpid()}@{socket.gethostname()}~{target.name}"
    _make_in_folder(work, make)
    try:
        with full_disk_named(str(target)):
            yield work
    finally:
        discard(work, target)
        sweep(target.parent, target.name)


def _make_in_folder(path: Path, make: Callable[[Path], object]) -> None:
    """Make the folder of `path`, then call `make(path)`. Other processes and threads remove the folder whenever it is
    empty. Raises OSError."""
    folder = path.parent
    for tries_left in reversed(range(MAKE_TRIES)):
        try:
            folder.mkdir(exist_ok=True)
            if folder.is_symlink():  # of a directory that came from elsewhere
                raise NotADirectoryError(errno.ENOTDIR, "is a link", str(folder))
            make(path)
            return
        except (FileNotFoundError, FileExistsError):
            if not tries_left or os.path.lexists(path) or not folder.parent.is_dir():
                raise


def write_file(path: str | Path, content: str | bytes) -> None:
    """Write a file, complete or not at all."""
    with replacing(path) as work:
        work.write_bytes(content.encode() if isinstance(content, str) else content)


def write_directory(target: str | Path, fill: Callable[[Path], object], sums: Mapping[str, str] | None = None) -> None:
    """Replace `target` by the directory that `fill(directory)` writes; files in it that were not written so are kept.
    `sums` holds the sha256 of files that `fill` summed while it wrote them. It is on disk when this returns. Raises
    OSError, and then nothing has changed."""
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with _working(target, Path.mkdir) as work:
        fill(work)
        found = sorted(work.rglob("*"))
        paths = {str(path.relative_to(work)): path for path in found if path.is_file()}
        entries = {name: _manifest_entry(path, (sums or {}).get(name)) for name, path in paths.items()}
        for path in found:  # directories too: they hold the names of the files
            sync(path)
        write_json(work / MANIFEST, {"format": 1, "files": entries})
        sync(work / MANIFEST)
        sync(work)
        if files_in_manifest(target):
            exchange(work, target)
        else:  # there is none, or one with files of the user only
            replace_in_two(work, target)
        sync(target.parent)


@contextlib.contextmanager
def temporary_directory(out_dir: str | Path) -> Generator[Path]:
    """A directory on the disk of `out_dir`, which is made if needed; removed when the block ends. Raises UsageError."""
    with contextlib.ExitStack() as stack:
        try:
            Path(out_dir).mkdir(parents=True, exist_ok=True)
            work = stack.enter_context(_working(Path(out_dir, "prepare"), Path.mkdir))
            stack.enter_context(full_disk_named(str(out_dir)))
        except OSError as error:
            raise UsageError(f"out_dir {out_dir}: cannot be written: {error.strerror}") from None
        yield work


def discard(work: Path, target: Path) -> None:
    """Delete what `write_directory(target)` left at `work`. Files that a finished directory's manifest does not list
    belong to the user: they go back into `target`."""
    if not work.is_dir() or work.is_symlink():
        work.unlink(missing_ok=True)
        return
    ours = {*files_in_manifest(work), MANIFEST}
    if len(ours) > 1 or work.name.startswith(("old~", "removed~")):
        for path in sorted(work.rglob("*")):
            place = target / path.relative_to(work)
            is_ours = str(path.relative_to(work)) in ours or (path.is_dir() and not path.is_symlink())
            if not (is_ours or os.path.lexists(place)):
                place.parent.mkdir(parents=True, exist_ok=True)
                os.rename(path, place)
    shutil.rmtree(work, ignore_errors=True)


def files_in_manifest(directory: str | Path) -> list[str]:
    """The names of the files that `write_directory` put into a directory; [] without a manifest."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        manifest = read_json(Path(directory) / MANIFEST)
        return sorted(manifest["files"]) if manifest["format"] == 1 else []
    return []


def sha256_in_manifest(directory: str | Path, name: str) -> str | None:
    """The sha256 of a file as `write_directory` wrote it; None if the manifest does not say."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return read_json(Path(directory) / MANIFEST)["files"][name]["sha256"]
    return None


def find_damage(directory: str | Path, kinds: Iterable[str] = ("*",)) -> str | None:
    """How a directory, or its files of these kinds, differ from its manifest; None if they do not."""
    try:
        listed = read_json(Path(directory) / MANIFEST)["files"].items()
        for name, wanted in [entry for entry in listed if any(map(Path(entry[0]).match, kinds))]:
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


def sweep(directory: str | Path, only: str | None = None) -> None:
    """Remove what killed processes left unfinished in a directory, and put back what `exchange` had moved away. With
    `only`, remove what processes of this machine that are gone left of that target; without, nobody else may write."""
    folder, found = Path(directory, WORK), []
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # removed by another process, or never there
        found = [] if folder.is_symlink() else sorted(folder.iterdir())
    for path in found:
        owner, _, name = path.name.partition("~")
        target = Path(directory, name)
        if only is not None and (name != only or _is_at_work(owner)):
            continue
        if owner == "old" and not target.exists():
            with contextlib.suppress(FileNotFoundError):  # another process was quicker
                os.rename(path, target)
        else:
            discard(path, target)
    with contextlib.suppress(OSError):
        folder.rmdir()


def _is_at_work(owner: str) -> bool:
    """Whether PID@HOST may be a process that still writes."""
    pid, _, host = owner.partition("@")
    if not host or not pid.isdecimal():
        return False
    return host != socket.gethostname() or (int(pid) != os.getpid() and psutil.pid_exists(int(pid)))


def remove(directory: Path) -> None:
    """Delete a directory of `write_directory` in one step, so that it is never half there. Files of the user in it stay
    where they are."""
    trash = directory.parent / WORK / f"removed~{directory.name}"
    discard(trash, directory)
    _make_in_folder(trash, lambda trash: os.rename(directory, trash))
    sync(directory.parent)
    discard(trash, directory)
    with contextlib.suppress(OSError):
        trash.parent.rmdir()


def exchange(work: Path, target: Path) -> None:
    """Swap two directories in one step on Linux, else in two. After a crash between the two, `sweep` puts the old one
    back."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(libc, "renameat2"):
        AT_FDCWD, RENAME_EXCHANGE = -100, 2
        if libc.renameat2(AT_FDCWD, os.fsencode(work), AT_FDCWD, os.fsencode(target), RENAME_EXCHANGE) == 0:
            return
    replace_in_two(work, target)


def replace_in_two(work: Path, target: Path) -> None:
    """Put `work` in the place of `target`, which is moved away first if there is one."""
    if target.exists():
        os.rename(target, work.with_name(f"old~{target.name}"))
    os.rename(work, target)


def read_json(path: str | Path) -> Any:
    """The value in a JSON file. Raises OSError or ValueError."""
    if os.path.getsize(path) > MAX_JSON:
        raise ValueError(f"has more than {MAX_JSON:,} bytes")
    return parse_json(Path(path).read_bytes())


def read_json_object(path: str | Path) -> dict[str, Any]:
    """The object in a JSON file; {} if there is none that can be read."""
    with contextlib.suppress(OSError, ValueError):
        value = read_json(path)
        return value if isinstance(value, dict) else {}
    return {}


def write_json(path: Path, value: object, ensure_ascii: bool = True) -> None:
    """Write indented JSON, not atomically: into the directory of a `fill`, or to the path of `replacing`. Half a
    surrogate pair, which is not UTF-8, becomes an escape of JSON by backslashreplace."""
    text = json.dumps(value, indent=2, ensure_ascii=ensure_ascii) + "\n"
    path.write_text(text, encoding="utf-8", errors="backslashreplace")


def open_append(path: str | Path) -> TextIO:
    """A file to append text to. Raises OSError if a link is in its place."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    return open(os.open(path, flags, 0o666), "a", encoding="utf-8")


def read_text(path: str | Path, most: int = MAX_TEXT) -> str:
    """The text of a UTF-8 file of at most so many bytes, line ends as \\n, no byte order mark. Raises UsageError."""
    try:
        with open(path, "rb") as file:
            content = file.read(most + 1)
        if len(content) > most:
            raise UsageError(f"{path}: has more than {most:,} bytes")
        return unify_newlines(content.decode("utf-8").removeprefix("\ufeff"))
    except UnicodeDecodeError as error:
        way = "as iconv -f UTF-16 does" if error.object[:2] in (b"\xff\xfe", b"\xfe\xff") else "as iconv -f CP1252 does"
        raise UsageError(f"{path}: byte at offset {error.start:,} is not UTF-8; convert it, {way}") from None
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


def _manifest_entry(path: Path, sha256: str | None = None) -> dict[str, int | str]:
    return {"bytes": path.stat().st_size, "sha256": sha256 or sha256_of(path)}
