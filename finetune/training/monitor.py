"""Signals, and losses that are not finite or run away."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import statistics
import threading
import time
from collections.abc import Generator, Iterable
from dataclasses import dataclass, field
from types import FrameType

WINDOW = 50  # losses that the noise of an update's loss is estimated from
ENOUGH = 20  # losses that the usual loss is the median of
OVERFLOWS = 20  # of float16 in a row
SPIKE_UPDATES = 3  # in a row: one strange batch is no divergence


class Diverged(Exception):
    """Training diverged: non-finite loss, gradient or weights, or a loss spike."""


EXIT_CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}  # of the signals that end a run
# what Windows lacks: the signal of a terminal that closes, and the one that saves a state
HANGUP, SAVE = getattr(signal, "SIGHUP", None), getattr(signal, "SIGUSR1", None)
if HANGUP:
    EXIT_CODES[HANGUP] = 129


class SignalCatcher:
    """SIGTERM, SIGINT and SIGHUP end the run after the current update, SIGUSR1 saves a state. A second SIGINT ends at
    once. A SIGHUP that is ignored, as by nohup, stays so.

    A handler only notes the signal. Every update sums the flags of all processes, so that all act alike."""

    def __init__(self) -> None:
        self.seen = dict.fromkeys((*EXIT_CODES, *([SAVE] if SAVE else [])), False)
        self.interrupted = -math.inf  # the time of the first SIGINT
        self.requested = False  # a stop, by a callback

    def flags(self) -> list[float]:
        """1.0 for each signal that this process saw, else 0.0."""
        return [float(seen) for seen in self.seen.values()]

    def from_counts(self, signal_counts: Iterable[float]) -> list[signal.Signals]:
        """The signals that any process saw, from the sum of all `flags()`. SIGUSR1 is reset."""
        signals = [number for number, count in zip(self.seen, signal_counts) if count]
        if SAVE in signals:
            self.seen[SAVE] = False
        return signals

    def request_stop(self) -> None:
        """End the run as SIGINT does."""
        self.requested = self.seen[signal.SIGINT] = True

    @contextlib.contextmanager
    def caught(self) -> Generator[None]:
        """Handle the signals inside this block, then restore the former handlers. A thread other than the main one may
        not, so there they keep their meaning."""
        handled = self.seen if threading.current_thread() is threading.main_thread() else ()
        nohup = HANGUP and signal.getsignal(HANGUP) == signal.SIG_IGN
        before = {number: signal.signal(number, self._note) for number in handled if not (nohup and number == HANGUP)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            # a launcher passes Ctrl-C on to processes that have seen it
            is_echo = "RANK" in os.environ and time.monotonic() < self.interrupted + 1
            if self.seen[signal.SIGINT] and not is_echo:
                raise KeyboardInterrupt
            if not is_echo:
                self.interrupted = time.monotonic()
        self.seen[signal.Signals(number)] = True


@dataclass
class LossMonitor:
    """Finds losses that run away. Saved with the run's state."""

    recent: list[float] = field(default_factory=list)  # losses without spikes, at most WINDOW
    high: int = 0  # spikes in a row
    overflows: int = 0  # updates in a row whose loss or gradient norm was not finite

    @property
    def in_spike(self) -> bool:
        return self.high > 0

    def check(self, loss: float, grad_norm: float, may_overflow: bool = False) -> str | None:
        """What is wrong with the loss or gradient norm of an update, or None. With float16's loss scaling
        (`may_overflow`) an overflow now and then is normal, and only many in a row are wrong."""
        for name, value in (("loss", loss), ("grad_norm", grad_norm)):
            if not math.isfinite(value):
                self.overflows += 1
                return f"{name} is {value}" if not may_overflow or self.overflows > OVERFLOWS else None
        self.overflows = 0
        if len(self.recent) >= ENOUGH:
            usual = statistics.median(self.recent[-ENOUGH:])
            # a trend does not enlarge the differences between neighbours
            noise = statistics.median(abs(one - other) for one, other in zip(self.recent, self.recent[1:]))
            if loss > usual + max(0.1 * usual, 8 * noise):
                self.high += 1
                if self.high < SPIKE_UPDATES:
                    return None
                return (
                    f"loss {loss:.4f} is far above {usual:.4f}, the median of the last {ENOUGH} updates,"
                    f" {self.high} times in a row"
                )
        self.high = 0
        self.recent = [*self.recent[1 - WINDOW :], loss]
        return None
