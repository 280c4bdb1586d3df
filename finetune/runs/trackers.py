"""Experiment trackers: each gets the points of metrics.jsonl, from a thread of its own.

A tracker may fail, hang or wait for a network. Training only puts rows into its queue, and neither stops nor waits."""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.common.errors import describe_error
from finetune.common.files import read_json_object, write_file
from finetune.common.formatting import perplexity
from finetune.runs import tracker_kinds
from finetune.runs.events import NOT_FINITE, Event
from finetune.runs.tracker_kinds import Place

if TYPE_CHECKING:
    from accelerate import Accelerator

START_SECONDS = 10  # that training waits for a tracker to start, and its lines to be printed
FINISH_SECONDS = 30  # that the end of a run waits for all trackers


@dataclass
class Row:
    """All that is logged at one step: a tracker may take a step only once."""

    step: int
    numbers: dict[str, float] = field(default_factory=dict)
    samples: list[tuple[str, str]] = field(default_factory=list)  # prompt and text
    picture: Path | None = None

    def add(self, event: str, values: Mapping[str, Any]) -> None:
        if event == "samples":
            self.samples = [(values.get("start", ""), text) for text in values["texts"]]
        elif event == "end":
            best = values["best"]
            self.numbers |= {f"best/{name}": value for name, value in best.items()}
            self.numbers["best/perplexity"] = perplexity(best["val_loss"])
        else:
            flat = {**values, **{f"val_loss/{name}": loss for name, loss in values.get("val_losses", {}).items()}}
            for name, value in flat.items():
                if isinstance(value, (int, float)) or value in NOT_FINITE:
                    self.numbers[f"{event}/{name}"] = value if isinstance(value, int) else float(value)


def rows_of(events: Iterable[Event]) -> list[Row]:
    """The rows of a run's updates, evaluations and samples, in order of their steps."""
    rows: dict[int, Row] = {}
    for event in events:
        if event["event"] in ("iter", "eval", "samples"):
            step = _step(event["event"], event)
            values = {name: value for name, value in event.items() if name not in ("event", "time")}
            rows.setdefault(step, Row(step)).add(event["event"], values)
    return [rows[step] for step in sorted(rows)]


def _step(event: str, values: Mapping[str, Any]) -> int:
    return values["iter" if event == "iter" else "step"]


class SavedRuns:
    """out_dir/trackers.json: for each tracker what identifies its run, and after a known end the last step it has,
    with the names of its numbers there."""

    def __init__(self, out_dir: Path) -> None:
        self.path, self.lock = out_dir.absolute() / "trackers.json", threading.Lock()
        self.values = read_json_object(self.path)

    def write(self, kind: str, values: Mapping[str, Any]) -> None:
        with self.lock:
            self.values[kind] = dict(values)
            write_file(self.path, json.dumps(self.values, indent=2) + "\n")


class Worker(threading.Thread):
    """The thread of one tracker."""

    def __init__(
        self, kind: str, accelerator: Accelerator, place: Place, kept: SavedRuns, say: Callable[[str], object]
    ) -> None:
        super().__init__(daemon=True, name=kind)
        self.kind, self.accelerator, self.place, self.kept, self.say = kind, accelerator, place, kept, say
        self.queue: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self.ready, self.failed = threading.Event(), False
        self.tracker: tracker_kinds.Tracker | None = None
        self.identity: dict[str, Any] = {}
        self.last = -1  # the last step that the tracker has
        self.names: list[str] | None = None  # of its numbers at that step, if known
        self.broken: set[str] = set()  # what it could not log: samples, picture

    def go_on(self, step: int, rows: Sequence[Row], surely_sent: int) -> None:
        """Start the tracker, or its run again at `step`, and send what it lacks of `rows`, those up to there."""
        former = self.kept.values.get(self.kind, {})
        if former and self.kind == "tensorboard":
            self.last = min(step, former.get("last", surely_sent) + 1) - 1
            former = {**former, "purge_step": self.last + 1}
        elif former:
            self.last, self.names = former.get("last", surely_sent), former.get("names")
        self.tracker, self.identity = tracker_kinds.start(self.kind, self.accelerator, self.place, former, self.say)
        self.kept.write(self.kind, self.identity)
        if former:
            known = tracker_kinds.last_step(self.kind, self.tracker, self.place)
            if known is not None and known != self.last:
                self.last, self.names = known, None
        for row in rows:
            self.send(row)

    def send(self, row: Row) -> None:
        if row.step < self.last or (row.step == self.last and self.names is None) or self.tracker is None:
            return
        former = self.names or [] if row.step == self.last else []  # a run ends after the evaluation of a step
        if numbers := {name: value for name, value in row.numbers.items() if name not in former}:
            self.tracker.log(numbers, step=row.step)
        self.last, self.names = row.step, [*former, *numbers]
        if former:
            return
        if row.samples:
            self._try("samples", tracker_kinds.log_samples, row.samples, row.step)
        if row.picture:
            self._try("picture", tracker_kinds.log_picture, row.picture, row.step)

    def _try(self, what: str, log: Callable[..., None], value: object, step: int) -> None:
        if what in self.broken:
            return
        try:
            log(self.kind, self.tracker, value, step)
        except Exception as error:  # a tracker may raise anything
            self.broken.add(what)
            self.say(f"warning: {self.kind}: no {what} logged ({describe_error(error)})")

    def rewind(self, step: int) -> None:
        """After a rollback: tensorboard can drop points, the others take no step twice."""
        if self.kind == "tensorboard" and self.tracker is not None and self.last >= step:
            tracker_kinds.purge(self.tracker, step)
            self.last, self.names = step - 1, None

    def close(self) -> None:
        if self.tracker is not None:
            self.tracker.finish()
        self._keep_last()

    def run(self) -> None:
        while (job := self.queue.get()) is not None:
            try:
                job()
            except Exception as error:  # a tracker may raise anything, and training goes on
                self.failed = True
                state = "no longer logging" if self.tracker else "not logging"
                self.say(f"warning: {self.kind}: {state} ({describe_error(error)})")
                with suppress(OSError):
                    self._keep_last()
                break
            self.ready.set()
        self.ready.set()

    def _keep_last(self) -> None:
        if self.identity:
            self.kept.write(self.kind, {**self.identity, "last": self.last, "names": self.names})


class Trackers:
    """The trackers of a run. A row goes out when the next step begins, since a tracker may take a step only once."""

    def __init__(self, workers: Sequence[Worker], row: Row | None, say: Callable[[str], object]) -> None:
        self.workers, self.say = workers, say
        self.row = row  # of the current step

    def record(self, event: str, values: Mapping[str, Any]) -> None:
        if event not in ("iter", "eval", "samples", "end"):
            return
        step = _step(event, values)
        if self.row is None or step > self.row.step:
            self._send_row()
            self.row = Row(step)
        self.row.add(event, values)

    def add_picture(self, path: Path) -> None:
        if self.row:
            self.row.picture = path

    def rewind(self, step: int) -> None:
        """Forget what came after the step that a run was put back to."""
        self.row = None
        for worker in self.workers:
            worker.queue.put(lambda worker=worker: worker.rewind(step))

    def finish(self) -> None:
        """Send what is left and close the trackers, within FINISH_SECONDS for all together."""
        self._send_row()
        for worker in self.workers:
            worker.queue.put(worker.close)
            worker.queue.put(None)
        until = time.monotonic() + FINISH_SECONDS
        for worker in self.workers:
            worker.join(max(0.0, until - time.monotonic()))
            if worker.is_alive():
                self.say(
                    f"warning: {worker.kind}: did not finish within {FINISH_SECONDS} s; its last points may be lost"
                )

    def _send_row(self) -> None:
        if row := self.row:
            for worker in self.workers:
                worker.queue.put(lambda worker=worker: worker.send(row))
        self.row = None


def start_trackers(
    kinds: Sequence[str],
    accelerator: Accelerator,
    place: Place,
    step: int,
    before: Sequence[Event],
    kept_events: Sequence[Event],
    say: Callable[[str], object],
) -> Trackers | None:
    """Start the trackers named `kinds`. A resumed run goes on at `step` in the same runs of its trackers: `before` are
    the events that it had recorded, `kept_events` those up to `step`. None without trackers."""
    if not kinds:
        return None
    kept, rows = SavedRuns(place.out_dir), rows_of(kept_events)
    current = rows.pop() if rows and rows[-1].step == step else None  # its evaluation; its update is still to come
    had = [row.step for row in rows_of(before)]
    surely_sent = had[-2] if len(had) > 1 else -1  # the last row of a killed run was still waiting for the next step
    workers = [Worker(kind, accelerator, place, kept, say) for kind in kinds]
    for worker in workers:
        worker.queue.put(lambda worker=worker: worker.go_on(step, rows, surely_sent))
        worker.start()
    until = time.monotonic() + START_SECONDS
    for worker in workers:
        if not worker.ready.wait(max(0.0, until - time.monotonic())):
            say(f"{worker.kind}: not ready after {START_SECONDS} s; training goes on, and its points follow")
    return Trackers(workers, current, say)
