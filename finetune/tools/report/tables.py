"""The tables of the report."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from finetune.common.formatting import duration, is_number, perplexity
from finetune.config.paths import names_of
from finetune.data.description import COUNTS
from finetune.tools.report.record import Data, Event, Record

LISTED_EVENTS = (
    "resume", "batch_size", "out_of_memory", "diverged", "rollback", "save_failed", "warning", "stop", "failed", "end",
)  # fmt: skip
TEXTS = {
    "rollback": "back to step {step}, learning rates times {lr_scale:g}: {problem}",
    "batch_size": "batch_size {batch_size}, gradient_accumulation_steps {gradient_accumulation_steps}",
    "resume": "resumed at step {step}, {machine}",
}
MEASUREMENTS = ("loss", "perplexity", "bits_per_byte", "accuracy")
MAX_SOURCES = 20
SAME = ("start", "num_samples", "max_new_tokens", "temperature", "top_k", "seed")  # of samples to be compared


class Table(NamedTuple):
    head: Sequence[str]
    rows: Sequence[Sequence[object]]
    long: tuple[int, ...] = ()  # columns that hold sentences


class Pair(NamedTuple):
    """A sample of the model before its first update, and one of the best model."""

    prompt: str
    before: str
    after: str


def title(run: Record) -> tuple[str, str]:
    """(title, date): the model and its data, and the day on which the run began."""
    model = "GPT-2 from scratch" if run.init_from == "scratch" else Path(run.init_from or run.out_dir.resolve()).name
    names = names_of(run.recipe.get("dataset"))
    began = next((event["time"] for event in run.of("start")), None)
    date = "not dated"
    if began is not None:
        with suppress(OverflowError, ValueError, OSError):  # no year that a calendar has
            date = time.strftime("%Y-%m-%d", time.localtime(began))
    return f"{model} on {', '.join(names)}" if names else model, date


def side_by_side(run: Record) -> list[Pair]:
    """Samples before and after training, of the same prompt, seed and settings."""
    base = next(iter(run.of("base_samples")), {})
    best = [event for event in run.of("samples") if event.get("step") == run.best.get("step")][-1:]
    if not base or not best or any(base.get(name) != best[0].get(name) for name in SAME):
        return []
    prompt, texts = str(base.get("start", "")), zip(base.get("texts", []), best[0].get("texts", []))
    return [Pair(prompt, str(before).removeprefix(prompt), str(after).removeprefix(prompt)) for before, after in texts]


def before_and_after(run: Record) -> Table:
    if len(run.evaluations) < 2:
        return Table((), ())
    first, best = run.evaluations[0], run.best
    pairs = [
        ("validation loss", first["val_loss"], best["val_loss"]),
        ("train loss", first["train_loss"], best["train_loss"]),
    ]
    if "val_losses" in best:
        of_datasets = first.get("val_losses", {}).items()
        pairs += [(f"validation loss of {name}", loss, best["val_losses"].get(name)) for name, loss in of_datasets]
    pairs.append(("perplexity", perplexity(first["val_loss"]), perplexity(best["val_loss"])))
    if (bits := run.bits_per_byte(first["val_loss"])) is not None:
        pairs.append(("bits per byte", bits, run.bits_per_byte(best["val_loss"])))
    rows = [
        (name, f"{before:,.4f}", f"{after:,.4f}", f"{after - before:+,.4f}")
        for name, before, after in pairs
        if after is not None
    ]
    return Table(("", f"step {first['step']}", f"best, step {best['step']}", "change"), rows)


def evaluation(event: Event) -> Table:
    """The result of finetune.eval beside its baseline, if any."""
    baseline, general = event.get("baseline") or {}, event.get("general") or {}
    copied = event.get("memorisation") or {}
    grams = f"memorisation: {copied.get('ngram')}-grams of samples that are in train.bin"
    rows = [
        *((name.replace("_", " "), event.get(name), ".4f", baseline.get(name)) for name in MEASUREMENTS),
        *((name, value, ".4g", None) for name, value in (event.get("metrics") or {}).items()),
        ("forgetting: loss on a general text", general.get("loss"), ".4f", general.get("baseline_loss")),
        ("forgetting: KL(baseline || model)", general.get("kl"), ".4f", None),
        (grams, copied.get("copied"), ".1%", None),
        ("memorisation: longest copy, tokens", copied.get("longest"), "", None),
    ]
    shown = [
        (name, format(value, style), f"{before:.4f}" if is_number(before) else "")
        for name, value, style, before in rows
        if is_number(value)
    ]
    return Table(("", "model", baseline.get("name", "")), shown)


def events(run: Record) -> Table:
    """The events other than updates, evaluations and samples."""
    begun = run.events[0]["time"] if run.events else 0
    rows = []
    for event in run.events:
        if event["event"] in LISTED_EVENTS:
            name = event["event"].replace("_", " ")
            rows.append((duration(event["time"] - begun), f"{step_of(event):,}", name, text_of(event)))
    return Table(("time", "update", "what", ""), rows, long=(3,))


def step_of(event: Event) -> int:
    """The update at which an event happened; of a rollback, the update that was reached."""
    return event.get("reached") or event.get("step") or 0


def text_of(event: Event) -> str:
    """The result of an event, or its reason."""
    kind = event["event"]
    if kind in TEXTS:
        with suppress(KeyError, ValueError, TypeError, IndexError):  # the event of another program
            return TEXTS[kind].format(**{"machine": "", **event})
    if kind == "end":
        best = event.get("best")
        return f"best validation loss {best['val_loss']:.4f} at step {best['step']}" if best else ""
    return str(event.get("problem") or event.get("done") or event.get("line") or event.get("signal") or "")


def splits(part: Data) -> Table:
    """The counts of both splits; no rows if the dataset was not found."""
    found = {name: part.split(name) for name in ("train", "val")}
    counts = [key for key in COUNTS if any(key in split for split in found.values())]
    if part.meta.get("split_by") == "text":  # one running text, not documents
        counts = [key for key in counts if key != "documents"]
    rows = [
        (name, *(f"{split[key]:,}" if is_number(split.get(key)) else "" for key in counts))
        for name, split in found.items()
    ]
    return Table(("split", *counts), rows if any(found.values()) else ())


def sources(part: Data) -> Table:
    listed = [*part.meta.get("sources", []), *part.meta.get("val_sources", [])]
    rows = [
        (source.get("name"), f"{source.get('bytes') or 0:,}", str(source.get("sha256", ""))[:16])
        for source in listed[:MAX_SOURCES]
    ]
    return Table(("source", "bytes", "sha256"), rows)


def findings(part: Data) -> Table:
    """What the doctor found, each kind with an example."""
    from finetune.tools.doctor.quality import KINDS

    rows = []
    for kind, found in part.findings.items():
        example = (found.get("examples") or [{}])[0]
        where = f"{example.get('split', '')} {example.get('document', '')}"
        rows.append((f"{found['count']:,}", KINDS.get(kind, (kind,))[0], where, example.get("text", "")))
    return Table(("count", "what the doctor found", "first in", "such as"), rows, long=(1, 3))


def sample(part: Data) -> list[list[tuple[str, bool]]]:
    """The first documents that the doctor saw, each as texts and whether the model learns them."""
    documents = part.meta.get("doctor", {}).get("sample", [])
    return [[(str(text), bool(is_target)) for text, is_target in document] for document in documents]
