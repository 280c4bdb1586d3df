"""Large files that are written past the page cache, and summed meanwhile.

Copying a gigabyte into the cache and out of it takes seconds of a core, which training on a CPU lacks; the disk needs
none."""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

CHUNK = 1 << 23  # bytes that are written at a time
DIRECT = getattr(os, "O_DIRECT", 0)  # 0 where there is none


def write_summed(path: Path, parts: Iterable[np.ndarray]) -> str:
    """Write the bytes of some uint8 arrays one after the other; return their sha256. Raises OSError.

    While one chunk is written, which the disk does, another is summed and the next is made."""
    digest, filled = hashlib.sha256(), 0
    pages = [mmap.mmap(-1, CHUNK) for _ in range(2)]  # direct writes want whole pages
    with open(path, "wb", buffering=0) as file, _Thread() as writing:
        _set_direct(file.fileno(), True)
        for part in parts:
            while len(part):
                taken, buffer = part[: CHUNK - filled], np.frombuffer(pages[0], np.uint8)
                np.copyto(buffer[filled : filled + len(taken)], taken)  # lets other threads go on, as slices do not
                filled, part = filled + len(taken), part[len(taken) :]
                if filled == CHUNK:
                    writing.wait()
                    # a handle of its own, as a second Ctrl-C ends the wait for the thread, and closes the file
                    writing.run(_write_and_sum, os.dup(file.fileno()), memoryview(pages[0]), digest)
                    pages.reverse()
                    filled = 0
        writing.wait()
        _set_direct(file.fileno(), False)  # the rest is no whole page
        _write_and_sum(os.dup(file.fileno()), memoryview(pages[0])[:filled], digest)
    return digest.hexdigest()


class _Thread:
    """Makes one call at a time in a thread; in the caller where no thread can be started."""

    def __init__(self) -> None:
        self.thread: threading.Thread | None = None
        self.error: BaseException | None = None

    def __enter__(self) -> _Thread:
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(Exception) if any(error) else contextlib.nullcontext():  # the first counts
            self.wait()

    def run(self, call: Callable[..., object], *given: object) -> None:
        """Begin a call, once `wait` has returned from the one before."""

        def work() -> None:
            try:
                call(*given)
            except BaseException as error:
                self.error = error

        thread = threading.Thread(target=work)
        try:
            thread.start()
        except RuntimeError:
            call(*given)
        else:
            self.thread = thread

    def wait(self) -> None:
        """Wait until the call has ended, and raise its error."""
        if self.thread:
            self.thread.join()
        error, self.thread, self.error = self.error, None, None
        if error:
            raise error


def _write_and_sum(handle: int, content: memoryview, digest: hashlib._Hash) -> None:
    """Write all, and add it to the digest meanwhile, which takes as long. Closes the handle. Raises OSError."""
    try:
        with _Thread() as summing:
            summing.run(digest.update, content)
            _write(handle, content)
    finally:
        os.close(handle)


def _write(handle: int, content: memoryview) -> None:
    """Write all, through the cache if the disk takes it in no other way. Raises OSError."""
    while content:
        try:
            written = os.write(handle, content)
        except OSError:  # which one differs between file systems
            if not _set_direct(handle, False):
                raise
            continue
        if written < len(content):  # a disk that fills up tells why at the next try
            _set_direct(handle, False)
        content = content[written:]


def _set_direct(handle: int, is_direct: bool) -> bool:
    """Choose how to write; return whether that was a change."""
    if not DIRECT:
        return False
    import fcntl  # Windows has none

    flags = fcntl.fcntl(handle, fcntl.F_GETFL)
    if bool(flags & DIRECT) == is_direct:
        return False
    with contextlib.suppress(OSError):  # tmpfs has no direct writes
        fcntl.fcntl(handle, fcntl.F_SETFL, flags ^ DIRECT)
        return True
    return False
