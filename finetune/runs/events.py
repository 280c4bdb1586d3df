"""metrics.jsonl: one JSON object per event."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from finetune.common.files import parse_json
from finetune.common.formatting import is_number

NOT_FINITE = ("nan", "inf", "-inf")  # as text, because JSON has no such numbers
Event = dict[str, Any]  # its "event" is the name
STEPS = {"iter": ("iter",), "eval": ("step",), "best": ("step",), "samples": ("step",)}  # whole numbers of an event
LOSSES = {"iter": ("loss",), "eval": ("train_loss", "val_loss"), "best": ("val_loss",)}  # numbers, or NaN as text
OBJECTS = ("recipe", "identity", "data")  # of the event that starts a run


def read_metrics(path: str | Path, say: Callable[[str], object] = lambda line: None) -> list[Event]:
    """The events of a metrics.jsonl; [] if there is no file. A line that holds none, such as one that a crash cut
    short, is left out, and `say` is told of all of them at once."""
    events, bad = [], []
    with suppress(FileNotFoundError), open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                events.append(_event(parse_json(line)))
            except ValueError:
                bad.append(number)
    if bad:
        more = f" and {len(bad) - 1:,} more" if len(bad) > 1 else ""
        say(f"{path}: line {bad[0]:,}{more} cannot be read and is left out")
    return events


def _event(value: Any) -> Event:
    """The value of a line if it is an event. Raises ValueError."""
    if not isinstance(value, dict) or not isinstance(value.get("event"), str):
        raise ValueError("no event")
    kind = value["event"]
    steps = all(type(value.get(name)) is int for name in STEPS.get(kind, ()))
    losses = all(is_number(value.get(name)) or value.get(name) in NOT_FINITE for name in LOSSES.get(kind, ()))
    if not steps or not losses or not all(isinstance(value.get(name, {}), dict) for name in OBJECTS):
        raise ValueError(f"no {kind} event")
    return value


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
