"""Progress bars: a widget in a notebook, a line on a terminal, nothing elsewhere."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Generator
from typing import TYPE_CHECKING, Any, TextIO

from finetune.common.console import is_terminal

if TYPE_CHECKING:
    from tqdm import tqdm


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook, which shows bars although its output is no terminal."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return shell is not None and "IPKernelApp" in shell.config


def progress(*args: Any, disable: bool | None = None, **options: Any) -> tqdm:
    """A bar with the arguments of tqdm; `disable=True` hides it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # without ipywidgets the bar is a line of text
        from tqdm.auto import tqdm
    if disable is None:
        disable = not (in_notebook() or is_terminal(sys.stderr))
    return tqdm(*args, disable=disable, **options)


class LinesAbove:
    """A terminal with a bar at the bottom: what anyone prints appears above it, in whole lines."""

    def __init__(self, stream: TextIO, bar: tqdm) -> None:
        self.stream, self.bar, self.unfinished = stream, bar, ""

    def write(self, text: str) -> int:
        with self.bar.get_lock():  # trackers print from threads
            lines, newline, self.unfinished = (self.unfinished + text).rpartition("\n")
            if newline:
                with self.bar.external_write_mode(file=self.bar.fp):
                    self.stream.write(lines + newline)
                    self.stream.flush()
        return len(text)

    def finish(self) -> None:
        self.stream.write(self.unfinished)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextlib.contextmanager
def lines_above(bar: tqdm) -> Generator[None]:
    """Inside this block whatever is printed to a terminal appears above the bar."""
    before = sys.stdout, sys.stderr
    above = [LinesAbove(stream, bar) if is_terminal(stream) else stream for stream in before]
    sys.stdout, sys.stderr = above  # pyrefly: ignore[bad-assignment]
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        for stream in above:
            if isinstance(stream, LinesAbove):
                stream.finish()
