"""How loss.png, the share picture and the report show losses: the same colours, and a range that shows the curve."""

from __future__ import annotations

import math
from collections.abc import Sequence

from finetune.runs.events import Event, best_of

# of Okabe and Ito's palette, which the colour-blind can tell apart
COLOURS = {"validation": "#0072b2", "train": "#d55e00", "single updates": "#8c959f"}
OUTLIERS = 0.005  # share of the updates whose losses may lie outside at either end
ZOOM = 2.0  # a range so many times as high as that after the first evaluation would flatten the curve
ABOVE, BELOW = 0.05, 0.14  # margins; the name of the best point stands below it


def loss_bounds(
    updates: Sequence[Event], evaluations: Sequence[Event], best: Event | None = None
) -> tuple[float, float] | None:
    """The lowest and the highest loss to show, None without losses. If the losses before the second evaluation would
    flatten the rest, they lie above; that of the `best` model, which may be the first, is always shown."""
    evaluated = [(event["step"], float(event[key])) for event in evaluations for key in ("train_loss", "val_loss")]
    updated = [(event["iter"], float(event["loss"])) for event in updates]
    everything = [loss for _, loss in evaluated + updated if math.isfinite(loss)]
    if not everything:
        return None
    begin = evaluations[1]["step"] if len(evaluations) > 2 else 0
    later = sorted(loss for step, loss in updated if step >= begin and math.isfinite(loss))
    cut = math.ceil(len(later) * OUTLIERS) if len(later) >= 20 else 0
    shown = later[cut : len(later) - cut]
    shown += [loss for step, loss in evaluated if step >= begin and math.isfinite(loss)]
    best = best or best_of(evaluations, {})
    low, high = min([*(shown or everything), *([best["val_loss"]] if best else [])]), max(shown or everything)
    if begin and max(everything) - low <= ZOOM * (high - low):
        high = max(everything)
    span = high - low or 0.05 * abs(high) or 1.0
    return low - BELOW * span, high + ABOVE * span
