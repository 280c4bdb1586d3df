"""What a run tells: console lines, metrics.jsonl, trackers and the loss curve. metrics.jsonl is the truth the others
follow."""

import contextlib
import json
import math
import os
import sys
import time
from pathlib import Path

from finetune.common.formatting import duration
from finetune.runs.events import events_until, read_metrics


class RunLogger:
    """The voice of a run. Only the main process has one that speaks; `write` is False on the others."""

    def __init__(self, out_dir, write):
        self.path = Path(out_dir) / "metrics.jsonl"
        self.write = write
        self.tracker = None
        self.bar = None
        self.best = ""  # the best evaluation so far, and how fast it goes, for the bar
        self.speed = ""
        self.file = None
        self.waiting = b""  # what the disk has not taken yet
        self.warned = False

    def open(self, length, step=None, evaluations=(), best=None):
        """Begin the record of a run of `length` updates, or go on with that of a run resumed at a step."""
        from tqdm import tqdm

        self.rewrite(step, evaluations)
        if best:
            self.best = _best_words(best)
        if self.write and sys.stderr.isatty():
            layout = "{desc}iter {n:,}/{total:,} {bar:10}{postfix}"
            self.bar = tqdm(total=length, initial=step or 0, dynamic_ncols=True, bar_format=layout)

    def rewrite(self, step=None, evaluations=()):
        """Cut off what lies behind the step a run was put back to, because it will happen again; without a step,
        everything."""
        kept = [] if step is None else events_until(read_metrics(self.path), step, evaluations)
        partial = self.path.with_name(".tmp-metrics.jsonl")
        with open(partial, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(event) + "\n" for event in kept)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, self.path)
        if self.file:
            self.file.close()
        self.file = open(self.path, "a", encoding="utf-8")

    def join(self):
        """Let a process that is not the main one append to the record as well, where there is one."""
        with contextlib.suppress(OSError):
            if not self.file and self.path.is_file():
                self.file = open(self.path, "a", encoding="utf-8")

    def print(self, line):
        try:
            if self.write and self.bar:
                self.bar.write(line)
            elif self.write:
                print(line, flush=True)
        except BrokenPipeError:  # whoever listened is gone; the run is not
            sys.stdout = open(os.devnull, "w", encoding="utf-8")

    def record(self, event, **values):
        """Append one event to metrics.jsonl, in one write. What a full disk does not take is kept and tried again with
        the next."""
        if event == "best":
            self.best = _best_words(values)
        if self.file:
            # JSON has no word for numbers that are none
            plain = {
                name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
                for name, value in values.items()
            }
            self.waiting += (
                json.dumps({"event": event, "time": round(time.time(), 3), **plain}, allow_nan=False).encode() + b"\n"
            )
            self._flush()
        if self.tracker and event in ("iter", "eval"):
            step = values.get("iter", values.get("step"))
            numbers = {f"{event}/{name}": value for name, value in values.items() if isinstance(value, (int, float))}
            try:
                self.tracker(numbers, step)
            except Exception as error:  # whatever a tracker does, training goes on
                self.print(f"warning: no longer logging to the tracker ({type(error).__name__})")
                self.tracker = None

    def iteration(self, line, tokens_per_second, mfu, left, memory):
        """Say the `line` of an iteration; on a terminal the bar says the same instead."""
        self.speed = (
            f", {tokens_per_second:,.0f} tok/s, mfu {mfu * 100:.1f}%, {memory / 1e9:.1f} GB, {duration(left)} left"
        )
        if not (self.bar and sys.stdout.isatty()):
            self.print(line)

    def update_bar(self, iteration, loss):
        """Move the bar behind an iteration, back as well."""
        if self.bar:
            self.bar.set_description_str("", refresh=False)
            self.bar.set_postfix_str(f"loss {loss:.4f}{self.best}{self.speed}", refresh=False)
            if iteration < self.bar.n:  # a run that was put back
                self.bar.reset(self.bar.total)
            self.bar.update(iteration + 1 - self.bar.n)

    def status(self, what):
        """Let the bar say what takes its time, until it moves again."""
        if self.bar:
            self.bar.set_description_str(f"{what}, ")

    def close_bar(self):
        if self.bar:
            self.bar.close()
            self.bar = None

    def close(self):
        self.close_bar()
        if self.file:
            self._flush()
            self.file.close()
            self.file = None

    def _flush(self):
        try:
            while self.waiting:
                self.waiting = self.waiting[
                    os.write(self.file.fileno(), self.waiting) :
                ]  # a disk that fills up takes a part
        except OSError as error:
            if not self.warned:
                self.print(f"warning: {self.path} cannot be written: {error.strerror}; its lines are kept until it can")
            self.warned = True


def iteration_line(iteration, loss, seconds, tokens, mfu, left):
    """`iter 10: loss 2.9234, time 156.78ms, mfu 15.23%, 418,000 tok/s, 3m 12s left`."""
    return (
        f"iter {iteration}: loss {loss:.4f}, time {seconds * 1000:.2f}ms, mfu {mfu * 100:.2f}%, {tokens / seconds:,.0f}"
        f" tok/s, {duration(left)} left"
    )


def _best_words(best):
    return f", best val loss {best['val_loss']:.4f} at {best['step']:,}"
