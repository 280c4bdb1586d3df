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

    def taken(self, counts):
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


class Watch:
    """Notices losses that run away. `recent` are the losses it judges by, `high` and `overflows` what it has seen in a
    row; all of it travels with the run's state."""

    def __init__(self, recent=(), high=0, overflows=0):
        self.recent, self.high, self.overflows = list(recent), high, overflows

    def state(self):
        return {"recent": self.recent, "high": self.high, "overflows": self.overflows}

    def judge(self, loss, grad_norm, scaled=False):
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


def warnings(evaluations, vocab_size, pretrained):
    """The guide's warning signs in a run's evaluations ({"step", "train_loss", "val_loss"}, oldest first), as {name:
    line}."""
    found = {}
    first, last = evaluations[0], evaluations[-1]
    best = min(evaluations, key=lambda e: e["val_loss"])
    since = [e for e in evaluations if e["step"] > best["step"]]
    uniform = math.log(vocab_size)
    if first["step"] == 0 and first["val_loss"] > (0.9 if pretrained else 1.2) * uniform:
        found["start"] = (
            f"step 0: val loss {first['val_loss']:.2f}, and guessing among {vocab_size:,} ids would give"
            f" {uniform:.2f}: "
            + (
                "these are probably ids of another tokenizer than the model's"
                if pretrained
                else "the initial weights are far too large"
            )
        )
    if first["step"] == 0 and pretrained and vocab_size > 10_000 and first["val_loss"] < 1.5:
        found["known"] = (
            f"step 0: val loss {first['val_loss']:.2f} is low for a text the model has not seen; it may have been"
            " trained on it"
        )
    if len(since) >= 3 and last["train_loss"] < best["train_loss"]:
        found["overfitting"] = (
            f"overfitting: val loss {best['val_loss']:.4f} at step {best['step']} -> {last['val_loss']:.4f}, train loss"
            f" {best['train_loss']:.4f} -> {last['train_loss']:.4f}; best/ keeps step {best['step']}, more data or"
            " fewer epochs would help"
        )
    elif len(evaluations) >= 6:
        before, lately = (min(e["val_loss"] for e in part) for part in (evaluations[:-5], evaluations[-5:]))
        if before * 0.999 < lately <= last["val_loss"] < before * 1.01:
            found["plateau"] = (
                f"plateau: best val loss {before:.4f} until step {evaluations[-6]['step']}, {lately:.4f} in the 5"
                " evaluations since; more updates will bring little"
            )
    if last["val_loss"] - last["train_loss"] > 0.3 and first["val_loss"] - first["train_loss"] < 0.15:
        found["gap"] = (
            f"gap: val loss is {last['val_loss'] - last['train_loss']:.2f} above train loss,"
            f" {first['val_loss'] - first['train_loss']:.2f} at the start; the text is being learned by heart"
        )
    return found
