"""Read-only view of a run directory."""

from __future__ import annotations

import math
import re
import statistics
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from finetune.common import files
from finetune.common.errors import UsageError
from finetune.common.formatting import is_number
from finetune.data import dataset
from finetune.runs.events import read_metrics

MISSING = "does not exist"
UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
ROWS = "rows per iteration (batch_size x gradient_accumulation_steps)"  # a key of a run's identity
Event = dict[str, Any]  # a line of metrics.jsonl


@dataclass
class Data:
    """A dataset that a run read, as far as it can be found from here."""

    name: str  # in the recipe
    directory: Path | None = None
    meta: dict[str, Any] = field(default_factory=dict)  # its meta.json
    same: bool | None = None  # whether these are still the bins of the run; None if unknown

    def split(self, name: str) -> dict[str, Any]:
        """What is known of a split: tokens, and more if there is a meta.json."""
        described = self.meta.get("splits", {}).get(name, {})
        path = self.directory / f"{name}.bin" if self.directory else None
        return {"tokens": path.stat().st_size // 2, **described} if path and path.is_file() else described

    @property
    def findings(self) -> dict[str, dict[str, Any]]:
        """{kind: {"count", "examples"}} of what the doctor found wrong."""
        findings = self.meta.get("doctor", {}).get("findings", {})
        return {kind: found for kind, found in findings.items() if found.get("count")}


@dataclass
class Record:
    """A run, read from its files. Parts without a file are empty."""

    out_dir: Path
    events: list[Event]  # all of metrics.jsonl
    config: dict[str, Any]  # config.json of best/
    facts: dict[str, Any]  # finetune.json of best/
    data: list[Data]
    damaged: dict[str, str]  # {"best" or "last/step-N": what is wrong with it}
    states: list[Path]  # complete states to resume from, newest first
    running: bool

    @cached_property
    def started(self) -> Event:
        """The newest `start` or `resume` event, or {}."""
        return next((event for event in reversed(self.events) if event["event"] in ("start", "resume")), {})

    @cached_property
    def session(self) -> list[Event]:
        """The events since the newest start or resume."""
        starts = [place for place, event in enumerate(self.events) if event["event"] in ("start", "resume")]
        return self.events[starts[-1] + 1 :] if starts else self.events

    @property
    def recipe(self) -> dict[str, Any]:
        """{key: value} with the derived values."""
        return self.started.get("recipe", {})

    @property
    def init_from(self) -> str | None:
        """Where the first weights came from, None if unknown."""
        named = (event.get("recipe", {}).get("init_from") for event in self.of("start"))
        return next((name for name in [*named, self.facts.get("init_from")] if name and name != "resume"), None)

    @property
    def pretrained(self) -> bool:
        return self.init_from != "scratch"

    @property
    def vocab_size(self) -> int:
        sizes = [part.meta["vocab_size"] for part in self.data if "vocab_size" in part.meta]
        return self.config.get("vocab_size") or (sizes[0] if sizes else 50257)

    @property
    def parameters(self) -> int | None:
        """The size of the model, None before there is one."""
        try:
            C, L, V, T = (self.config[name] for name in ("n_embd", "n_layer", "vocab_size", "n_positions"))
        except KeyError:
            return None
        inner = self.config.get("n_inner") or 4 * C
        return (V + T) * C + L * (4 * C * C + 2 * C * inner + 9 * C + inner) + 2 * C

    @cached_property
    def updates(self) -> list[Event]:
        return [event for event in self.of("iter") if has_numbers(event, "iter", "loss")]

    @cached_property
    def evaluations(self) -> list[Event]:
        return [event for event in self.of("eval") if has_numbers(event, "step", "train_loss", "val_loss")]

    @cached_property
    def best(self) -> Event:
        """The evaluation with the lowest validation loss, or {}."""
        return min(self.evaluations, key=lambda event: event["val_loss"], default={})

    @cached_property
    def done(self) -> int:
        """Updates made, as far as recorded."""
        return max([0, *(event["iter"] + 1 for event in self.updates), *(event["step"] for event in self.evaluations)])

    @property
    def length(self) -> int:
        """Planned updates."""
        return self.started.get("length", self.done)

    @property
    def ended(self) -> bool:
        return self.last("end") is not None

    @property
    def killed(self) -> bool:
        """Whether the newest session ended without a word."""
        ends = [event for event in self.session if event["event"] in ("end", "stop", "failed")]
        return bool(self.started) and not self.running and not ends

    @property
    def failure(self) -> Event | None:
        """The failure that ended the newest session. Of several ranks the first to fail says why, the others only that
        it is gone."""
        return next((event for event in self.session if event["event"] == "failed"), None)

    @property
    def ended_early(self) -> bool:
        """Whether early stopping (patience) ended it."""
        return self.ended and self.done < self.length

    @property
    def seconds(self) -> float:
        """From start to the last event, summed over the sessions of a resumed run."""
        total, previous = 0.0, None  # time of the event before, None between sessions
        for event in self.events:
            begins = event["event"] in ("start", "resume")
            if previous is not None and not begins:
                total += event["time"] - previous
            if event["event"] in ("end", "stop", "failed"):
                previous = None
            elif begins or previous is not None:
                previous = event["time"]
        return total

    @property
    def train_tokens(self) -> int | None:
        """Tokens to train on, None if unknown."""
        known = [part.split("train")["tokens"] for part in self.data if "tokens" in part.split("train")]
        return sum(known) if known and len(known) == len(self.data) else None

    def passes(self, updates: int) -> float | None:
        """Passes over the training data in so many updates, None if unknown."""
        rows, block_size = self.started.get("identity", {}).get(ROWS), self.recipe.get("block_size")
        if not rows or not block_size or not self.train_tokens:
            return None
        return updates * rows * block_size / self.train_tokens

    def of(self, kind: str) -> list[Event]:
        return [event for event in self.events if event["event"] == kind]

    def newest(self, kind: str) -> Event | None:
        return next((event for event in reversed(self.events) if event["event"] == kind), None)

    def last(self, kind: str) -> Event | None:
        """The newest event of a kind in the newest session."""
        return next((event for event in reversed(self.session) if event["event"] == kind), None)

    def median(self, name: str) -> float | None:
        """Median of a number in the log lines since the newest start, None if there are none. Without the first, which
        is slower than all others."""
        values = [event[name] for event in self.session if event["event"] == "iter" and has_numbers(event, name)]
        return statistics.median(values[1:] or values) if values else None

    def bits_per_byte(self, loss: float) -> float | None:
        """Of validation; None if the bytes of its text, or which of its tokens are targets, are unknown."""
        split = self.data[0].split("val") if len(self.data) == 1 and self.data[0].same else {}
        if "targets" in split or not split.get("bytes") or self.recipe.get("isolate_documents") == "true":
            return None
        return loss * (split["tokens"] - 1) / split["bytes"] / math.log(2)


def load(out_dir: str | Path, verify: bool = False) -> Record:
    """The Record of a run. `verify` compares its checkpoints with their checksums, which reads them all. Raises
    UsageError."""
    out_dir = Path(out_dir)
    best, last = out_dir / "best", out_dir / "last"
    if not (out_dir / "metrics.jsonl").is_file() and not best.is_dir():
        raise UsageError(_no_run(out_dir))
    events = [_printable(event) for event in read_metrics(out_dir / "metrics.jsonl") if has_numbers(event, "time")]
    saved = sorted((path for path in last.glob("step-*") if path.is_dir()), reverse=True)
    problems = {path: _damage(path, verify) for path in [best, *saved]}
    found = Record(
        out_dir,
        events,
        _read_object(best / "config.json"),
        _read_object(best / "finetune.json"),
        data=[],
        damaged={str(path.relative_to(out_dir)): problem for path, problem in problems.items() if problem},
        states=[path for path in saved if not problems[path]],
        running=files.is_locked(out_dir),
    )
    if found.failure:  # the other ranks are about to end as well
        found.running = False
    identity = found.started.get("identity", {})
    names = found.recipe["dataset"].split(",") if found.recipe.get("dataset") else []
    for number, name in enumerate(names, 1):
        keys = [dataset.identity_key(f"{split}.bin", number, len(names)) for split in ("train", "val")]
        found.data.append(_find_data(name.strip(), [identity.get(key) for key in keys]))
    return found


def _no_run(out_dir: Path) -> str:
    what = "holds no run" if out_dir.is_dir() else "no such directory"
    if (out_dir / "ckpt.pt").is_file():
        sample = f"python -m finetune.sample --init_from={out_dir}/ckpt.pt"
        what = f"holds no run but a ckpt.pt of nanoGPT; {sample} samples from it"
    runs = sorted({str(path.parent) for path in Path(".").glob("*/metrics.jsonl")})
    return f"out_dir {out_dir}: {what}" + (f"; runs here: {', '.join(runs)}" if runs else "")


def _find_data(name: str, wanted: list[str | None]) -> Data:
    """The dataset of a recipe, by its name or by the sha256 of its splits: a text that training prepared is under data/
    by another name."""
    named = None
    for directory in (Path(name), Path("data") / name, *sorted(Path("data").glob("*"))):
        if not (directory / "train.bin").is_file():
            continue
        meta = _read_object(directory / "meta.json")
        splits = meta.get("splits") if isinstance(meta.get("splits"), dict) else {}
        sums = [splits.get(split, {}).get("sha256") for split in ("train", "val")]
        if all(wanted) and sums == wanted:
            return Data(name, directory, meta, same=True)
        if named is None and directory in (Path(name), Path("data") / name):
            named = Data(name, directory, meta, same=False if all(sums) and all(wanted) else None)
    return named or Data(name)


def _damage(directory: Path, verify: bool) -> str | None:
    """What is wrong with a checkpoint."""
    if not directory.is_dir():
        return MISSING
    if verify:
        return files.find_damage(directory)
    return None if (directory / files.MANIFEST).is_file() else f"it has no {files.MANIFEST}, so it was never finished"


def _read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file, {} without one."""
    return _printable(files.read_json_object(path))


def _printable(value: Any) -> Any:
    """A JSON value with control characters, which steer a terminal, and lone surrogates replaced."""
    if isinstance(value, str):
        return UNPRINTABLE.sub("\ufffd", value)
    if isinstance(value, dict):
        return {_printable(name): _printable(part) for name, part in value.items()}
    return [_printable(part) for part in value] if isinstance(value, list) else value


def has_numbers(event: Event, *names: str) -> bool:
    """Whether these values are finite numbers."""
    return all(is_number(event.get(name)) for name in names)
