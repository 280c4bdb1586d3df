"""What watches a run: signals, losses that are no numbers or run away, and the guide's warning signs."""

import contextlib
import math
import signal
import statistics

STOPPING = {signal.SIGTERM: 143, signal.SIGINT: 130}  # exit codes
WINDOW = 50  # losses that tell how much an update's loss varies
ENOUGH = 20  # losses that tell where it usually is, and fewer tell nothing
OVERFLOWS = 20  # of float16 in a row
SPIKE_UPDATES = 3  # in a row: one strange batch is no divergence


class Diverged(Exception):
    """Numbers that are none, or a loss that ran away, in words."""


class Signals:
    """SIGTERM and SIGINT ask for an end after the update under way, SIGUSR1 for a checkpoint. A second SIGINT ends at
    once.

    A handler only notes the signal; the loop asks `flags()` once an update, so that all processes can agree.
    """

    NAMES = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

    def __init__(self):
        self.seen = dict.fromkeys(self.NAMES, False)

    def flags(self):
        """One number for each of NAMES, 1.0 where the signal came."""
        return [float(self.seen[name]) for name in self.NAMES]

    def agree(self, counts):
        """The signals that any process saw, by the agreed `counts`. SIGUSR1 is done with then; the others end the
        run."""
        names = [name for name, count in zip(self.NAMES, counts) if count]
        if signal.SIGUSR1 in names:
            self.seen[signal.SIGUSR1] = False
        return names

    @contextlib.contextmanager
    def caught(self):
        """Handle the signals inside this block and give them back after it."""
        before = {name: signal.signal(name, self._note) for name in self.NAMES}
        try:
            yield self
        finally:
            for name, handler in before.items():
                signal.signal(name, handler)

    def _note(self, number, frame):
        if number == signal.SIGINT and self.seen[signal.SIGINT]:
            raise KeyboardInterrupt
        self.seen[signal.Signals(number)] = True


class LossMonitor:
    """Notices losses that run away. `recent` are the losses it judges by, `high` and `overflows` what it has seen in a
    row; all of it travels with the run's state."""

    def __init__(self, recent=(), high=0, overflows=0):
        self.recent, self.high, self.overflows = list(recent), high, overflows

    def state(self):
        return {"recent": self.recent, "high": self.high, "overflows": self.overflows}

    def check(self, loss, grad_norm, scaled=False):
        """What is wrong with an update's loss or gradient, in words, or None. With float16's loss scaling (`scaled`) an
        overflow now and then is normal, and only many in a row are wrong."""
        for name, value in (("loss", loss), ("grad_norm", grad_norm)):
            if not math.isfinite(value):
                self.overflows += 1
                return f"{name} is {value}" if not scaled or self.overflows > OVERFLOWS else None
        self.overflows = 0
        if len(self.recent) >= ENOUGH:
            usual = statistics.median(self.recent[-ENOUGH:])
            noise = statistics.median(
                abs(one - other) for one, other in zip(self.recent, self.recent[1:])
            )  # blind to a trend
            if loss > usual + max(0.1 * usual, 8 * noise):
                self.high += 1
                if self.high >= SPIKE_UPDATES:
                    return (
                        f"loss {loss:.4f} is far above {usual:.4f}, the median of the last {ENOUGH} updates,"
                        f" {self.high} times in a row"
                    )
                return None
        self.high = 0
        self.recent = [*self.recent[1 - WINDOW :], loss]
        return None
