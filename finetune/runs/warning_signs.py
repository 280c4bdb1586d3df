"""Warning signs in the losses of a run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from finetune.runs import thresholds

Evaluations = Sequence[dict[str, Any]]  # {"step", "train_loss", "val_loss"} each, oldest first; at least one


def warning_signs(
    evaluations: Evaluations, vocab_size: int, pretrained: bool, passes: float | None = None
) -> dict[str, str]:
    """{name: line} of the warning signs in the evaluations of a run. The thresholds are in runs/thresholds.py. Nothing
    is memorized before the first of the `passes` over the data ends; None if unknown."""
    may_know_text = passes is None or passes >= 1
    signs = {
        "start": _bad_start(evaluations[0], vocab_size, pretrained),
        "known": _known_text(evaluations[0], vocab_size, pretrained),
        "overfitting": (overfitting := _overfitting(evaluations) if may_know_text else None),
        "plateau": None if overfitting else _plateau(evaluations),
        "gap": _gap(evaluations[0], evaluations[-1]) if may_know_text else None,
    }
    return {name: line for name, line in signs.items() if line}


def _bad_start(first: dict[str, Any], vocab_size: int, pretrained: bool) -> str | None:
    guessing = math.log(vocab_size)
    limit = thresholds.BAD_START if pretrained else thresholds.BAD_START_FROM_SCRATCH
    if first["step"] != 0 or first["val_loss"] <= limit * guessing:
        return None
    cause = "the initial weights are far too large"
    if pretrained:
        cause = "the ids are of another tokenizer than the model's, or its weights are not trained"
    chance = f"guessing among {vocab_size:,} ids would give {guessing:.2f}"
    return f"step 0: val loss {first['val_loss']:.2f}, and {chance}: {cause}"


def _known_text(first: dict[str, Any], vocab_size: int, pretrained: bool) -> str | None:
    if first["step"] != 0 or not pretrained or vocab_size <= thresholds.KNOWN_TEXT_VOCABULARY:
        return None
    if first["val_loss"] >= thresholds.KNOWN_TEXT:
        return None
    loss = f"val loss {first['val_loss']:.2f}"
    return f"step 0: {loss} is low for a text the model has not seen; it may have been trained on it"


def _overfitting(evaluations: Evaluations) -> str | None:
    last, best = evaluations[-1], min(evaluations, key=lambda evaluation: evaluation["val_loss"])
    since = [evaluation for evaluation in evaluations if evaluation["step"] > best["step"]]
    if len(since) < thresholds.WORSE_EVALUATIONS or last["train_loss"] >= best["train_loss"]:
        return None
    if last["val_loss"] <= best["val_loss"] * (1 + thresholds.LEAST_RISE):
        return None
    val = f"val loss {best['val_loss']:.4f} at step {best['step']} -> {last['val_loss']:.4f}"
    train = f"train loss {best['train_loss']:.4f} -> {last['train_loss']:.4f}"
    advice = f"best/ keeps step {best['step']}, more data or fewer epochs would help"
    return f"overfitting: {val}, {train}; {advice}"


def _plateau(evaluations: Evaluations) -> str | None:
    count = thresholds.PLATEAU
    if len(evaluations) <= count:
        return None
    before = min(evaluation["val_loss"] for evaluation in evaluations[:-count])
    lately = min(evaluation["val_loss"] for evaluation in evaluations[-count:])
    lowest, highest = before * (1 - thresholds.PLATEAU_GAIN), before * (1 + thresholds.PLATEAU_RISE)
    if not lowest < lately <= evaluations[-1]["val_loss"] < highest:
        return None
    until = evaluations[-count - 1]["step"]
    losses = f"best val loss {before:.4f} until step {until}, {lately:.4f} in the {count} evaluations since"
    return f"plateau: {losses}; more updates will bring little"


def _gap(first: dict[str, Any], last: dict[str, Any]) -> str | None:
    at_start, now = first["val_loss"] - first["train_loss"], last["val_loss"] - last["train_loss"]
    if now <= thresholds.GAP or at_start >= thresholds.GAP_AT_START:
        return None
    return f"gap: val loss is {now:.2f} above train loss, {at_start:.2f} at the start; the model memorizes the text"
