"""Large files that are written past the page cache, and summed meanwhile.

Copying a gigabyte into the cache and out of it takes seconds of a core, which training on a CPU lacks; the disk needs
none."""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import threading
from collections.abc import Iterable
from pathlib import Path

import numpy as np

CHUNK = 1 << 23  # bytes that are written at a time
DIRECT = getattr(os, "O_DIRECT", 0)  # 0 where there is none


def write_summed(path: Path, parts: Iterable[np.ndarray]) -> str:
    """Write the bytes of some uint8 arrays one after the other; return their sha256. Raises OSError."""
    digest, filled = hashlib.sha256(), 0
    pages = mmap.mmap(-1, CHUNK)  # direct writes want whole pages
    buffer = np.frombuffer(pages, np.uint8)
    with open(path, "wb", buffering=0) as file:
        _set_direct(file.fileno(), True)
        for part in parts:
            while len(part):
                taken = part[: CHUNK - filled]
                np.copyto(buffer[filled : filled + len(taken)], taken)  # lets other threads go on, as slices do not
                filled, part = filled + len(taken), part[len(taken) :]
                if filled == CHUNK:
                    _write_and_sum(file.fileno(), memoryview(pages), digest)
                    filled = 0
        _set_direct(file.fileno(), False)  # the rest is no whole page
        _write_and_sum(file.fileno(), memoryview(pages)[:filled], digest)
    return digest.hexdigest()


def _write_and_sum(handle: int, content: memoryview, digest: hashlib._Hash) -> None:
    """Write all, and add it to the digest meanwhile, which takes as long. Raises OSError."""
    summing = threading.Thread(target=digest.update, args=(content,))
    try:
        summing.start()
    except RuntimeError:  # there are too many threads already
        digest.update(content)
        _write(handle, content)
        return
    try:
        _write(handle, content)
    finally:
        summing.join()


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
