"""A rank that hangs is named, and ends the run, so that a launcher can start it again.

Each rank writes a new number into the common store ten times in `timeout`, from a thread, so that a long evaluation,
save or download is no silence; and it watches the next rank. A second thread counts, as the store can be silent too."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Generator

import torch

from finetune.runtime import fsdp
from finetune.runtime.process_group import Group, beat_of

BEATS = 10  # in `timeout`
MISSED = 7  # are silence. With a beat under way at either end, that is within `timeout`
ENDED = "ended"  # key: the rank that was found silent; with the number of a rank: that it has read which
READ_SECONDS = 5  # that a rank may take to read a key, beside the turns between


@contextlib.contextmanager
def beating(group: Group | None, timeout: float) -> Generator[None]:
    """Context in which all processes end with exit code 1 when one is silent for `timeout` seconds; one says which."""
    if group is None or group.size == 1:
        yield
        return
    heart = _Heart(group, timeout)
    threads = [threading.Thread(target=work, daemon=True) for work in (heart.beat, heart.watch)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        heart.stopped.set()
        for thread in threads:  # one in the store's code when Python ends would abort the process
            thread.join(1)
        while heart.is_leaving:  # it ends this process
            time.sleep(1)


class _Heart:
    def __init__(self, group: Group, timeout: float) -> None:
        self.group, self.timeout, self.interval = group, timeout, timeout / BEATS
        self.watched = (group.rank + 1) % group.size
        self.has_launchers_store = fsdp.is_true("TORCHELASTIC_USE_AGENT_STORE")
        if self.has_launchers_store:  # the launcher of the first machine ends with the first of its ranks
            self.ends_store = os.environ.get("GROUP_RANK") == "0" and os.environ.get("GROUP_WORLD_SIZE") != "1"
        else:
            self.ends_store = group.rank == 0
        self.is_leaving, self.stopped = False, threading.Event()
        self.last = b""  # beat of the watched rank
        # Counted in turns, not by the clock: where all processes are stopped and go on, none was silent.
        self.missed = self.unanswered = 0

    def beat(self) -> None:
        store, number = self.group.store, 0
        while not self.stopped.wait(self.interval):
            number += 1
            try:
                store.set(beat_of(self.group.rank), f"{os.getpid()} {socket.gethostname()} {number}")
                found, self.unanswered = store.get(beat_of(self.watched)), 0
                if found != self.last:
                    self.last, self.missed = found, 0
                if store.check([ENDED]):
                    self.leave(int(store.get(ENDED)))
            except torch.distributed.DistNetworkError:  # the store is gone, which the other thread counts
                return
            except RuntimeError:  # it did not answer in time
                continue

    def watch(self) -> None:
        while not self.stopped.wait(self.interval):
            self.missed, self.unanswered = self.missed + 1, self.unanswered + 1
            if self.missed >= MISSED:
                self.end()

    def end(self) -> None:
        """Say who is silent, and end this process."""
        if self.unanswered < MISSED - 1:
            pid, host, _ = self.last.decode().split()
            self.say(f"rank {self.watched} (process {pid} on {host})")
            with contextlib.suppress(RuntimeError):  # the store has gone meanwhile: others find that out
                self.group.store.set(ENDED, str(self.watched))
            self.leave(self.watched)
        else:  # the store is silent to all ranks: one of each machine says so
            place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
            if "0" in (os.environ.get("LOCAL_RANK"), str(self.watched)):
                self.say(f"{'the launcher' if self.has_launchers_store else 'rank 0'} at {place}")
            time.sleep(1)  # a launcher ends all processes after the first
            os._exit(1)

    def leave(self, silent: int) -> None:
        """End this process, as another is silent. If the store ends too, wait until all others have read that."""
        self.is_leaving = True
        self.stopped.set()
        store, last = self.group.store, time.monotonic() + 3 * self.interval + READ_SECONDS
        others = [f"{ENDED}{rank}" for rank in range(self.group.size) if rank != silent]
        with contextlib.suppress(RuntimeError):
            store.set(f"{ENDED}{self.group.rank}", "")
            while self.ends_store and not store.check(others) and time.monotonic() < last:
                time.sleep(self.interval / 5)
        os._exit(1)

    def say(self, silent: str) -> None:
        told = f"{silent} hangs, or cannot be reached: no sign of life in timeout={self.timeout:g} s"
        with contextlib.suppress(OSError, ValueError):  # nobody reads it
            print(f"{told}. The run ends here; --init_from=auto goes on\n", end="", file=sys.stderr, flush=True)
