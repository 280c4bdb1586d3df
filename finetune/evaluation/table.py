"""The figures of an evaluation as a table for the terminal, and as an event in metrics.jsonl."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from finetune.runs.logger import RunLogger

FIGURES = {"loss": "{:.4f}", "perplexity": "{:.2f}", "bits_per_byte": "{:.4f}", "accuracy": "{:.4f}"}


def table(event: dict[str, Any]) -> str:
    """The figures of an "evaluation" event, aligned: of the model, of the baseline, and their difference."""
    base, general = event.get("baseline", {}), event.get("general", {})
    rows = [(name.replace("_", " "), event[name], base.get(name), style) for name, style in FIGURES.items()]
    for name, value in event.get("metrics", {}).items():
        if isinstance(value, int | float):
            rows.append((name, value, base.get("metrics", {}).get(name), "{:.4g}"))
    if general:
        rows.append((f"loss on {Path(general['name']).name}", general["loss"], general["baseline_loss"], "{:.4f}"))
        rows.append(("KL(baseline || model)", general["kl"], None, "{:.4f}"))
    header = f"{'':28}{_short(event['model']):>16}"
    if base:
        header += f"{_short(base['name']):>16}{'difference':>16}"
    lines = [header]
    for name, value, other, style in rows:
        line = f"{name:28}{'not known' if value is None else style.format(value):>16}"
        if other is not None and value is not None:
            line += f"{style.format(other):>16}"
            if name != "perplexity":
                line += f"{value - other:>+16.4f}"
            if name == "loss" and event["difference"]["low"] is not None:
                line += f"  ({event['difference']['low']:+.4f} to {event['difference']['high']:+.4f})"
        lines.append(line)
    return "\n".join(lines + _copies(event.get("memorisation", {})))


def record(out_dir: str | Path, event: dict[str, Any]) -> None:
    """Append the event to the metrics.jsonl of a run; say so if that cannot be written."""
    logger = RunLogger(out_dir, write=True)
    try:
        logger.append()
    except OSError as error:
        print(f"{logger.path} cannot be written: {error.strerror}; these figures are not kept there")
        return
    logger.record("evaluation", **event)
    logger.close()


def _copies(copied: dict[str, Any]) -> list[str]:
    """Lines about samples that repeat the training data."""
    if not copied:
        return []
    lines = [
        f"{'copied ' + str(copied['ngram']) + '-grams':28}{copied['copied']:>16.1%}",
        f"{'longest copied span':28}{copied['longest']:>9,} tokens",
    ]
    if copied["longest"]:
        lines[-1] += f", at token {copied['offset']:,} of train.bin"
    if text := " ".join((copied.get("text") or "").split()):
        lines.append(f"    “{text if len(text) <= 100 else text[:99] + '…'}”")
    return lines


def _short(name: str) -> str:
    return name if len(name) <= 15 else f"…{name[-14:]}"
