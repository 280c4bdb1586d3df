"""Signals, and losses that are not finite or run away."""

from __future__ import annotations

import contextlib
import math
import signal
import statistics
from collections.abc import Generator, Iterable
from types import FrameType
from typing import Any

STOPPING = {signal.SIGTERM: 143, signal.SIGINT: 130}  # exit codes
WINDOW = 50  # losses that the noise of an update's loss is estimated from
ENOUGH = 20  # losses that the usual loss is the median of
OVERFLOWS = 20  # of float16 in a row
SPIKE_UPDATES = 3  # in a row: one strange batch is no divergence


class Diverged(Exception):
    """Training diverged: non-finite loss, gradient or weights, or a loss spike."""


class Signals:
    """SIGTERM and SIGINT end the run after the current update, SIGUSR1 saves a state. A second SIGINT ends at once.

    A handler only notes the signal; every update sends `flags()` around, so that all processes agree."""

    NAMES = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

    def __init__(self) -> None:
        self.seen: dict[signal.Signals, bool] = dict.fromkeys(self.NAMES, False)

    def flags(self) -> list[float]:
        """One number for each of NAMES: 1.0 if this process saw the signal."""
        return [float(self.seen[name]) for name in self.NAMES]

    def agree(self, counts: Iterable[float]) -> list[signal.Signals]:
        """The signals that any process saw, from how many saw each of NAMES. SIGUSR1 is reset."""
        names = [name for name, count in zip(self.NAMES, counts) if count]
        if signal.SIGUSR1 in names:
            self.seen[signal.SIGUSR1] = False
        return names

    @contextlib.contextmanager
    def caught(self) -> Generator[Signals]:
        """Handle the signals inside this block, then restore the former handlers."""
        before = {name: signal.signal(name, self._note) for name in self.NAMES}
        try:
            yield self
        finally:
            for name, handler in before.items():
                signal.signal(name, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.seen[signal.SIGINT]:
            raise KeyboardInterrupt
        self.seen[signal.Signals(number)] = True


class LossMonitor:
    """Finds losses that run away. `recent` are the losses it compares with, `high` and `overflows` count in a row. All
    three are saved with the run's state."""

    def __init__(self, recent: Iterable[float] = (), high: int = 0, overflows: int = 0) -> None:
        self.recent, self.high, self.overflows = list(recent), high, overflows

    def state(self) -> dict[str, Any]:
        return {"recent": self.recent, "high": self.high, "overflows": self.overflows}

    @property
    def is_calm(self) -> bool:
        """The last loss was no spike."""
        return self.high == 0

    def check(self, loss: float, grad_norm: float, scaled: bool = False) -> str | None:
        """What is wrong with the loss or gradient norm of an update, or None. With float16's loss scaling (`scaled`)
        an overflow now and then is normal, and only many in a row are wrong."""
        for name, value in (("loss", loss), ("grad_norm", grad_norm)):
            if not math.isfinite(value):
                self.overflows += 1
                return f"{name} is {value}" if not scaled or self.overflows > OVERFLOWS else None
        self.overflows = 0
        if len(self.recent) >= ENOUGH:
            usual = statistics.median(self.recent[-ENOUGH:])
            # of differences between neighbours, which a trend does not enlarge
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
