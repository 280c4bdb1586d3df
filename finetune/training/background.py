"""Saves that are written while training goes on: a thread copies the tensors, then writes the copies.

Tensors change only where an optimizer steps, so the loop waits there until they are copied, and nowhere else. Saves are
written one after the other, in the order they were begun."""

from __future__ import annotations

import contextlib
import mmap
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from finetune.gpt.pretrained import bytes_of

ALIGNMENT = 64  # bytes
Tensors = dict[str, torch.Tensor]


@dataclass
class PendingSave:
    """A directory that is written. Ranks other than 0 only wait until they hear that it is, unless it is in shards."""

    name: str
    step: int
    acknowledge: Callable[[bool], None]  # called by the loop on all ranks, with whether it is on disk
    is_sharded: bool = False
    copied: threading.Event = field(default_factory=threading.Event)
    written: threading.Event = field(default_factory=threading.Event)
    error: BaseException | None = None


@dataclass
class Saves:
    """The saves of a run."""

    begun: deque[PendingSave] = field(default_factory=deque)  # not acknowledged yet
    num_acknowledged: int = 0
    seconds_held: float = 0.0  # that the loop waited for copies
    group: torch.distributed.ProcessGroup | None = None  # of saves in shards, made when the run begins; None without

    def begin(self, save: PendingSave, tensors: Tensors, write: Callable[[Tensors], object], are_shared: bool) -> None:
        """Write the tensors in a thread, after the saves begun before; copies of them if training shares them."""
        before = self.begun[-1].written if self.begun else None

        def run() -> None:
            try:
                copies = tensors
                if are_shared:
                    with contextlib.suppress(OSError):  # no memory for them: then the loop waits until all is written
                        copies = copies_of(tensors)
                if not are_shared or copies is not tensors:
                    save.copied.set()
                if before:
                    before.wait()
                write(copies)
            except BaseException as error:  # the loop tells or raises it
                save.error = error
            finally:
                save.copied.set()
                save.written.set()

        threading.Thread(target=run, name=f"save {save.name}").start()
        self.begun.append(save)  # one that could not be started is waited for by nobody

    def write(self, save: PendingSave, tensors: Tensors, write: Callable[[Tensors], object]) -> None:
        """Write the tensors now, after the saves begun before."""
        self.wait()
        self.begun.append(save)
        try:
            write(tensors)
        except BaseException as error:
            save.error = error
            if not isinstance(error, OSError):  # such as a second Ctrl-C
                raise
        finally:
            save.copied.set()
            save.written.set()

    def skip(self, save: PendingSave) -> None:
        """Another rank writes it."""
        save.copied.set()
        save.written.set()
        self.begun.append(save)

    def take(self) -> PendingSave:
        """The oldest save, to be acknowledged, once this rank has written its part."""
        self.begun[0].written.wait()
        self.num_acknowledged += 1
        return self.begun.popleft()

    def wait(self) -> None:
        """Wait until all saves are written, or failed."""
        for save in self.begun:
            save.written.wait()

    def num_written(self) -> int:
        """How many saves of this run are written, or failed."""
        return self.num_acknowledged + sum(save.written.is_set() for save in self.begun)

    def wait_for_copies(self) -> None:
        """Wait until no save reads the weights and moments of training."""
        since = time.perf_counter()
        for save in self.begun:
            save.copied.wait()
        self.seconds_held += time.perf_counter() - since


def copies_of(tensors: Tensors) -> Tensors:
    """Copies of tensors of the CPU. They lie outside the heap, which would keep their memory and lie in pieces after
    it, and are made by one thread: PyTorch would start a second team of threads beside that of the update."""
    sizes = [-(-tensor.nbytes // ALIGNMENT) * ALIGNMENT for tensor in tensors.values()]
    pages = mmap.mmap(-1, max(1, sum(sizes)))
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel may lack them
            pages.madvise(mmap.MADV_HUGEPAGE)
    memory, copies, first = np.frombuffer(pages, np.uint8), {}, 0
    for (name, tensor), size in zip(tensors.items(), sizes):
        copied = memory[first : first + tensor.nbytes]
        np.copyto(copied, bytes_of(tensor))
        copies[name] = torch.from_numpy(copied).view(tensor.dtype).view(tensor.shape)
        first += size
    return copies
