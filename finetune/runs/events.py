"""metrics.jsonl: one JSON object per event."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, get_type_hints

from finetune.common.fits import fits
from finetune.common.formatting import is_number
from finetune.common.json_text import parse_json
from finetune.config.recipe import Recipe

NOT_FINITE = ("nan", "inf", "-inf")  # as text, because JSON has no such numbers
LOSSES = ("step", "train_loss", "val_loss")  # of an evaluation
Event = dict[str, Any]  # its "event" is the name
Number = float | Literal["nan", "inf", "-inf"]
REQUIRED = {  # of these events; other values may be missing or null
    "iter": ("iter", "loss"),
    "eval": ("step", "train_loss", "val_loss"),
    "best": ("step", "val_loss"),
    "samples": ("step", "texts"),
    "rollback": ("step", "lr_scale", "problem"),
    "out_of_memory": ("done",),
    **dict.fromkeys(("failed", "diverged", "save_failed"), ("problem",)),
}
TYPES: dict[str, Any] = {  # of the values
    **dict.fromkeys("iter step reached length batch_size gradient_accumulation_steps code rank eval_rows".split(), int),
    **dict.fromkeys("loss train_loss val_loss lr grad_norm seconds tokens_per_second mfu".split(), Number),
    **dict.fromkeys("perplexity bits_per_byte accuracy temperature".split(), Number),
    **dict.fromkeys(("time", "lr_scale", "memory"), float),
    **dict.fromkeys("problem line name signal done start split model machine".split(), str),
    "texts": list[str],
    "val_losses": dict[str, Number],
    "split_blocks": dict[str, int],
    "recipe": {name: kind | None for name, kind in get_type_hints(Recipe).items()},
    **dict.fromkeys(("identity", "metrics"), dict),
    "reasons": dict[str, dict],
    "data": {
        "splits": dict[str, dict],
        "split_by": str | None,
        "directories": list[str] | None,
        "sources": list[dict] | None,
    },
    "best": {"val_loss": float, "step": int},
    "baseline": {"name": str, **dict.fromkeys(("loss", "perplexity", "bits_per_byte", "accuracy"), Number | None)},
    "difference": {"mean": Number, "low": Number | None, "high": Number | None},
    "general": dict.fromkeys(("loss", "baseline_loss", "kl"), Number | None),
    "memorisation": {"ngram": int, "copied": float, "longest": int, "offset": int | None, "text": str | None},
}


def read_metrics(path: str | Path, say: Callable[[str], object] = lambda line: None) -> list[Event]:
    """The events of a metrics.jsonl; [] if there is no file. A line that holds none, such as one that a crash cut
    short, is left out, and `say` is told of all of them at once."""
    events, bad = [], []
    with suppress(FileNotFoundError), open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                event = _event(parse_json(line))
                if event.get("time") is None:
                    event["time"] = events[-1]["time"] if events else 0.0
                events.append(event)
            except ValueError:
                bad.append(number)
    if bad:
        more = f" and {len(bad) - 1:,} more" if len(bad) > 1 else ""
        say(f"{path}: line {bad[0]:,}{more} cannot be read and is left out")
    return events


def _event(value: Any) -> Event:
    """The value of a line if it is an event, without what is null. Raises ValueError."""
    if not isinstance(value, dict) or not isinstance(value.get("event"), str):
        raise ValueError("no event")
    held = {name: value[name] for name in value if value[name] is not None}
    checked = {*held, *REQUIRED.get(value["event"], ())} & TYPES.keys()
    if not fits(held, {name: TYPES[name] for name in checked}):
        raise ValueError(f"no {value['event']} event")
    return {name: value[name] for name in value if name in held or name not in TYPES}


def best_of(evaluations: Iterable[Event], facts: Mapping[str, Any]) -> Event | None:
    """The evaluation of the model in best/, which has the lowest validation loss. A run that was put back behind it
    keeps it in the `facts` alone, finetune.json of best/. None without evaluations."""
    finite = [event for event in evaluations if is_number(event["val_loss"])]
    kept = {name: facts[name] for name in LOSSES if is_number(facts.get(name))}
    if not finite:
        return None
    published = [{"event": "eval", **kept}] if len(kept) == len(LOSSES) else []
    return min([*finite, *published], key=lambda event: event["val_loss"])


def events_until(events: Sequence[Event], step: int, evaluations: Iterable[Event]) -> list[Event]:
    """The events to keep when a run goes back to `step`, where `evaluations` are known: everything up to there, except
    the end of the run."""
    evaluated = {evaluation["step"] for evaluation in evaluations}

    def precedes(event: Event) -> bool:
        if event["event"] == "iter":
            return event["iter"] < step
        if event["event"] == "samples":
            return event["step"] < step
        if event["event"] in ("eval", "best"):
            return event["step"] in evaluated
        return event["event"] != "end"

    return [event for event in events if precedes(event)]
