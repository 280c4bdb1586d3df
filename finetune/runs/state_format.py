"""state.json as any release wrote it, read as today's. A test holds a state of each format."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from finetune.common.errors import UsageError
from finetune.common.fits import fits
from finetune.common.formatting import is_number, shown
from finetune.config.options import find_out_of_bounds
from finetune.config.recipe import Recipe
from finetune.gpt.model import GPTConfig

STATE_FORMAT = 1  # of state.json, its "format"; another content gets another number
EVALUATION = {"step": int, "train_loss": float, "val_loss": float}
WATCH = {"recent": list[float], "high": int, "overflows": int}
SCALER = dict.fromkeys(torch.amp.GradScaler("cpu").state_dict(), float)
KEYS: dict[str, Any] = {
    "iteration": int,
    "updates": int,
    "evaluations": list[dict],
    "watch": dict,
    "init_from": str,
    "identity": dict,
    "config": dict,
    "recipe": dict,
}
# states may lack them
ADDED: dict[str, Any] = {"eval_rows": None, "lr_scale": 1.0, "rollbacks": 0, "scaler": None, "asked": None}
MICRO_BATCH = ("batch_size", "gradient_accumulation_steps", "gradient_checkpointing")  # keys of a recipe


def read_state(found: Any, out_dir: str | Path) -> dict[str, Any]:
    """The content of a run's state.json, with every key of today. Raises UsageError in one line."""
    try:
        return _read(found)
    except ValueError as error:
        raise UsageError(f"{out_dir}: its state cannot be resumed: {error}") from None


def _read(found: Any) -> dict[str, Any]:
    if (given := found.get("format") if isinstance(found, dict) else None) != STATE_FORMAT:
        newer = isinstance(given, int) and given > STATE_FORMAT
        advice = "a newer finetune wrote it" if newer else "no release wrote it"
        raise ValueError(f"it has format {given!r}, and this finetune reads {STATE_FORMAT}; {advice}")
    _check(found, KEYS)
    _check(found["watch"], WATCH)
    for evaluation in found["evaluations"]:
        _check(evaluation, EVALUATION)
    kinds = typing.get_type_hints(GPTConfig)
    if unknown := found["config"].keys() - kinds.keys():
        raise ValueError(f"config holds {min(unknown)}, which this finetune does not know")
    GPTConfig(**found["config"])  # raises ValueError
    _check(found["config"], {name: kinds[name] for name in found["config"]})
    _check_numbers({**ADDED, **found})
    defaults = {field.name: field.default for field in dataclasses.fields(Recipe)}
    given = {name: value for name, value in found["recipe"].items() if name in defaults}
    kinds = typing.get_type_hints(Recipe)
    _check(given, {name: kinds[name] for name in given})
    for name, problem in find_out_of_bounds(Recipe(**given)):
        raise ValueError(f"{name} in its recipe {problem}")
    if found.get("asked") is not None:
        _check(found["asked"], {name: kinds[name] for name in MICRO_BATCH})
    watch = {name: found["watch"][name] for name in WATCH}
    return {**ADDED, **found, "recipe": {**defaults, **found["recipe"]}, "watch": watch}


def _check_numbers(found: Mapping[str, Any]) -> None:
    """Raise ValueError for a number that no run can have."""
    counts = {name: found[name] for name in ("iteration", "updates", "rollbacks")}
    if found["eval_rows"] is not None:
        counts["eval_rows"] = found["eval_rows"]
    for name, value in counts.items():
        if not fits(value, int) or value < 0:
            raise ValueError(f"{name} must be a whole number and not negative, got {shown(value)}")
    if not is_number(found["lr_scale"]) or not 0 < found["lr_scale"] <= 1:
        raise ValueError(f"lr_scale must be above 0 and at most 1, got {shown(found['lr_scale'])}")
    if found["scaler"]:
        _check(found["scaler"], SCALER)


def _check(part: Any, kinds: Mapping[str, Any]) -> None:
    """Raise ValueError unless `part` is an object with these keys of these types."""
    for name, kind in kinds.items():
        if not isinstance(part, dict) or name not in part:
            raise ValueError(f"{name} is missing in it")
        if not fits(part[name], kind):
            raise ValueError(f"{name} is of another type in it")
