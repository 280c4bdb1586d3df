"""Whether a model is good enough for a pipeline: conditions on its figures, and a loss that it must not exceed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from finetune.common.errors import UsageError
from finetune.common.files import read_json_object
from finetune.common.formatting import is_number
from finetune.config.gate import unmet
from finetune.evaluation.options import Options

TOLERANCE = 1e-6  # relative; batch_size and the number of processes change the seventh digit


def figures(event: Mapping[str, Any]) -> dict[str, Any]:
    """{name: value} of everything in an "evaluation" event that a condition may name."""
    general, copied = event.get("general", {}), event.get("memorisation", {})
    found = {
        **{name: event.get(name) for name in ("loss", "perplexity", "bits_per_byte", "accuracy")},
        "val_loss": event.get("loss"),
        "baseline_loss": event.get("baseline", {}).get("loss"),
        "difference": event.get("difference", {}).get("mean"),
        "general_loss": general.get("loss"),
        "kl": general.get("kl"),
        "copied": copied.get("copied"),
        "longest": copied.get("longest"),
    }
    return found | event.get("metrics", {})


def failures(options: Options, event: Mapping[str, Any], earlier: Mapping[str, Any] | None) -> list[str]:
    """A line for each condition of `require` and `no_worse_than` that the evaluation does not meet. `earlier` is that
    of `read_earlier`."""
    lines = [f"require: {line}" for line in unmet(options.require, figures(event))]
    if options.no_worse_than is not None:
        other = earlier or event["baseline"]
        loss, bound = event["loss"], other["loss"]
        if not (loss <= bound or math.isclose(loss, bound, rel_tol=TOLERANCE)):  # also when one of them is NaN
            low, high = (event.get("difference", {}).get(end) for end in ("low", "high"))
            interval = f" (95% interval {low:+.4f} to {high:+.4f})" if earlier is None and low is not None else ""
            problem = (
                f"loss {loss:.6g} is {loss - bound:.4g} above {bound:.6g} of {other.get('model') or other['name']}"
            )
            lines.append(f"no_worse_than={options.no_worse_than} is not met: {problem}{interval}")
    return lines


def read_earlier(options: Options) -> dict[str, Any] | None:
    """The evaluation in the JSON file of `no_worse_than`; None if that is a model. Raises UsageError."""
    if not options.compares_with_file:
        return None
    path = options.no_worse_than or ""
    earlier = read_json_object(path)
    if not is_number(earlier.get("loss")):
        raise UsageError(f"no_worse_than: {path} is no evaluation with a loss, as finetune eval --json=true prints it")
    return earlier


def check_same_tokens(earlier: Mapping[str, Any], event: Mapping[str, Any], path: str | None) -> None:
    """Raise UsageError if an earlier evaluation was over other tokens."""
    for name in ("split", "targets", "block_size", "stride", "sha256"):
        if name in earlier and name in event and earlier[name] != event[name]:
            now = f"{name} {event[name]} now, {earlier[name]} there"
            raise UsageError(f"no_worse_than: {path} was measured on other tokens ({now}); measure both alike")
