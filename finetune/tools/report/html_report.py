"""report.html of a run: curves, events, data, recipe and samples in one file, without scripts and external assets.
This module gathers the values; report.html.j2 escapes and shows them."""

from __future__ import annotations

import dataclasses
import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.common.commands import command
from finetune.common.files import write_file
from finetune.common.formatting import is_number, setting
from finetune.config.recipe import Recipe
from finetune.config.run_directory import REPORT, SHARE_PICTURE
from finetune.runs import loss_axis
from finetune.tools.report import comparison, diagnosis, remedies, svg_chart, tables
from finetune.tools.report.record import Event, Record
from finetune.tools.report.rules import Finding
from finetune.tools.report.svg_chart import Chart, Line, chart

if TYPE_CHECKING:
    from jinja2 import Template

TILES = (
    "best val loss",
    "at step",
    "bits per byte",
    "parameters",
    "tok/s",
    "from start to end",
)  # of comparison.figures
# with a line in every chart
MARKED_EVENTS = ("resume", "out_of_memory", "diverged", "rollback", "save_failed", "stop", "failed")
OTHER_CURVES = [
    ("lr", "Learning rate", "learning rate", "d"),
    ("tokens_per_second", "Speed", "tokens per second", "e"),
    ("grad_norm", "Gradient norm", "norm before clipping", "b"),
]
DATA_TABLES = (tables.splits, tables.sources, tables.findings, tables.sample)
MAX_SAMPLES = 5  # of one step
MAX_SAMPLE_STEPS = 8
Setting = tuple[str, str, str, str]  # key, value, origin, reason or help


def write(run: Record, findings: list[Finding], path: str | Path | None = None) -> Path:
    """Write the report of a run, by default to report.html in its out_dir, with share.png beside it; return the path
    of the report. Raises OSError."""
    given_path, path = path, Path(path or run.out_dir / REPORT)
    given, defaults = _settings(run)
    figures = comparison.figures(run)
    pairs = tables.side_by_side(run)
    html = _template().render(
        run=run,
        title=tables.title(run),
        colours=loss_axis.COLOURS,
        state=_state(run),
        tiles=[(name, figures[name]) for name in TILES if name in figures],
        findings=[(diagnosis.ISSUES[finding.label][0], finding) for finding in findings],
        charts=_charts(run),
        svg=svg_chart,
        before_and_after=tables.before_and_after(run),
        measurements=tables.evaluation(run.evaluation),
        pairs=pairs[:MAX_SAMPLES],
        samples=_other_samples(run, bool(pairs)),
        events=tables.events(run),
        data=[(part, *(table(part) for table in DATA_TABLES)) for part in run.data],
        given=given,
        defaults=defaults,
        written=time.strftime("%Y-%m-%d %H:%M"),
        sample=command("sample", out_dir=run.out_dir, num_samples=3),
        resume=remedies.resume(run),
    )
    write_file(path, html.encode("utf-8", "replace"))  # the name of out_dir may not be UTF-8
    if run.evaluations and given_path is None:
        from finetune.tools.report import share_picture  # matplotlib takes a while

        share_picture.write(run, path.with_name(SHARE_PICTURE))
    return path


@cache
def _template() -> Template:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("finetune.tools.report", "")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["repr"] = repr
    return environment.get_template("report.html.j2")


def _state(run: Record) -> str:
    if run.running:
        return "running"
    if run.ended:
        return "ended by early stopping" if run.ended_early else "done"
    ends = run.in_session("stop", "failed")
    return {"stop": "stopped", "failed": "failed"}[ends[-1]["event"]] if ends else "not ended"


def _charts(run: Record) -> list[Chart]:
    best, evaluations, updates = run.best, run.evaluations, run.updates
    named = (best["step"], best["val_loss"], f"best {best['val_loss']:.4f} at {best['step']:,}") if best else None
    marks = [
        (tables.step_of(event), event["event"].replace("_", " "), f"{event['event']}: {tables.text_of(event)}")
        for event in run.events
        if event["event"] in MARKED_EVENTS
    ]
    losses = [
        Line("single updates", [(event["iter"], event["loss"]) for event in updates], "c"),
        Line("train", [(event["step"], event["train_loss"]) for event in evaluations], "b", dots=True),
        Line("validation", [(event["step"], event["val_loss"]) for event in evaluations], "a", dots=True, best=named),
    ]
    bounds = loss_axis.loss_bounds(updates, evaluations, best)
    charts = [chart("Loss", "nats per token", losses, marks, run.done, bounds)]
    for name, title, y_title, style in OTHER_CURVES:
        points = [(event["iter"], event[name]) for event in updates if is_number(event.get(name))]
        charts.append(chart(title, y_title, [Line(title.lower(), points, style)], marks, run.done))
    return [made for made in charts if made]


def _evenly_spaced(events: list[Event], most: int) -> list[Event]:
    """At most so many events, with the first and the last."""
    count = min(most, len(events))
    return [events[round(number * (len(events) - 1) / max(1, count - 1))] for number in range(count)]


def _other_samples(run: Record, has_pairs: bool) -> list[tuple[str, list[str]]]:
    """The recorded samples, oldest first, without those of the best model if they stand beside the first ones."""
    events = [event for event in run.of("samples") if not has_pairs or event.get("step") != run.best.get("step")]
    return [_samples(event) for event in _evenly_spaced(events, MAX_SAMPLE_STEPS)]


def _samples(event: Event) -> tuple[str, list[str]]:
    """The settings and texts of a `samples` event."""
    settings = [f"{name} {event[name]}" for name in ("temperature", "top_k", "seed") if name in event]
    return ", ".join([f"step {event['step']}", *settings]), event["texts"][:MAX_SAMPLES]


def _settings(run: Record) -> tuple[list[Setting], list[Setting]]:
    """(given, defaults): given values with origin and reason, default and derived values with their help."""
    fields, reasons = {field.name: field for field in dataclasses.fields(Recipe)}, run.started.get("reasons") or {}
    given, defaults = [], []
    for name, value in run.recipe.items():
        reason, metadata = reasons.get(name), fields[name].metadata if name in fields else {}
        text, description, is_derived = setting(value), metadata.get("help", ""), metadata.get("derived")
        if reason:
            given.append((name, text, reason.get("origin", ""), reason.get("why") or description))
        elif not metadata or (value != fields[name].default and not is_derived):
            given.append((name, text, "", description))
        else:
            origin = "derived" if is_derived and value is not None else "default"
            defaults.append((name, text, origin, description))
    return given, defaults
