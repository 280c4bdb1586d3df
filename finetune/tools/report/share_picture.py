"""share.png: a run in one picture of 1,200 x 630 pixels, as pages that are shared show them."""

from __future__ import annotations

import textwrap
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from finetune.common.formatting import figure, perplexity
from finetune.runs.loss_plot import draw_losses, drawable, save
from finetune.tools.report import tables
from finetune.tools.report.record import Record

INK, SOFT = "#1b1f24", "#59636e"
LONGEST = 44  # characters of a title


def write(run: Record, path: Path) -> None:
    """Draw the picture of a run with at least one evaluation. Raises OSError."""
    save(picture_of(run), path, dpi=100)


def picture_of(run: Record) -> Figure:
    picture = Figure(figsize=(12, 6.3), dpi=100, facecolor="white")
    FigureCanvasAgg(picture)
    title, date = tables.title(run)
    _text(picture, 0.05, 0.92, textwrap.shorten(drawable(title), LONGEST, placeholder="..."), 30, INK, weight="bold")
    _text(picture, 0.05, 0.815, f"finetune, {date}", 15, SOFT)
    axes = picture.add_axes((0.085, 0.13, 0.56, 0.61))
    draw_losses(axes, run.events, run.best, scale=1.4)
    axes.tick_params(labelsize=12)
    axes.xaxis.label.set_fontsize(13)
    axes.yaxis.label.set_fontsize(13)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=12, frameon=False, loc="upper right")
    for number, (name, value) in enumerate(_figures(run)):
        height = 0.74 - 0.155 * number
        _text(picture, 0.7, height, name, 14, SOFT)
        _text(picture, 0.7, height - 0.042, drawable(value), 21, INK, weight="bold")
    return picture


def _figures(run: Record) -> list[tuple[str, str]]:
    first, best = run.evaluations[0]["val_loss"], run.best["val_loss"]
    before, after = (f"{perplexity(loss):,.4g}" if loss < 9 else f"{perplexity(loss):,.0f}" for loss in (first, best))
    facts = [("validation loss", f"{first:.4f} \u2192 {best:.4f}"), ("perplexity", f"{before} \u2192 {after}")]
    if run.parameters is not None:
        facts.append(("parameters", figure(run.parameters)))
    if run.train_tokens is not None:
        facts.append(("trained on", f"{figure(run.train_tokens)} tokens"))
    facts.append(("best model", f"after {run.best['step']:,} of {run.length:,} updates"))
    return facts[:4]


def _text(picture: Figure, x: float, y: float, text: str, size: int, colour: str, weight: str = "normal") -> None:
    picture.text(x, y, text, fontsize=size, color=colour, weight=weight, va="top", parse_math=False)
