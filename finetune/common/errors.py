"""Errors that end a command without a traceback."""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Generator
from typing import Any

from finetune.common.formatting import printable


class _Shown(Exception):
    """An error whose message says it all: a notebook shows it without a traceback."""

    def _render_traceback_(self) -> list[str]:  # IPython calls it
        return [f"{type(self).__name__}: {self}"]


class UsageError(_Shown, ValueError):
    """A mistake in the user's recipe, data or arguments, one line per problem. The command ends with exit code 2. As of
    a Failure, `alone` says which rank prints it."""

    def __init__(self, message: str = "", alone: bool = False) -> None:
        super().__init__(message)
        self.alone = alone


class Failure(_Shown):
    """Runtime failure with an exit code. Rank 0 and the first rank of each node print it; if `alone`, the rank that
    raises it does."""

    def __init__(self, message: str, code: int, alone: bool = False) -> None:
        super().__init__(message)
        self.code, self.alone = code, alone

    def __reduce__(self) -> tuple[type[Failure], tuple[str, int, bool], dict[str, Any]]:
        """What pickle makes it of: a pool of processes passes it on."""
        return type(self), (str(self), self.code, self.alone), self.__dict__


@contextlib.contextmanager
def disk_errors() -> Generator[None]:
    """Context of a write by tokenizers, which raises a plain Exception when the disk is full: an OSError here."""
    try:
        yield
    except Exception as error:
        found = re.fullmatch(r"(.*) \(os error (\d+)\)", str(error))
        if not found:
            raise
        raise OSError(int(found[2]), found[1]) from None


@contextlib.contextmanager
def full_disk_named(path: str) -> Generator[None]:
    """Context of writes to `path`: an error of a full disk or quota, which names no file, gets its name."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT) and error.filename is None:
            error.filename = path
        raise


def describe_error(error: BaseException) -> str:
    """`ValueError: the first line of its message`."""
    message = printable(str(error).strip().partition("\n")[0])
    return f"{type(error).__name__}: {message}"


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its class if it has none; at most 200 characters."""
    return printable((str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(": ")[:200])
