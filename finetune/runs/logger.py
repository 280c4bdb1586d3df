"""Output of a run: console, progress bar, metrics.jsonl and trackers."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from finetune.common.console import encodable, is_terminal
from finetune.common.files import open_append, write_file
from finetune.common.formatting import duration
from finetune.common.json_output import finite
from finetune.common.progress import in_notebook, lines_above, progress
from finetune.runs.events import Event, events_until, read_metrics
from finetune.runs.trackers import Trackers

if TYPE_CHECKING:
    from tqdm import tqdm

PARTS = ("status", "loss", "best", "speed", "memory", "mfu")  # of the bar; a narrow terminal drops the last ones
ROOM = 3  # columns that stay free, for the ^C of the user's Ctrl-C


class RunLogger:
    """Prints and records the events of a run. `write` is False on ranks other than 0, which print nothing."""

    def __init__(self, out_dir: str | Path, write: bool) -> None:
        self.path = Path(out_dir) / "metrics.jsonl"
        self.write = write
        self.trackers: Trackers | None = None
        self.bar: tqdm | None = None
        self.shown = contextlib.ExitStack()  # the bar, and the streams that write above it
        self.left = ""  # for the bar: the time left
        self.parts: dict[str, str] = {}  # for the bar: what it shows besides, the most important first
        self.file: TextIO | None = None
        self.pending = b""  # lines that the disk has not taken yet
        self.warned = False  # that the disk is full

    def open(
        self, length: int, step: int | None = None, evaluations: Sequence[Event] = (), best: Mapping[str, Any] = {}
    ) -> None:
        """Start the metrics of a run of `length` updates, or continue those of a run resumed at `step`."""
        self.rewrite(step, evaluations)
        self.parts = dict.fromkeys(PARTS, "")
        if best:
            self.parts["best"] = _describe_best(best)
        if self.write and (is_terminal(sys.stderr) or in_notebook()):
            bar = "{bar}" if in_notebook() else "{bar:10}"
            layout = f"{{desc}}iter {{n:,}}/{{total:,}} {bar}{{postfix}}"
            options: dict[str, Any] = {"dynamic_ncols": True, "bar_format": layout, "leave": in_notebook()}
            self.bar = self.shown.enter_context(progress(total=length, initial=step or 0, **options))
            if not in_notebook():
                self.shown.enter_context(lines_above(self.bar))

    def rewrite(self, step: int | None = None, evaluations: Sequence[Event] = ()) -> None:
        """Drop the events after the step that a run was put back to; without a step, drop all."""
        kept = [] if step is None else events_until(read_metrics(self.path), step, evaluations)
        write_file(self.path, "".join(json.dumps(event) + "\n" for event in kept))
        if self.file:
            self.file.close()
        self.file = open_append(self.path)
        if self.trackers and step is not None:
            self.trackers.rewind(step)

    def join(self) -> None:
        """Let a rank other than 0 append to metrics.jsonl if it exists."""
        with contextlib.suppress(OSError):
            if not self.file and self.path.is_file():
                self.append()

    def append(self) -> None:
        """Go on with the file as it is. A line that a crash cut short is ended first. Raises OSError."""
        self.file = open_append(self.path)
        with open(self.path, "rb") as written:
            size = written.seek(0, os.SEEK_END)
            written.seek(max(0, size - 1))
            self.pending = b"" if written.read(1) in (b"", b"\n") else b"\n"

    def print(self, line: str) -> None:
        if not self.write:
            return
        line = encodable(line)
        with contextlib.suppress(OSError):  # no reader, or a full disk: the run goes on
            print(f"{line}\n", end="", flush=True)  # in one write, as other threads print too

    def record(self, event: str, **values: Any) -> None:
        """Append an event to metrics.jsonl in one write, and send it to the trackers. On a full disk lines are
        kept and written with the next event."""
        if event == "best":
            self.parts["best"] = _describe_best(values)
        if self.file:
            line = json.dumps({"event": event, "time": round(time.time(), 3), **finite(values)}, allow_nan=False)
            self.pending += line.encode() + b"\n"
            self._flush()
        if self.trackers:
            self.trackers.record(event, values)

    def iteration(self, event: Event, left: float) -> None:
        """Record an "iter" event, with `left` seconds to go. Print it as a line, or show it in the bar on a terminal:

        iter 10: loss 2.9234, time 156.78ms, mfu 15.23%, 418,000 tok/s, 3m 12s left"""
        mfu, speed, remaining = event["mfu"], f"{event['tokens_per_second']:,.0f} tok/s", f"{duration(left)} left"
        self.left = f"{remaining}, "
        self.parts |= {"speed": speed, "memory": f"{event['memory'] / 1e9:.1f} GB", "mfu": f"mfu {mfu:.1%}"}
        self.record("iter", **event)  # first, so that no SIGKILL loses what was printed
        if not (self.bar and (is_terminal(sys.stdout) or in_notebook())):
            loss, milliseconds = f"loss {event['loss']:.4f}", f"{event['seconds'] * 1000:.2f}ms"
            self.print(f"iter {event['iter']}: {loss}, time {milliseconds}, mfu {mfu:.2%}, {speed}, {remaining}")

    def update_bar(self, iteration: int, loss: float) -> None:
        """Move the bar past an iteration, forward or back."""
        if self.bar:
            self.parts |= {"status": "", "loss": f"loss {loss:.4f}"}
            self._fill_bar(refresh=False)
            if iteration < self.bar.n:  # after a rollback
                self.bar.reset(self.bar.total)
            self.bar.update(iteration + 1 - self.bar.n)

    def status(self, what: str) -> None:
        """Show in the bar what is running, until it moves again."""
        if self.bar:
            self.parts["status"] = what
            self._fill_bar(refresh=True)

    @contextlib.contextmanager
    def evaluating(self) -> Generator[Callable[[int, int], object]]:
        """A function that shows how much of an evaluation is done, in the bar of the run or in one of its own."""
        self.status("evaluating")
        is_hidden = True if self.bar or not self.write else None  # None shows it on a terminal
        with progress(desc="evaluating", unit=" blocks", leave=False, disable=is_hidden) as own:

            def show(done: int, total: int) -> None:
                self.status(f"evaluating {done / total:.0%}")
                own.total = total
                own.update(done - own.n)

            yield show

    def _fill_bar(self, refresh: bool) -> None:
        """Show the time left, and of the parts the first ones that the terminal has space for."""
        assert self.bar
        columns = None if in_notebook() else self.bar.format_dict["ncols"]
        parts = [part for part in self.parts.values() if part]
        self.bar.set_description_str(self.left, refresh=False)
        self.bar.set_postfix_str(", ".join(parts), refresh=False)
        while columns and parts and len(_plain(self.bar)) > columns - ROOM:
            parts.pop()
            self.bar.set_postfix_str(", ".join(parts), refresh=False)
        if refresh:
            self.bar.refresh()

    def close_bar(self) -> None:
        """Take the bar away; a notebook keeps it."""
        self.shown.close()
        self.bar = None

    def close(self) -> None:
        self.close_bar()
        if self.trackers:
            self.trackers.finish()
            self.trackers = None
        if self.file:
            self._flush()
            self.file.close()
            self.file = None

    def _flush(self) -> None:
        try:
            while self.file and self.pending:
                written = os.write(self.file.fileno(), self.pending)  # only a part while the disk fills up
                self.pending = self.pending[written:]
        except OSError as error:
            if not self.warned:
                self.print(f"warning: {self.path} cannot be written: {error.strerror}; its lines are kept until it can")
            self.warned = True


def _describe_best(best: Mapping[str, Any]) -> str:
    return f"best val loss {best['val_loss']:.4f} at {best['step']:,}"


def _plain(bar: tqdm) -> str:
    """The line of a bar, not cut."""
    meter: dict[str, Any] = {**bar.format_dict, "ncols": None}
    return bar.format_meter(**meter)
