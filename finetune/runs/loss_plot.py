"""The loss curve: a figure, and loss.png. It is drawn without pyplot, whose backend and figures belong to the user."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from finetune.common.files import replacing
from finetune.runs.events import read_metrics


class LossFigure(Figure):
    """A figure that a notebook shows, also if pyplot was never imported."""

    def _repr_png_(self) -> bytes:
        png = io.BytesIO()
        self.savefig(png, format="png")
        return png.getvalue()


def loss_figure(out_dir: str | Path, title: str | None = None) -> LossFigure:
    """The losses in out_dir/metrics.jsonl, in nats per token, over the updates."""
    events = read_metrics(Path(out_dir) / "metrics.jsonl")
    figure = LossFigure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    updates = [event for event in events if event["event"] == "iter"]
    evaluations = [event for event in events if event["event"] == "eval"]
    losses = [float(event["loss"]) for event in updates]  # NaN stands as a text
    axes.plot([event["iter"] for event in updates], losses, color="0.75", linewidth=1, label="single updates")
    steps = [event["step"] for event in evaluations]
    for label, key in (("train", "train_loss"), ("validation", "val_loss")):
        axes.plot(steps, [float(event[key]) for event in evaluations], marker="o", markersize=3, label=label)
    axes.set(xlabel="update", ylabel="loss (nats per token)", title=title or Path(out_dir).resolve().name)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def plot_loss(out_dir: str | Path, path: str | Path | None = None, title: str | None = None) -> None:
    """Draw the losses in out_dir/metrics.jsonl into `path`, by default out_dir/loss.png."""
    with replacing(path or Path(out_dir) / "loss.png") as work, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a title in letters that the font does not have
        loss_figure(out_dir, title).savefig(work, dpi=120, format="png")
