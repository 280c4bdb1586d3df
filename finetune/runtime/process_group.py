"""The processes of a run: what a launcher said of them, and whether all of them come."""

from __future__ import annotations

import atexit
import datetime
import functools
import os
import socket
import time
import uuid
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import torch

from finetune.common.errors import UsageError
from finetune.runtime import fsdp

SIZES = ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
JOINED = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")  # that accelerate makes groups of
RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
LOCAL_SIZES = ("LOCAL_WORLD_SIZE", "MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE", "MV2_COMM_WORLD_LOCAL_SIZE")
LOCAL_RANKS = ("LOCAL_RANK", "MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_RANK")
# (the number, what it must be below)
BELOW = [*zip(RANKS, JOINED), *zip(LOCAL_RANKS, LOCAL_SIZES), *zip(LOCAL_RANKS, JOINED)]
PLACE = ("MASTER_ADDR", "MASTER_PORT")
SECONDS, SECONDS_OF_MACHINES = 45, 600  # until all processes of a machine, or of several, have come


@dataclass(frozen=True)
class Group:
    """Processes that have come together. `store` has what this start of them has written, and nothing older."""

    store: torch.distributed.Store
    name: str  # of the start
    rank: int
    size: int

    @property
    def init_method(self) -> str:
        """Where torch finds the store."""
        return f"finetune://{self.name}"


def rendezvous(url: str, **options: Any) -> Generator[tuple[torch.distributed.Store, int, int]]:
    """torch's env://, in the part of the store that has the name in the URL."""
    parts = urlsplit(url)
    store, rank, size = next(torch.distributed.rendezvous(f"env://?{parts.query}", **options))
    yield torch.distributed.PrefixStore(parts.netloc, store), rank, size


if torch.distributed.is_available():
    torch.distributed.register_rendezvous_handler("finetune", rendezvous)


def check_variables() -> None:
    """Raise UsageError for what no launcher says. What is empty, or a rank in no group, is forgotten."""
    in_group = bool(_given(SIZES, LOCAL_SIZES, ["MASTER_ADDR"]))
    strays = () if in_group else (*RANKS[1:], *LOCAL_RANKS[1:])  # of torch's own, drop_stray_ranks has told
    for name in (*SIZES, *RANKS, *LOCAL_SIZES, *LOCAL_RANKS, *PLACE):
        if name in strays or not os.environ.get(name):
            os.environ.pop(name, None)
    least = dict.fromkeys((*SIZES, *LOCAL_SIZES), 1) | dict.fromkeys((*RANKS, *LOCAL_RANKS), 0)
    least |= {"MASTER_PORT": 1} if in_group else {}
    found = {name: os.environ[name] for name in least if name in os.environ}
    numbers = {name: int(text) for name, text in found.items() if text.isascii() and text.isdecimal()}
    for name, text in found.items():
        if not least[name] <= numbers.get(name, -1) < 65536:
            raise _stray(f"{name}={text[:100]} in the environment is not what a launcher gives")
    for rank, size in BELOW:
        if rank in numbers and numbers[rank] >= numbers.get(size, 65536):
            raise _stray(f"{rank}={numbers[rank]} and {size}={numbers[size]} in the environment contradict each other")


def wait_for_all(are_far_apart: bool = False) -> Group | None:
    """Wait until all processes that the environment names have come; None if this one is alone. Raises UsageError if
    some do not come: torch would wait for them for hours. On a machine they `are_far_apart` where one after the other
    has fetched a run and read all of it."""
    size, rank = _first(JOINED), _first(RANKS) or 0
    if "MASTER_ADDR" not in os.environ:
        check_world_size(1)
    is_alone = not size or (size == 1 and "LOCAL_RANK" not in os.environ)  # then accelerate makes no group
    if is_alone or "MASTER_ADDR" not in os.environ or torch.distributed.is_initialized():
        return None
    seconds = SECONDS if _is_one_machine(size) and not are_far_apart else SECONDS_OF_MACHINES
    limit, store = datetime.timedelta(seconds=seconds), None
    os.environ.setdefault("MASTER_PORT", "29500")  # as accelerate
    try:
        _reach(rank, seconds)
        store, _, _ = next(torch.distributed.rendezvous("env://", rank, size, timeout=limit))
        return _meet(store, rank, size, seconds)
    except (OSError, RuntimeError) as error:  # as all errors of a store
        if "EADDRINUSE" in str(error):
            problem = f"MASTER_PORT={os.environ['MASTER_PORT']} in the environment is in use by another program"
        else:
            said = ", ".join(f"{name}={os.environ[name]}" for name in _given(JOINED, RANKS, PLACE))
            problem = f"{said} in the environment, and not all of {size:,} processes came within {seconds} s"
        raise _stray(problem, alone=store is None or "0" in (str(rank), os.environ.get("LOCAL_RANK"))) from None


def _meet(shared: torch.distributed.Store, rank: int, size: int, seconds: float) -> Group:
    """The group of all processes that come to a store. torchrun's store outlives a restart, with what dead processes
    wrote. So each process writes a random word, and rank 0 repeats the words that it finds until every process has
    found its own among them; the word of rank 0 is the name of this start. Raises OSError and RuntimeError."""
    word, end = uuid.uuid4().hex, time.monotonic() + seconds
    words, beats = [f"finetune/{number}" for number in range(size)], [beat_of(number) for number in range(size)]
    shared.set(words[rank], word)
    while rank > 0 and shared.get("finetune").decode().split()[rank : rank + 1] != [word]:
        _pause(end)
    name = word if rank == 0 else shared.get("finetune").decode().split()[0]
    store = torch.distributed.PrefixStore(name, shared)
    store.set(beat_of(rank), f"{os.getpid()} {socket.gethostname()} 0")
    while rank == 0 and not store.check(beats):
        shared.set("finetune", " ".join(found.decode() for found in shared.multi_get(words)))
        _pause(end)
    store.wait(beats, datetime.timedelta(seconds=seconds))
    return Group(store, name, rank, size)


@functools.cache
def leave_at_exit() -> None:
    """End torch's group when Python ends: NCCL warns of a program that does not. Called by runs that end well, because
    it could wait for a rank that has died."""
    atexit.register(lambda: torch.distributed.is_initialized() and torch.distributed.destroy_process_group())


def beat_of(rank: int) -> str:
    """The key of a rank's heartbeat: `PID HOST NUMBER`."""
    return f"beat/{rank}"


def _pause(end: float) -> None:
    if time.monotonic() > end:
        raise TimeoutError
    time.sleep(0.1)


def check_world_size(processes: int) -> None:
    """Raise UsageError if some processes did not join the group: each would be rank 0 and write the same files."""
    for name in SIZES:
        if (started := _first([name]) or 1) > processes:
            raise _apart(name, started)
    # accelerate launch --cpu --num_processes=2 sets up two processes but starts one
    has_address, has_size = "MASTER_ADDR" in os.environ, "WORLD_SIZE" in os.environ
    if processes == 1 and fsdp.is_true("ACCELERATE_USE_CPU") and has_address and not has_size:
        raise UsageError(
            "accelerate launch --cpu starts a single process; for several use"
            " --config_file=recipes/accelerate/cpu.yaml --num_processes=N"
        )


def world_size() -> int:
    """How many processes the launcher has started; 1 if no launcher says."""
    return _first(JOINED) or 1


def local_size() -> int:
    """How many processes this machine has; 1 if no launcher says."""
    return _first(LOCAL_SIZES) or 1


def _first(names: Sequence[str]) -> int | None:
    return next((int(os.environ[name]) for name in _given(names)), None)


def _given(*names: Sequence[str]) -> list[str]:
    return [name for some in names for name in some if os.environ.get(name)]


def _reach(rank: int, seconds: float) -> None:
    """Wait for the process that listens, or, in that process, for its name. A store would do so with a page of
    warnings, and longer than it is told. Raises OSError."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    listens = rank == 0 and not fsdp.is_true("TORCHELASTIC_USE_AGENT_STORE")
    end = time.monotonic() + seconds
    while True:
        try:
            socket.getaddrinfo(address, port) if listens else socket.create_connection((address, port), 5).close()
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


def _is_one_machine(size: int) -> bool:
    address = os.environ["MASTER_ADDR"]
    is_loopback = address in ("localhost", "::1") or address.startswith("127.")
    return is_loopback or size == local_size()


def _apart(name: str, started: int) -> UsageError:
    return UsageError(
        f"{started} processes were started ({name}) that do not all see each other; start them with torchrun,"
        f" or with accelerate launch and a file of recipes/accelerate; for independent runs unset {name}"
    )


def _stray(problem: str, alone: bool = True) -> UsageError:
    names = " ".join(_given(SIZES, RANKS, LOCAL_SIZES, LOCAL_RANKS, PLACE))
    ways = f"if another job left them: unset {names}; else start all processes with one launcher, such as torchrun"
    return UsageError(f"{problem}; {ways}", alone=alone)
