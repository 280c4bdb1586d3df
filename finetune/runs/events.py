"""metrics.jsonl: one JSON object per event."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

Event = dict[str, Any]  # its "event" is the name


class Progress(Protocol):
    """How far a run has come."""

    iteration: int
    evaluations: list[dict[str, Any]]  # each with its "step"
    best: dict[str, Any]  # "val_loss" and "step", or empty


def read_metrics(path: str | Path) -> list[Event]:
    """The events of a metrics.jsonl, without lines that a crash cut short; none if there is no file."""
    events = []
    try:
        with open(path, encoding="utf-8") as file:
            for line in file:
                try:
                    event = json.loads(line)
                except ValueError:
                    continue
                if isinstance(event, dict) and "event" in event:
                    events.append(event)
    except FileNotFoundError:
        pass
    return events


def events_until(events: Sequence[Event], run: Progress) -> list[Event]:
    """The events that precede a run's iteration: earlier updates, the evaluations it knows, and everything else that
    happened, except its end."""
    evaluated = {evaluation["step"] for evaluation in run.evaluations}

    def precedes(event: Event) -> bool:
        if event["event"] == "iter":
            return event["iter"] < run.iteration
        if event["event"] == "samples":
            return event["step"] < run.iteration
        if event["event"] in ("eval", "best"):
            return event["step"] in evaluated
        return event["event"] != "end"

    return [event for event in events if precedes(event)]
