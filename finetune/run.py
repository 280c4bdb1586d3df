"""A run from Python: `train`, and the `Run` that it returns."""

from __future__ import annotations

import gc
import html
import os
import time
from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.api import Place, sample
from finetune.common.errors import Failure, UsageError
from finetune.common.files import read_json_object
from finetune.common.objects import as_path
from finetune.config.mirror import local_copy
from finetune.config.recipe import Recipe
from finetune.config.run_directory import RECIPE, has_state
from finetune.keywords import parse_keywords, takes_flags
from finetune.runs.events import Event, best_of, read_metrics
from finetune.train import train_and_push
from finetune.training.callbacks import Callbacks

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame
    from typing_extensions import Unpack

    from finetune.flags import SampleFlags, TrainFlags

STOPPED = 130  # exit code of a run that Ctrl-C, the Stop button or a callback ended
ENDINGS = {"end": "finished", "stop": "stopped", "failed": "failed"}


class Table(list[dict[str, Any]]):
    """Rows with the same keys. A notebook shows a table; `to_pandas()` makes a DataFrame."""

    def to_pandas(self) -> DataFrame:
        from pandas import DataFrame

        return DataFrame(list(self))

    def _repr_html_(self) -> str:
        if not self:
            return "<p>no rows</p>"
        cells = [[f"{value:g}" if isinstance(value, float) else str(value) for value in row.values()] for row in self]
        rows = [_row("th", self[0]), *(_row("td", row) for row in cells)]
        return f"<table>{''.join(rows)}</table>"


class Run:
    """A run directory. Everything is read from its files, so it is as new as they are."""

    def __init__(self, out_dir: Place) -> None:
        self._given = Path(os.path.expanduser(as_path(out_dir, "out_dir")))
        self._absolute = self._given.absolute()

    @property
    def out_dir(self) -> Path:
        """The directory, as it was given; its absolute path after a change of the current directory."""
        return self._given if self._given.absolute() == self._absolute else self._absolute

    @classmethod
    def open(cls, out_dir: Place) -> Run:
        """The run in a directory. Raises UsageError if there is none."""
        run = cls(local_copy(as_path(out_dir, "out_dir")))
        if not (run.out_dir / "metrics.jsonl").is_file():
            raise UsageError(f"{run.out_dir}: holds no run (no metrics.jsonl); give the out_dir of a training run")
        return run

    @property
    def best(self) -> Path:
        """The Hugging Face directory of the model with the lowest validation loss."""
        return self.out_dir / "best"

    @property
    def val_loss(self) -> float | None:
        """The validation loss of `best`, in mean nats per token. None before the first evaluation."""
        found = best_of(self._events("eval"), read_json_object(self.best / "finetune.json"))
        return found["val_loss"] if found else None

    @property
    def status(self) -> str:
        """finished, stopped or failed; unfinished if it still trains or was killed."""
        events = [one["event"] for one in self._events()]
        ends = [name for name in events if name in ENDINGS or name in ("start", "resume")]
        return ENDINGS.get(ends[-1], "unfinished") if ends else "unfinished"

    @property
    def history(self) -> Table:
        """A row for each evaluation: step, train_loss and val_loss, in mean nats per token."""
        keys = ("step", "train_loss", "val_loss")
        return Table({key: one[key] for key in keys} for one in self._events("eval"))

    @property
    def updates(self) -> Table:
        """A row for each logged update: iter, loss, lr, grad_norm, seconds, tokens_per_second, mfu, memory in bytes."""
        return Table({key: one[key] for key in one if key not in ("event", "time")} for one in self._events("iter"))

    def show(self) -> Figure:
        """The loss curves: a matplotlib figure, which a notebook shows."""
        from finetune.runs.loss_plot import loss_figure

        return loss_figure(self.out_dir)

    def resume(self, *, callbacks: Sequence[object] = (), **changes: Unpack[TrainFlags]) -> Run:
        """Go on from the last state, with other values of some keys: `run.resume(max_iters=2000)`. Raises UsageError
        for a key that would make it another run."""
        keywords: Any = {"out_dir": self.out_dir, "init_from": "resume", **changes}
        return train(self.out_dir / RECIPE, callbacks=callbacks, **keywords)

    def sample(self, *starts: str, **flags: Unpack[SampleFlags]) -> list[str]:
        """Texts that the best model writes, as `finetune.sample` returns them."""
        return sample(self, *starts, **flags)

    def _events(self, *names: str) -> list[Event]:
        events = read_metrics(self.out_dir / "metrics.jsonl")
        return [one for one in events if not names or one["event"] in names]

    def __fspath__(self) -> str:
        return str(self.out_dir)

    def __repr__(self) -> str:
        loss = "not evaluated" if self.val_loss is None else f"best val loss {self.val_loss:.4f}"
        return f"Run({str(self.out_dir)!r}: {self.status}, {loss})"

    def _repr_html_(self) -> str:
        from finetune.runs.loss_plot import loss_figure

        picture = ""
        if self.history:
            png = b64encode(loss_figure(self.out_dir)._repr_png_()).decode()
            picture = f'<img alt="loss curves" width="500" src="data:image/png;base64,{png}">'
        return f"<p>{html.escape(repr(self))}</p>{picture}{Table(self.history[-5:])._repr_html_()}"


@takes_flags(Recipe)
def train(*recipes: Place, callbacks: Sequence[object] = (), **flags: Unpack[TrainFlags]) -> Run:
    """Train a GPT-2 in this process and return the run: its best model, its losses, its curves.

    `recipes` are files; keywords replace their values. `callbacks` are objects with the methods of `Callback`. The Stop
    button (Ctrl-C) and a callback that asks for it end the run after an update, with a saved state, and `train` returns
    it too: `run.status` is "stopped", and `run.resume()` goes on. A second press ends it at once and saves nothing.

    Raises UsageError before anything is written, and Failure when the run fails, with the exit code of the command as
    `code`. What a callback raises is raised after the state is saved.

    >>> shape = {"n_layer": 1, "n_head": 1, "n_embd": 8, "block_size": 16}
    >>> run = train(init_from="scratch", dataset="notes.txt", tokenizer="char", out_dir="out", max_iters=4, **shape)
    >>> run.status, [row["step"] for row in run.history][-1]
    ('finished', 4)
    """
    called = Callbacks(callbacks)
    recipe, origins = parse_keywords(Recipe, recipes, flags)
    if recipe.eval_only:
        raise UsageError("eval_only: leaves no run to return; finetune.evaluate measures a model")
    from finetune.runtime.unchanged import unchanged
    from finetune.training.state import Hooks

    run, began = Run(recipe.out_dir), time.time()
    try:
        with unchanged():
            train_and_push(recipe, origins, Hooks(notify=called.notify) if callbacks else None)
    except (Failure, KeyboardInterrupt) as end:
        has_begun = any(one["time"] >= began - 0.001 for one in run._events("start", "resume"))
        if not has_begun or getattr(end, "code", STOPPED) != STOPPED:
            raise
        if not called.error:
            print(_how_to_go_on(run.out_dir))
    finally:
        _free_memory()
    if called.error:
        raise called.error
    return run


def _how_to_go_on(out_dir: Path) -> str:
    if has_state(out_dir):
        return f"stopped; resume() goes on from the state in {out_dir}/last"
    return "stopped before a checkpoint was saved; the same call with overwrite='unfinished' starts again"


def _free_memory() -> None:
    """Give the memory of the run's model and optimizer back to others in this process."""
    import torch

    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _row(tag: str, cells: Any) -> str:
    return f"<tr>{''.join(f'<{tag}>{html.escape(str(cell))}</{tag}>' for cell in cells)}</tr>"
