"""metrics.jsonl: one JSON object an event."""

import json


def read_metrics(path):
    """The events of a metrics.jsonl. A last line that a crash cut short is dropped."""
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


def events_until(events, step, evaluations):
    """The events that are still true of a run that was put back to a step: updates before it, evaluations it knows of,
    and all that happened to it."""
    evaluated = {evaluation["step"] for evaluation in evaluations}

    def true(event):
        if event["event"] == "iter":
            return event["iter"] < step
        if event["event"] == "samples":
            return event["step"] < step
        if event["event"] in ("eval", "best"):
            return event["step"] in evaluated
        return event["event"] != "end"

    return [event for event in events if true(event)]
