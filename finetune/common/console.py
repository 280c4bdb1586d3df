"""Standard output and error that no reader, disk, terminal or encoding can break a command with."""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import TextIO

from finetune.common.errors import Failure

READER_GONE = (errno.EPIPE, errno.EIO, errno.ECONNRESET, errno.ESHUTDOWN)  # EIO: of a terminal that was closed


class Console(io.TextIOWrapper):
    """A standard stream. What its encoding lacks is written as ?; when its reader is gone, the rest goes nowhere. A
    full disk raises Failure."""

    goes_on = False  # also when it cannot be written, as on a full disk
    warned = False  # that it cannot
    gone = False  # its reader

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as error:
            self._lost(error)
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            self._lost(error)

    def _lost(self, error: OSError) -> None:
        if error.errno in READER_GONE:
            self.gone = True
            discard(self.fileno())
            return
        problem = f"standard output cannot be written: {error.strerror}"
        if not self.goes_on:
            raise Failure(problem, 1, alone=True) from None
        if not self.warned and self is not sys.stderr:
            self.warned = True
            print(f"{problem}; its lines are lost until it can", file=sys.stderr)


def open_streams() -> None:
    """Make standard output and error Consoles, and open what the caller closed (`>&-`) as an empty file: the next file
    that is opened would get its number."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdin = sys.stdin or open(0, encoding="utf-8", closefd=False)
    if sys.stdout is sys.__stdout__:  # not what a notebook or a test put there
        sys.stdout = _console(sys.stdout, 1)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _console(sys.stderr, 2)
        sys.stderr.goes_on = True


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a standard stream is a terminal. A program without a console has None in its place, and what people put
    there, to keep a copy in a file, may have `write` and `flush` alone."""
    ask = getattr(stream, "isatty", None)
    return bool(ask and ask())


def encodable(text: str) -> str:
    """The text with ? for what the encoding of standard output lacks, which need not be a Console."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, "replace").decode(encoding)


def go_on_without_output() -> None:
    """Let a full disk that standard output is a file on lose lines only, not the work."""
    if isinstance(sys.stdout, Console):
        sys.stdout.goes_on = True


def end_unread() -> None:
    """End a command that only writes to standard output, once nobody reads that; training goes on."""
    if isinstance(sys.stdout, Console) and sys.stdout.gone and not sys.stdout.goes_on:
        sys.exit(0)


def write_out() -> Failure | None:
    """Write what is left in standard output; return why that failed. Python says nothing more of it when it ends."""
    try:
        sys.stdout.flush()
    except Failure as failure:
        discard(1)
        return failure
    return None


def discard(number: int) -> None:
    """Make the file of this number one that takes everything."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, number)
    os.close(nowhere)


def _console(stream: TextIO | None, number: int) -> Console:
    errors = "backslashreplace" if number == 2 else "replace"
    if stream is None:
        return Console(open(number, "wb", closefd=False), encoding="utf-8", errors=errors)
    line_buffering = number == 2 or stream.isatty()
    return Console(stream.buffer, encoding=stream.encoding, errors=errors, line_buffering=line_buffering)
