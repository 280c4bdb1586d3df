"""metrics.jsonl: one JSON object per event."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

Event = dict[str, Any]  # its "event" is the name


def read_metrics(path: str | Path) -> list[Event]:
    """The events of a metrics.jsonl, without lines that a crash cut short; [] if there is no file."""
    events = []
    with suppress(FileNotFoundError), open(path, encoding="utf-8") as file:
        for line in file:
            with suppress(ValueError):
                event = json.loads(line)
                if isinstance(event, dict) and "event" in event:
                    events.append(event)
    return events


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
