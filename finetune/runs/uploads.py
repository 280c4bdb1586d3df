"""Sends a run to its address while it trains. One thread does it, and training never waits for it.

After every save the thread sends what the address lacks: best/, then the metrics, then the newest state. A manifest is
sent last, when the server holds every file it lists; a directory without one does not count. What is newer by then
replaces what was not sent yet, and after a failure the thread tries again. The first line of the metrics goes before
all else, since by it a run is known. The others wait for the first state: a run without both is made anew."""

from __future__ import annotations

import dataclasses
import os
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from finetune.common.addresses import address_of
from finetune.common.commands import command
from finetune.common.errors import Failure, UsageError
from finetune.common.files import MANIFEST, read_json_object
from finetune.common.storage import Storage
from finetune.config.mirror import begin_time, storage_lock, whole_states
from finetune.config.recipe import Recipe
from finetune.config.run_directory import METRICS, SINGLE_FILES, states
from finetune.runs.events import read_metrics
from finetune.runs.sending import Changed, clear, prune, send_directory
from finetune.runtime.process_group import RANKS

PAUSE_SECONDS, MOST_PAUSE_SECONDS = 1, 300  # before another try; it doubles
LAST_PAUSE_SECONDS = 10  # at the end of a run
WAIT_SECONDS, IDLE_SECONDS = 600, 120  # at the end of a run: at most, and without progress
CODE = 4  # exit code, as of a push that failed

H = TypeVar("H", bound=Any)


@contextmanager
def uploading(recipe: Recipe) -> Generator[Uploads | None]:
    """Around training and its report; None if out_dir is no address. Raises Failure if the run is not all there."""
    address, ranks = address_of(recipe.out_dir), [os.environ[name] for name in RANKS if os.environ.get(name)]
    if not address or ranks[:1] not in ([], ["0"]) or recipe.eval_only:
        yield None
        return
    uploads, began = Uploads(Path(recipe.out_dir), address, bool(recipe.overwrite)), time.time()
    try:
        yield uploads
    except BaseException:  # also of what follows a run: its checks and its push
        if uploads.has_begun(began) and (problem := uploads.finish()):
            _say(f"warning: {problem}")
        raise
    else:
        if problem := uploads.finish():
            raise Failure(problem, CODE)
    finally:
        uploads.end()


def _say(line: str) -> None:
    with suppress(OSError):  # no reader, or a full disk: the run goes on
        print(f"{line}\n", end="", flush=True)


class Uploads:
    """What was sent of a run, and the thread that sends it."""

    def __init__(self, out_dir: Path, address: str, overwrite: bool) -> None:
        self.out_dir, self.address, self.overwrite = out_dir, address, overwrite
        self.storage: Storage | None = None
        self.sent: dict[str, Any] = {}  # {name: manifest of a directory, or content of a file}
        self.has_state = False  # at the address
        self.problem, self.is_told = "", False  # of the last try; whether an outage was told of
        self.wanted, self.is_over, self.is_given_up = threading.Event(), False, False
        self.thread = threading.Thread(target=self._work, daemon=True)

    def after(self, hooks: H) -> H:
        """The hooks, which also send what was written."""

        def watch(moment: Any) -> None:
            if hasattr(moment, "path") or not self.thread.ident:  # a Save, or the beginning
                self.send()

        return dataclasses.replace(hooks, watch=watch)

    def send(self) -> None:
        """Let the thread send what is new."""
        self.wanted.set()
        if not self.thread.ident:
            _say(f"out_dir {self.address}: is kept in {self.out_dir}, and sent after every save")
            self.thread.start()

    def has_begun(self, since: float) -> bool:
        """Whether the run has written anything; a small tolerance, because events have rounded times."""
        starts = [one for one in read_metrics(self.out_dir / METRICS) if one["event"] in ("start", "resume")]
        return bool(starts) and starts[-1].get("time", 0) >= since - 0.001

    def finish(self) -> str | None:
        """Wait until all is sent, as long as there is progress; return what is missing, and how to go on."""
        self.is_over = True
        self.send()
        ends, seen, since = time.monotonic() + WAIT_SECONDS, 0.0, time.monotonic()
        while self.thread.is_alive() and time.monotonic() < ends:
            self.thread.join(0.1)
            moved = self.storage.progress.at if self.storage and not self.problem else 0.0
            if moved > seen:
                seen, since = moved, time.monotonic()
            if time.monotonic() - since > IDLE_SECONDS:
                break
        missing = ", ".join(self._missing())
        if not missing:
            _say(f"{self.address}: the run is there")
            return None
        way = command("train", out_dir=self.address, init_from="resume")
        reason = f" ({self.problem})" if self.problem else ""
        return f"{self.address}: {missing} could not be sent{reason}; they are in {self.out_dir}; to go on: {way}"

    def end(self) -> None:
        """Begin nothing more at the address, however the run ended: a program may go on after it."""
        self.is_given_up = True
        if self.storage:
            self.storage.is_closed = True
        self.wanted.set()

    def _work(self) -> None:
        pause = 0.0
        while True:
            self.wanted.wait(pause or None)
            self.wanted.clear()
            if self.is_given_up:
                return
            changes = self.storage.num_changes if self.storage else 0
            try:
                with storage_lock(self.out_dir):
                    self._send_all()
            except Changed:  # while it was read
                self.wanted.set()
                continue
            except Exception as error:  # whatever it is, training goes on
                if self.is_given_up:
                    return
                problem = " ".join(str(error).split()) or type(error).__name__
                if not self.is_told:
                    _say(f"warning: {problem}; training goes on, and it is tried again")
                most = LAST_PAUSE_SECONDS if self.is_over else MOST_PAUSE_SECONDS
                self.is_told = True
                self.problem, pause = problem, min(max(PAUSE_SECONDS, 2 * pause), most)
                continue
            self.problem, pause = "", 0.0
            if self.is_told and self.storage and self.storage.num_changes > changes:  # the server takes files again
                _say(f"{self.address}: all is sent again")
                self.is_told = False
            if self.is_over and not self.wanted.is_set():
                return

    def _send_all(self) -> None:
        self.storage = self.storage or Storage(self.address)
        if self.is_given_up:  # while it was made
            self.storage.is_closed = True
        sizes = self.storage.files()
        if not self.sent:
            self._check_run(self.storage, METRICS in sizes)
            sizes = self.storage.files()
            self.has_state = bool(whole_states(self.storage, sizes))
            self._send_files(self.storage)
        for name in self._models():
            self.sent[name] = send_directory(self.storage, sizes, self.out_dir, name)
        self._send_files(self.storage)  # whoever finds a state finds its losses
        for name in self._newest_state():
            self.sent[name] = send_directory(self.storage, sizes, self.out_dir, name)
            if not self.has_state:
                self.has_state = True
                self._send_files(self.storage)
        prune(self.storage, self.storage.files(), self.out_dir)

    def _check_run(self, storage: Storage, is_there: bool) -> None:
        """Remove another run from the address, if this one was told to overwrite it."""
        there = begin_time(storage.read(METRICS)) if is_there else None
        if there == begin_time((self.out_dir / METRICS).read_bytes()) or not (there or self.overwrite):
            return
        if not self.overwrite:
            raise UsageError(f"{self.address}: another run is there now, and is not replaced")
        clear(storage, storage.files())

    def _send_files(self, storage: Storage) -> None:
        for name in SINGLE_FILES:
            if (content := self._content(name)) is not None and self.sent.get(name) != content:
                storage.write(name, content)
                self.sent[name] = content

    def _models(self) -> list[str]:
        names = ["best", *sorted(path.name for path in self.out_dir.glob("iter_*"))]
        return [name for name in names if (self.out_dir / name / MANIFEST).is_file()]

    def _newest_state(self) -> list[str]:
        return [f"last/{path.name}" for path in states(self.out_dir)[:1]]

    def _content(self, name: str) -> bytes | None:
        path = self.out_dir / name
        if not path.is_file():
            return None
        content = path.read_bytes()
        if name != METRICS:
            return content
        has_all = self.has_state or (self.is_over and not states(self.out_dir))
        end = content.rfind(b"\n") if has_all else content.find(b"\n")  # without a line half written
        return content[: end + 1]

    def _missing(self) -> list[str]:
        """What is not at the address as it is here."""
        directories = [*self._models(), *self._newest_state()]
        waits = [
            name for name in directories if self.sent.get(name) != read_json_object(self.out_dir / name / MANIFEST)
        ]
        files = [name for name in SINGLE_FILES if self._content(name) not in (None, self.sent.get(name))]
        return waits + files
