"""What a run left in its out_dir, for whoever judges or shows it."""

from __future__ import annotations

import math
import re
import statistics
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from finetune.common import files
from finetune.common.errors import UsageError
from finetune.common.formatting import is_number
from finetune.data import dataset
from finetune.runs.datasets import places_of
from finetune.runs.events import read_metrics

MISSING = "there is none"
NO_TEXT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


@dataclass
class Data:
    """A dataset that a run read, as far as it can be found from here."""

    name: str  # as the recipe calls it
    directory: Path | None = None
    meta: dict = field(default_factory=dict)  # its meta.json
    same: bool | None = None  # whether these are still the bins of the run; None where nobody can tell

    def split(self, name):
        """What is known of a split: tokens, and more where there is a meta.json."""
        described = self.meta.get("splits", {}).get(name, {})
        path = self.directory / f"{name}.bin" if self.directory else None
        return {"tokens": path.stat().st_size // 2, **described} if path and path.is_file() else described

    @property
    def findings(self):
        """{kind: {"count", "examples"}} of what the doctor found wrong."""
        return {
            kind: found for kind, found in self.meta.get("doctor", {}).get("findings", {}).items() if found.get("count")
        }


@dataclass
class Record:
    """A run, read from its files. Empty parts mean that nothing was written of them."""

    out_dir: Path
    events: list  # of metrics.jsonl, whole
    config: dict  # config.json of best/
    facts: dict  # finetune.json of best/
    data: list  # of Data
    damaged: dict  # {"best" or "last/step-N": what is wrong with it}
    states: list  # directories to resume from that are whole, newest first
    running: bool

    @property
    def title(self):
        return self.out_dir.resolve().name

    @cached_property
    def started(self):
        """The newest `start` or `resume` event."""
        return next((event for event in reversed(self.events) if event["event"] in ("start", "resume")), {})

    @cached_property
    def session(self):
        """What has happened since the newest start or resume."""
        begins = max(
            (place for place, event in enumerate(self.events) if event["event"] in ("start", "resume")), default=-1
        )
        return self.events[begins + 1 :]

    @property
    def recipe(self):
        """{key: value} with the values that were worked out."""
        return self.started.get("recipe", {})

    @property
    def init_from(self):
        """Where the first weights came from, None where nothing says it."""
        named = (event.get("recipe", {}).get("init_from") for event in self.of("start"))
        return next((name for name in [*named, self.facts.get("init_from")] if name and name != "resume"), None)

    @property
    def vocab_size(self):
        return self.config.get("vocab_size") or next(
            (part.meta["vocab_size"] for part in self.data if "vocab_size" in part.meta), 50257
        )

    @property
    def parameters(self):
        """How many the model has, None before there is one."""
        try:
            C, L, V, T = (self.config[name] for name in ("n_embd", "n_layer", "vocab_size", "n_positions"))
        except KeyError:
            return None
        inner = self.config.get("n_inner") or 4 * C
        return (V + T) * C + L * (4 * C * C + 2 * C * inner + 9 * C + inner) + 2 * C

    @cached_property
    def updates(self):
        return [event for event in self.of("iter") if _numbers(event, "iter", "loss")]

    @cached_property
    def evaluations(self):
        return [event for event in self.of("eval") if _numbers(event, "step", "train_loss", "val_loss")]

    @cached_property
    def best(self):
        """The evaluation with the lowest validation loss, or {}."""
        return min(self.evaluations, key=lambda event: event["val_loss"], default={})

    @cached_property
    def done(self):
        """Updates made, as far as they were recorded."""
        return max([0, *(event["iter"] + 1 for event in self.updates), *(event["step"] for event in self.evaluations)])

    @property
    def length(self):
        """Updates the run was to make."""
        return self.started.get("length", self.done)

    @property
    def ended(self):
        return any(event["event"] == "end" for event in self.session)

    @property
    def failure(self):
        """The event of the failure that ended the newest session, or None. Of several processes the first to fail says
        why; others only that it is gone."""
        return next((event for event in self.session if event["event"] == "failed"), None)

    @property
    def ended_early(self):
        """Whether patience ended it."""
        return self.ended and self.done < self.length

    @property
    def seconds_an_update(self):
        """Median over the log lines since the newest start, None without any."""
        return self.median("seconds")

    @property
    def seconds(self):
        """From start to the last event, summed over the sessions of a resumed run."""
        total, begun, last = 0.0, None, None
        for event in self.events:
            if event["event"] in ("start", "resume"):
                total += (last - begun) if begun else 0.0
                begun = event["time"]
            last = event["time"]
            if event["event"] in ("end", "stop", "failed"):
                total, begun = total + (last - begun if begun else 0.0), None
        return total + (last - begun if begun else 0.0)

    def of(self, kind):
        return [event for event in self.events if event["event"] == kind]

    def newest(self, kind):
        return next((event for event in reversed(self.events) if event["event"] == kind), None)

    def median(self, name):
        """Median of a number of the log lines since the newest start, None without any. The first update is slower than
        all others."""
        values = [event[name] for event in self.session if event["event"] == "iter" and _numbers(event, name)]
        return statistics.median(values[1:] or values) if values else None

    def bits_per_byte(self, loss):
        """Of validation, None where the bytes of its text, or how many of its tokens are targets, are not known."""
        split = self.data[0].split("val") if len(self.data) == 1 and self.data[0].same else {}
        if "targets" in split or not split.get("bytes") or self.recipe.get("isolate_documents") == "true":
            return None
        return loss * (split["tokens"] - 1) / split["bytes"] / math.log(2)


def load(out_dir, verify=False):
    """The Record of a run. With `verify`, what it saved is compared with its checksums, which reads it all. Raises
    UsageError."""
    out_dir = Path(out_dir)
    if not (out_dir / "metrics.jsonl").is_file() and not (out_dir / "best").is_dir():
        runs = sorted({str(path.parent) for path in Path(".").glob("*/metrics.jsonl")})
        known = f"; runs here: {', '.join(runs)}" if runs else ""
        what = "holds no run" if out_dir.is_dir() else "no such directory"
        if (out_dir / "ckpt.pt").is_file():
            what = (
                f"holds no run but a ckpt.pt of nanoGPT; python -m finetune.sample --init_from={out_dir}/ckpt.pt speaks"
                " with it"
            )
        raise UsageError(f"out_dir {out_dir}: {what}{known}")
    events = [_text(event) for event in read_metrics(out_dir / "metrics.jsonl") if _numbers(event, "time")]
    saved = sorted((path for path in (out_dir / "last").glob("step-*") if path.is_dir()), reverse=True)
    damaged = {str(path.relative_to(out_dir)): _damage(path, verify) for path in [out_dir / "best", *saved]}
    damaged = {name: problem for name, problem in damaged.items() if problem}
    states = [path for path in saved if str(path.relative_to(out_dir)) not in damaged]
    best = out_dir / "best"
    found = Record(
        out_dir,
        events,
        _json(best / "config.json"),
        _json(best / "finetune.json"),
        [],
        damaged,
        states,
        files.is_locked(out_dir),
    )
    if found.failure:  # its other processes are about to end as well
        found.running = False
    if names := found.recipe.get("dataset"):
        identity, names = found.started.get("identity", {}), names.split(",")
        for number, name in enumerate(names, 1):
            wanted = [
                identity.get(dataset.identity_key(f"{split}.bin", number, len(names))) for split in ("train", "val")
            ]
            found.data.append(_find_data(name.strip(), *wanted))
    return found


def _find_data(name, *wanted):
    """The Data that a recipe calls so; a text that was prepared on the fly lies under data/ by another name, and is
    known by its sums."""
    named = None
    for number, directory in enumerate(places_of(name)):
        if (directory / "train.bin").is_file():
            meta = _json(directory / "meta.json")
            splits = meta.get("splits") if isinstance(meta.get("splits"), dict) else {}
            sums = [splits.get(split, {}).get("sha256") for split in ("train", "val")]
            if all(wanted) and sums == list(wanted):
                return Data(name, directory, meta, same=True)
            if number < 2 and named is None:
                named = Data(name, directory, meta, same=False if all(sums) and all(wanted) else None)
    return named or Data(name)


def _damage(directory, verify):
    """What is wrong with a published directory, in words, or None."""
    if not directory.is_dir():
        return MISSING
    if verify:
        return files.find_damage(directory)
    return None if (directory / files.MANIFEST).is_file() else f"it has no {files.MANIFEST}, so it was never finished"


def _json(path):
    """The object in a JSON file; {} if there is none that can be read."""
    return _text(files.read_json_object(path))


def _text(value):
    """A value of JSON whose texts can be printed: control characters, which a terminal would obey, and halves of
    surrogate pairs are replaced."""
    if isinstance(value, str):
        return NO_TEXT.sub("\ufffd", value)
    if isinstance(value, dict):
        return {_text(name): _text(part) for name, part in value.items()}
    return [_text(part) for part in value] if isinstance(value, list) else value


def _numbers(event, *names):
    """Whether these values are finite numbers."""
    return all(is_number(event.get(name)) for name in names)
