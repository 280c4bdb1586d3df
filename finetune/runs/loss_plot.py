"""The loss curve: a figure, and loss.png. It is drawn without pyplot, whose backend and figures belong to the user."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from finetune.common.files import read_json_object, replacing
from finetune.config.run_directory import LOSS_PLOT
from finetune.runs.events import Event, best_of, read_metrics
from finetune.runs.loss_axis import COLOURS, loss_bounds


class LossFigure(Figure):
    """A figure that a notebook shows, also if pyplot was never imported."""

    def _repr_png_(self) -> bytes:
        png = io.BytesIO()
        self.savefig(png, format="png")
        return png.getvalue()


def loss_figure(out_dir: str | Path, title: str | None = None) -> LossFigure:
    """The losses in out_dir/metrics.jsonl, in nats per token, over the updates."""
    figure = LossFigure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    events = read_metrics(Path(out_dir) / "metrics.jsonl")
    facts = read_json_object(Path(out_dir) / "best/finetune.json")
    draw_losses(axes, events, best_of((event for event in events if event["event"] == "eval"), facts))
    axes.set_title(drawable(title or Path(out_dir).resolve().name), parse_math=False)
    axes.legend()
    return figure


def draw_losses(axes: Axes, events: Sequence[Event], best: Event | None, scale: float = 1) -> None:
    """Draw the losses of a run with a point at the `best` model. Lines and points are `scale` times as thick."""
    updates = [event for event in events if event["event"] == "iter"]
    evaluations = [event for event in events if event["event"] == "eval"]
    losses = [float(event["loss"]) for event in updates]  # NaN stands as a text
    name = "single updates"
    axes.plot([event["iter"] for event in updates], losses, color=COLOURS[name], lw=0.8 * scale, alpha=0.6, label=name)
    steps = [event["step"] for event in evaluations]
    for name, key in (("train", "train_loss"), ("validation", "val_loss")):
        values = [float(event[key]) for event in evaluations]
        axes.plot(steps, values, color=COLOURS[name], lw=1.6 * scale, marker="o", markersize=3 * scale, label=name)
    axes.set(xlabel="update", ylabel="loss (nats per token)")
    axes.grid(alpha=0.3)
    bounds, colour = loss_bounds(updates, evaluations, best), COLOURS["validation"]
    if bounds:
        axes.set_ylim(bounds)
    halo = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}
    words = {"textcoords": "offset points", "color": colour, "fontsize": 9 * scale, "bbox": halo}
    if best:
        place, is_late = (best["step"], best["val_loss"]), best["step"] > 0.6 * axes.get_xlim()[1]
        axes.plot(*place, "o", ms=9 * scale, mfc="none", mec=colour, mew=1.5 * scale, label="best model", zorder=5)
        side = "right" if is_late else "left"
        text = f"best {best['val_loss']:.4f} at {best['step']:,}"
        axes.annotate(text, place, (0, -8 * scale), ha=side, va="top", **words)
    if bounds and evaluations and (first := float(evaluations[0]["val_loss"])) > bounds[1]:
        place = (evaluations[0]["step"], bounds[1])
        axes.plot(*place, "^", ms=6 * scale, color=colour, clip_on=False, zorder=5)
        axes.annotate(f"{first:.4f} at {place[0]:,}", place, (8 * scale, 2), ha="left", va="bottom", **words)


def drawable(text: str) -> str:
    """The text without what a font cannot take."""
    return "".join(char if char.isprintable() else "\ufffd" for char in text)


def plot_loss(out_dir: str | Path, path: str | Path | None = None, title: str | None = None) -> None:
    """Draw the losses in out_dir/metrics.jsonl into `path`, by default out_dir/loss.png."""
    save(loss_figure(out_dir, title), path or Path(out_dir) / LOSS_PLOT, dpi=120)


def save(figure: Figure, path: str | Path, dpi: int) -> None:
    with replacing(path) as work, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a title in letters that the font does not have
        figure.savefig(work, dpi=dpi, format="png")
