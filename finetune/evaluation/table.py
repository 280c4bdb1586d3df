"""What an evaluation came to: a table for the screen, an event for metrics.jsonl."""

import math
from pathlib import Path

from finetune.runs.logger import RunLogger


def table(event):
    """The figures of an "evaluation" event, aligned: the model's, the baseline's, and their difference where it can be
    told."""
    base, general = event.get("baseline", {}), event.get("general", {})
    rows = [(name.replace("_", " "), event[name], base.get(name), style) for name, style in FIGURES.items()]
    rows += [
        (name, value, base.get("metrics", {}).get(name), "{:.4g}")
        for name, value in event.get("metrics", {}).items()
        if isinstance(value, int | float)
    ]
    if general:
        rows.append((f"loss on {Path(general['name']).name}", general["loss"], general["baseline_loss"], "{:.4f}"))
        rows.append(("KL(baseline || model)", general["kl"], None, "{:.4f}"))
    lines = [f"{'':28}{_short(event['model']):>16}" + (f"{_short(base['name']):>16}{'difference':>16}" if base else "")]
    for name, value, other, style in rows:
        line = f"{name:28}{_shown(value, style):>16}"
        if other is not None and value is not None:
            line += f"{style.format(other):>16}" + f"{value - other:>+16.4f}" * (name != "perplexity")
            if name == "loss" and event["difference"]["low"] is not None:
                line += f"  ({event['difference']['low']:+.4f} to {event['difference']['high']:+.4f})"
        lines.append(line)
    if copied := event.get("memorisation"):
        lines.append(f"{'copied ' + str(copied['ngram']) + '-grams':28}{copied['copied']:>16.1%}")
        lines.append(f"{'longest copied span':28}{copied['longest']:>9,} tokens")
        if copied["longest"]:
            lines[-1] += f", at token {copied['offset']:,} of train.bin"
        if copied.get("text"):
            lines.append(f"    {_one_line(copied['text'])}")
    return "\n".join(lines)


def record(out_dir, event):
    """Append the event to the metrics.jsonl of a run."""
    progress = RunLogger(out_dir, write=True)
    progress.file = open(progress.path, "a", encoding="utf-8")
    progress.record("evaluation", **_plain(event))
    progress.close()


FIGURES = {"loss": "{:.4f}", "perplexity": "{:.2f}", "bits_per_byte": "{:.4f}", "accuracy": "{:.4f}"}


def _shown(value, style):
    return "not known" if value is None else style.format(value)


def _short(name):
    name = str(name)
    return name if len(name) <= 15 else f"…{name[-14:]}"


def _one_line(text):
    text = " ".join(text.split())
    return f"“{text if len(text) <= 100 else text[:99] + '…'}”"


def _plain(value):
    """The value as JSON can say it, which has no word for numbers that are none."""
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
