"""Runs side by side: results, speed, and the keys in which their recipes differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from finetune.common.formatting import duration, setting
from finetune.tools.report.record import Record

ALWAYS_DIFFERENT = ("out_dir", "overwrite", "wandb_run_name")
Row = tuple[str, ...]  # a name and one text for each run


def to_text(runs: Sequence[Record]) -> str:
    """The comparison as an aligned table, with notes below."""
    empty = [""] * len(runs)
    differences = _recipes(runs) or [("the recipes are the same", *empty)]
    best = winner(runs)
    names = [f"{run.out_dir} *" if run is best else str(run.out_dir) for run in runs]
    rows = [("", *names), *_results(runs), ("", *empty), *differences]
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = []
    for name, *cells in rows:
        line = [name.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(cells, widths[1:]))]
        lines.append("  ".join(line).rstrip())
    mark = [f"* the lowest validation loss: {best.best['val_loss']:.4f} in {best.out_dir}"] if best else []
    if notes := mark + _notes(runs):
        lines += ["", *notes]
    return "\n".join(lines)


def winner(runs: Sequence[Record]) -> Record | None:
    """The run with the lowest validation loss; None if two share it, or if they were not validated on the same
    blocks."""
    evaluated = sorted((run for run in runs if run.best), key=lambda run: run.best["val_loss"])
    measured_on = {(_data_identity(run, "val"), *_evaluated_blocks(run)) for run in evaluated}
    if len(evaluated) < 2 or len(measured_on) > 1 or () in {_data_identity(run, "val") for run in evaluated}:
        return None
    first, second = (run.best["val_loss"] for run in evaluated[:2])
    return evaluated[0] if first < second else None


def facts(runs: Sequence[Record]) -> dict[str, Any]:
    """The comparison as JSON: `first`, `best` and `last` are evaluations, `seconds` is the median of an update,
    `different` are the keys in which the recipes differ, and `lowest` is the out_dir of the winner or None."""
    described = []
    for run in runs:
        found = run.evaluations
        evaluations = {"first": found[0] if found else None, "best": run.best, "last": found[-1] if found else None}
        medians = {name: run.median(name) for name in ("tokens_per_second", "mfu", "seconds")}
        facts = {"out_dir": str(run.out_dir), "running": run.running, "updates": run.done, "length": run.length}
        described.append({**facts, **evaluations, "parameters": run.parameters, **medians, "recipe": _recipe(run)})
    best, different = winner(runs), [row[0] for row in _recipes(runs)]
    lowest = str(best.out_dir) if best else None
    return {"runs": described, "different": different, "lowest": lowest, "notes": _notes(runs)}


def _recipe(run: Record) -> dict[str, Any]:
    """The keys of a run. Its first weights are those that it began with, also after a resume."""
    return {"init_from": None, **run.recipe} | {"init_from": run.init_from}


def _recipes(runs: Sequence[Record]) -> list[Row]:
    """The keys in which the recipes differ."""
    recipes = [_recipe(run) for run in runs]
    keys = dict.fromkeys(key for recipe in recipes for key in recipe if key not in ALWAYS_DIFFERENT)
    rows = [(key, *(setting(recipe.get(key)) for recipe in recipes)) for key in keys]
    return [row for row in rows if len(set(row[1:])) > 1]


def _results(runs: Sequence[Record]) -> list[Row]:
    results = [figures(run) for run in runs]
    names = dict.fromkeys(name for result in results for name in result)
    return [(name, *(result.get(name, "") for result in results)) for name in names]


def figures(run: Record) -> dict[str, str]:
    """The result and the speed of a run."""
    facts = {"updates": f"{run.done:,} of {run.length:,}"}
    if run.evaluations:
        first, best, last = run.evaluations[0], run.best, run.evaluations[-1]
        facts |= {
            "best val loss": f"{best['val_loss']:.4f}",
            "at step": f"{best['step']:,}",
            "train loss there": f"{best['train_loss']:.4f}",
            "first val loss": f"{first['val_loss']:.4f}",
            "last val loss": f"{last['val_loss']:.4f}",
        }
        if (bits := run.bits_per_byte(best["val_loss"])) is not None:
            facts["bits per byte"] = f"{bits:.4f}"
    if run.parameters is not None:
        facts["parameters"] = f"{run.parameters:,}"
    speed, mfu, seconds = run.median("tokens_per_second"), run.median("mfu"), run.median("seconds")
    if speed is not None and mfu is not None and seconds is not None:
        facts |= {"tok/s": f"{speed:,.0f}", "mfu": f"{mfu:.2%}", "time an update": f"{seconds * 1000:,.2f}ms"}
    if run.seconds:
        facts["from start to end"] = duration(run.seconds)
    if "machine" in run.started:
        facts["on"] = run.started["machine"]
    return facts


def _notes(runs: Sequence[Record]) -> list[str]:
    """Why the figures may not be comparable."""
    lines = []
    if len({(_data_identity(run, "val"), *_evaluated_blocks(run)) for run in runs}) > 1:
        lines.append("these runs were validated on different data or blocks, so their losses cannot be compared")
    elif len({_data_identity(run, "train") for run in runs}) > 1:
        lines.append("these runs were trained on different data")
    if () in {_data_identity(run, "val") for run in runs}:
        lines.append("some of them do not record their validation data")
    return lines + [f"{run.out_dir}: is still running" for run in runs if run.running]


def _evaluated_blocks(run: Record) -> tuple[object, ...]:
    """What says into which blocks the split is cut, and how many an evaluation reads."""
    values = run.recipe | run.started.get("identity", {})  # where `auto` is decided
    read = run.started.get("eval_rows")
    if read is None and values.get("eval_iters"):  # an older run
        read = values["eval_iters"] * (values.get("batch_size") or 0)
    is_whole = read is None or 0 < run.started.get("split_blocks", {}).get("val", 0) <= read
    return values.get("block_size"), values.get("isolate_documents"), None if is_whole else read


def _data_identity(run: Record, split: str) -> tuple[tuple[str, str], ...]:
    """The entries for a split in the identity of a run, () if it is not recorded."""
    return tuple(sorted((key, str(it)) for key, it in run.started.get("identity", {}).items() if key.startswith(split)))
