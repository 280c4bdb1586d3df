"""Read-only view of a run directory."""

from __future__ import annotations

import math
import statistics
import sys
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeGuard

from finetune.common import files
from finetune.common.commands import command
from finetune.common.errors import UsageError
from finetune.common.formatting import is_number
from finetune.common.json_output import printable_json
from finetune.common.lock import is_locked
from finetune.config.paths import split_paths
from finetune.data import dataset, description
from finetune.runs.checkpoints import states
from finetune.runs.datasets import places_of
from finetune.runs.events import LOSSES, Event, best_of, read_metrics

BEGINS, ENDS = ("start", "resume"), ("end", "stop", "failed")  # of a session; a resumed run has several
MISSING = "does not exist"
ROWS = "rows per iteration (batch_size x gradient_accumulation_steps)"  # a key of a run's identity
SIZES = ("n_embd", "n_layer", "vocab_size", "n_positions", "n_inner")  # whole numbers of config.json


@dataclass
class Data:
    """A dataset of a run, as far as it is found from here."""

    name: str  # in the recipe
    directory: Path | None = None
    meta: dict[str, Any] = field(default_factory=dict)  # its meta.json
    same: bool | None = None  # whether the bins are those of the run; None if unknown

    def split(self, name: str) -> dict[str, Any]:
        """The counts of a split: tokens, and more if there is a meta.json."""
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
        return next((event for event in reversed(self.events) if event["event"] in BEGINS), {})

    @cached_property
    def session(self) -> list[Event]:
        """The events since the newest start or resume."""
        starts = [place for place, event in enumerate(self.events, 1) if event["event"] in BEGINS]
        return self.events[starts[-1] if starts else 0 :]

    @property
    def recipe(self) -> dict[str, Any]:
        """{key: value}, derived values included."""
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
        given = [self.config.get("vocab_size"), *(part.meta.get("vocab_size") for part in self.data)]
        return next((size for size in given if _is_size(size)), 50257)

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
        return [event for event in self.of("eval") if has_numbers(event, *LOSSES)]

    @cached_property
    def best(self) -> Event:
        """The evaluation of the model in best/, or {}."""
        return best_of(self.evaluations, self.facts) or {}

    @cached_property
    def done(self) -> int:
        """Updates made, as far as recorded: not all are logged."""
        marks = [*self.evaluations, *filter(None, [self.started]), *self.in_session(*ENDS)]
        return max([0, *(event["iter"] + 1 for event in self.updates), *(event.get("step", 0) for event in marks)])

    @property
    def length(self) -> int:
        """Planned updates."""
        return self.started.get("length", self.done)

    @property
    def ended(self) -> bool:
        return bool(self.in_session("end"))

    @property
    def killed(self) -> bool:
        """Whether the newest session ended without recording an end, a signal or an error."""
        return bool(self.started) and not self.running and not self.in_session(*ENDS)

    @property
    def failure(self) -> Event | None:
        """The failure that ended the newest session: of several ranks the first one, which has the cause."""
        return next(iter(self.in_session("failed")), None)

    @property
    def failure_line(self) -> str:
        """The first line of the failure's message."""
        return self.failure["problem"].splitlines()[0] if self.failure else ""

    @property
    def stop_signal(self) -> str | None:
        """The signal that ended the newest session; "callback" if a callback did."""
        return next((event.get("signal", "a signal") for event in self.in_session("stop")), None)

    @property
    def ended_early(self) -> bool:
        """Whether early stopping ended it."""
        return self.ended and self.done < self.length

    @property
    def seconds(self) -> float:
        """From start to the last event, summed over the sessions of a resumed run."""
        total, previous = 0.0, None  # time of the event before, None between sessions
        for event in self.events:
            if event["event"] in BEGINS:
                previous = event["time"]
            elif previous is not None:
                total += event["time"] - previous
                previous = None if event["event"] in ENDS else event["time"]
        return total

    @property
    def train_tokens(self) -> int | None:
        """Tokens to train on, None if unknown."""
        splits = [part.split("train") for part in self.data]
        known = splits and all("tokens" in split for split in splits)
        return sum(split["tokens"] for split in splits) if known else None

    def passes(self, updates: int) -> float | None:
        """Passes over the training data in so many updates, None if unknown."""
        rows, block_size = self.started.get("identity", {}).get(ROWS), self.recipe.get("block_size")
        if rows and (blocks := self.started.get("split_blocks", {}).get("train")):  # older runs lack them
            return updates * rows / blocks
        return updates * rows * block_size / self.train_tokens if rows and block_size and self.train_tokens else None

    def of(self, kind: str) -> list[Event]:
        return [event for event in self.events if event["event"] == kind]

    def in_session(self, *kinds: str) -> list[Event]:
        """The events of these kinds in the newest session."""
        return [event for event in self.session if event["event"] in kinds]

    @property
    def evaluation(self) -> Event:
        """The newest result of finetune.eval since best/ was last written, or {}."""
        newest = [event for event in self.events if event["event"] in ("best", "evaluation")][-1:]
        return next((event for event in newest if event["event"] == "evaluation"), {})

    def median(self, name: str) -> float | None:
        """Median of a number in the log lines since the newest start, without the first, which is the slowest. None if
        there are none."""
        values = [event[name] for event in self.in_session("iter") if has_numbers(event, name)]
        return statistics.median(values[1:] or values) if values else None

    def bits_per_byte(self, loss: float) -> float | None:
        """A validation loss in bits; None if the bytes of the text or the number of its targets are unknown."""
        split = self.data[0].split("val") if len(self.data) == 1 and self.data[0].same else {}
        if "targets" in split or not split.get("bytes") or self.recipe.get("isolate_documents") == "true":
            return None
        return loss * (split["tokens"] - 1) / split["bytes"] / math.log(2)


def load(out_dir: str | Path, verify: bool = False) -> Record:
    """Read the Record of a run. `verify` reads all its checkpoints to compare their checksums. Raises UsageError."""
    out_dir = Path(out_dir)
    best, saved = out_dir / "best", states(out_dir)
    if not (out_dir / "metrics.jsonl").is_file() and not best.is_dir():
        raise UsageError(_no_run(out_dir))
    found_events = read_metrics(out_dir / "metrics.jsonl", lambda line: print(line, file=sys.stderr))
    events = [printable_json(event) for event in found_events if has_numbers(event, "time")]
    problems = {path: _damage(path, verify) for path in [best, *saved]}
    found = Record(
        out_dir,
        events,
        _config(best / "config.json"),
        printable_json(files.read_json_object(best / "finetune.json")),
        data=[],
        damaged={str(path.relative_to(out_dir)): problem for path, problem in problems.items() if problem},
        states=[path for path in saved if not problems[path]],
        running=is_locked(out_dir),
    )
    if found.failure:  # the other ranks are about to end
        found.running = False
    identity = found.started.get("identity", {})
    names = split_paths(found.recipe.get("dataset"))
    for number, name in enumerate(names, 1):
        keys = [dataset.identity_key(f"{split}.bin", number, len(names)) for split in ("train", "val")]
        found.data.append(_find_data(name, [identity.get(key) for key in keys]))
    return found


def _no_run(out_dir: Path) -> str:
    what = "holds no run" if out_dir.is_dir() else "no such directory"
    if (out_dir / "ckpt.pt").is_file():
        sample = command("sample", init_from=f"{out_dir}/ckpt.pt")
        what = f"holds no run but a ckpt.pt of nanoGPT; {sample} samples from it"
    runs = sorted({str(path.parent) for path in Path(".").glob("*/metrics.jsonl")})
    return f"out_dir {out_dir}: {what}" + (f"; runs here: {', '.join(runs)}" if runs else "")


def _find_data(name: str, wanted: list[str | None]) -> Data:
    """The dataset of a recipe, by its name or by the sha256 of its splits. A text is prepared under data/ by another
    name."""
    named = None
    for directory in places_of(name):
        if not (directory / "train.bin").is_file():
            continue
        meta = _meta(directory / "meta.json")
        splits = meta.get("splits", {})
        sums = [splits.get(split, {}).get("sha256") for split in ("train", "val")]
        if all(wanted) and sums == wanted:
            return Data(name, directory, meta, same=True)
        if named is None and directory in (Path(name), Path("data") / name):
            named = Data(name, directory, meta, same=False if all(sums) and all(wanted) else None)
    return named or Data(name)


def _damage(directory: Path, verify: bool) -> str | None:
    if not directory.is_dir():
        return MISSING
    if verify:
        return files.find_damage(directory)
    return None if (directory / files.MANIFEST).is_file() else f"it has no {files.MANIFEST}, so it was never finished"


def _meta(path: Path) -> dict[str, Any]:
    """A meta.json; {} if it describes no data."""
    found = printable_json(files.read_json_object(path))
    try:
        description.check(found)
    except (ValueError, KeyError, TypeError):
        return {}
    return found


def _config(path: Path) -> dict[str, Any]:
    """A config.json, without sizes that are none."""
    found = printable_json(files.read_json_object(path))
    return {name: value for name, value in found.items() if name not in SIZES or _is_size(value)}


def _is_size(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 < value < 1 << 32


def has_numbers(event: Event, *names: str) -> bool:
    return all(is_number(event.get(name)) for name in names)
