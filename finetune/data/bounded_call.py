"""Calls that what came with a model decides, such as the rendering of a chat template, in a process of its own with
bounds: a few characters of Jinja can ask for more time and memory than any machine has."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import psutil

from finetune.common.errors import first_line

T = TypeVar("T")


class Ended(ValueError):
    """Something else than its bounds ended the child."""


CPU_SECONDS, MORE_BYTES = 5, 1 << 30  # a usual rendering takes a millisecond and some KB
DEADLOCK_SECONDS = 60  # of a child that waits for a lock which another thread held
NO_MEMORY = 3  # an exit code
TOO_LARGE = f"it takes more than {MORE_BYTES / 1e9:.0f} GB of memory"

_lock = threading.Lock()
_children: dict[int, tuple[int, Connection]] = {}  # the child of this process, by the id of this one


def call(function: Callable[..., T], *arguments: Any) -> T:
    """`function(*arguments)`, made by a child that stays for the next call; both go through a pipe. Raises ValueError
    if it needs more than the bounds, and with the first line of any error. Where there is no fork, it is made here."""
    if not hasattr(os, "fork"):
        return function(*arguments)
    request = function, arguments, CPU_SECONDS
    with _lock:
        try:
            is_done, result = _ask(request)
        except Ended:  # perhaps before it was asked
            is_done, result = _ask(request)
    if not is_done:
        raise ValueError(result)
    return result


def _ask(request: tuple[Any, ...]) -> tuple[bool, Any]:
    child, pipe = _children.get(os.getpid()) or _start()
    began = time.monotonic()
    try:
        pipe.send(request)
        return pipe.recv()
    except BaseException as error:  # after Ctrl-C, what the child still says is not the answer to the next call
        del _children[os.getpid()]
        pipe.close()
        if not isinstance(error, EOFError | OSError):
            raise
    try:
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    except ChildProcessError:  # this process ignores SIGCHLD, or waits for all children elsewhere
        code = -signal.SIGPROF if time.monotonic() - began > CPU_SECONDS else None
    if code in (-signal.SIGPROF, -signal.SIGALRM):
        return False, f"it takes more than {CPU_SECONDS} seconds"
    if code == NO_MEMORY:
        return False, TOO_LARGE
    raise Ended(f"its process ended with signal {-code}" if code and code < 0 else "its process ended")


def _start() -> tuple[int, Connection]:
    ours, theirs = Pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads; the child uses none
        child = os.fork()
    if not child:
        try:
            _answer(theirs)
        except MemoryError:  # for a question or an answer
            os._exit(NO_MEMORY)
        finally:
            os._exit(0)
    theirs.close()
    _children[os.getpid()] = child, ours
    return _children[os.getpid()]


def _answer(pipe: Connection) -> None:
    """What the child does until its parent is gone."""
    import resource

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends first
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGALRM, signal.SIGPROF):
        signal.signal(number, signal.SIG_DFL)
    os.closerange(3, pipe.fileno())  # the locks of the parent, and its end of the pipe
    os.closerange(pipe.fileno() + 1, 1 << 20)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError, ValueError):  # macOS has no such limit
        most = psutil.Process().memory_info().vms + MORE_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))
    while True:
        function, arguments, seconds = pipe.recv()
        signal.alarm(DEADLOCK_SECONDS)
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            answer = True, function(*arguments)
        except MemoryError:
            answer = False, TOO_LARGE
        except Exception as error:
            answer = False, first_line(error)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
        pipe.send(answer)
