"""One run or one preparation at a time in a directory."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from collections.abc import Generator
from pathlib import Path

from filelock import FileLock, Timeout

from finetune.common.errors import Failure, UsageError
from finetune.common.files import sweep
from finetune.common.machine import sync

_held: dict[Path, tuple[int, int]] = {}  # device and number of the locks of this process, by their directory


@contextlib.contextmanager
def lock(out_dir: str | Path) -> Generator[None]:
    """Hold `out_dir` for one run; the kernel frees the lock however the process ends. Raises UsageError if another run
    holds it or it cannot be written. If nothing was written in the block, a new `out_dir` is removed again."""
    out_dir = Path(out_dir)
    new = [folder for folder in (out_dir, *out_dir.parents) if not folder.is_dir()]
    path = out_dir / ".lock"
    is_first = not path.exists()
    try:
        if new:
            out_dir.mkdir(parents=True)
            sync(out_dir.parent)
        held = FileLock(path, timeout=0).acquire()
    except Timeout:
        owner = "another run"
        with contextlib.suppress(OSError):  # Windows lets nobody else read a locked file
            owner = path.read_text(encoding="utf-8").strip() or owner
        raise UsageError(f"out_dir {out_dir}: is in use by {owner}; end that run or choose another out_dir") from None
    except OSError as error:
        raise UsageError(f"out_dir {out_dir}: cannot be written: {error.strerror}") from None
    with held:
        owner = f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%H:%M:%S')}\n"
        with contextlib.suppress(PermissionError):  # Windows: not even through a second handle of the owner
            path.write_text(owner, encoding="utf-8")
        for folder in (out_dir, out_dir / "last"):
            sweep(folder)
        _held[out_dir] = _identity(path)
        try:
            yield
        except UsageError:
            if is_first and sys.platform != "win32":  # which deletes no open file
                path.unlink(missing_ok=True)
            raise
        finally:
            _held.pop(out_dir, None)
            _remove_empty(new)


def check_held(out_dir: str | Path) -> None:
    """Raise Failure if a directory is no longer the one that `lock` holds here: what is written there would be half a
    run, or would mix with another one."""
    path, held = Path(out_dir) / ".lock", _held.get(Path(out_dir))
    if held is not None and (not path.exists() or _identity(path) != held):
        problem = "was moved or deleted, or taken by another run, while this one wrote to it"
        raise Failure(
            f"out_dir {out_dir}: {problem}; --init_from=resume with the --out_dir where it is now continues", 1
        )


def _identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino


def _remove_empty(folders: list[Path]) -> None:
    """Remove directories, innermost first, as far as they hold nothing but a lock."""
    with contextlib.suppress(OSError):  # Windows deletes no open file
        if folders and os.listdir(folders[0]) == [".lock"]:
            (folders[0] / ".lock").unlink()
        for folder in folders:
            folder.rmdir()


def is_locked(out_dir: str | Path) -> bool:
    """Whether a run holds `out_dir`; False if the lock is not writable."""
    path = Path(out_dir) / ".lock"
    try:
        if path.is_file():  # FileLock would create it
            FileLock(path, timeout=0).acquire().lock.release()
    except OSError as error:
        return isinstance(error, Timeout)
    return False
