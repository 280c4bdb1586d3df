"""Code of the user that is called at three moments of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune.common.errors import UsageError
from finetune.common.objects import described


@dataclass(frozen=True)
class Update:
    """An update was made."""

    step: int  # updates made, this one included
    length: int  # updates of the whole run
    loss: float  # mean nats per target token, before this update
    learning_rate: float
    grad_norm: float  # before clipping


@dataclass(frozen=True)
class Evaluation:
    """Both splits were measured. Losses are mean nats per target token."""

    step: int
    train_loss: float
    val_loss: float
    best: bool  # no evaluation before was better; the model is in out_dir/best


@dataclass(frozen=True)
class Save:
    """A directory was written: out_dir/best, out_dir/iter_N, or a state to resume from, out_dir/last/step-N."""

    step: int
    path: Path


class Callback:
    """Override what you need. A method that returns True asks for a stop: one more update is made, a state is saved,
    and `train` returns the run. Only the main process calls them. What a method raises ends the run in the same way,
    with a saved state, and then `train` raises it."""

    def on_update(self, update: Update) -> bool | None: ...

    def on_evaluation(self, evaluation: Evaluation) -> bool | None: ...

    def on_save(self, save: Save) -> bool | None: ...


METHODS = {Update: "on_update", Evaluation: "on_evaluation", Save: "on_save"}


class Callbacks:
    """All callbacks of a run, and the first error that one of them raised. Raises UsageError for what is none."""

    def __init__(self, callbacks: Sequence[object]) -> None:
        if not isinstance(callbacks, list | tuple):
            raise UsageError(f"callbacks: {described(callbacks)} is no list; write [...] around it")
        self.callbacks = list(callbacks)
        self.error: Exception | None = None
        for callback in self.callbacks:
            methods = [name for name in dir(callback) if name.startswith("on_")]
            known = ", ".join(METHODS.values())
            if isinstance(callback, type) or not methods:
                raise UsageError(f"callbacks: {described(callback)} is not an object with one of the methods {known}")
            if unknown := [name for name in methods if name not in METHODS.values()]:
                raise UsageError(f"callbacks: {unknown[0]} of {described(callback)} is never called; there are {known}")

    def notify(self, moment: Update | Evaluation | Save) -> bool:
        """Call all of them; return whether one asks for a stop."""
        name, stop = METHODS[type(moment)], False
        for callback in self.callbacks:
            method = getattr(callback, name, None)
            try:
                answer = method(moment) if method else None
                if answer not in (None, False, True):
                    kind = type(callback).__name__
                    raise TypeError(f"{kind}.{name} returned {answer!r}; True asks for a stop, None goes on")
                stop = stop or bool(answer)
            except Exception as error:  # saved first, raised by `train`
                self.error, stop = self.error or error, True
        return stop
