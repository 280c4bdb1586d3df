"""A first rendering of a chat template that came with a model, in a process of its own with bounds: a few characters of
Jinja can ask for more time and memory than any machine has."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Callable

import psutil

CPU_SECONDS, MORE_BYTES = 5, 1 << 30  # a usual template takes a millisecond and some KB
DEADLOCK_SECONDS = 60  # of a child that waits for a lock which another thread held
OUT_OF_MEMORY = 3
tried: set[str] = set()


def try_template(source: str, render: Callable[[], object]) -> None:
    """Call `render` in a child, the first time that this process meets a template. Raises ValueError if it needs more
    than the bounds; its other errors are left to the caller's own rendering. Nothing happens where there is no fork."""
    if source in tried or not hasattr(os, "fork"):
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads; the child uses none
        child = os.fork()
    if not child:
        _render_and_exit(render)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code < 0:
        raise ValueError(f"it takes more than {CPU_SECONDS} seconds for one conversation")
    if code == OUT_OF_MEMORY:
        raise ValueError(f"it takes more than {MORE_BYTES / 1e9:.0f} GB of memory for one conversation")
    tried.add(source)


def _render_and_exit(render: Callable[[], object]) -> None:
    import resource

    code = 0
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(DEADLOCK_SECONDS)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
        most = psutil.Process().memory_info().vms + MORE_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))
        render()
    except MemoryError:
        code = OUT_OF_MEMORY
    except BaseException:  # the caller meets it again
        pass
    finally:
        os._exit(code)
