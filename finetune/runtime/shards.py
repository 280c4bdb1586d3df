"""Sharded tensors on disk: each rank writes the rows it holds, by torch.distributed.checkpoint.

Files are safetensors: torch's own format is a pickle, which can run code. All machines need the same disk."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError

from finetune.common import files
from finetune.common.errors import UsageError
from finetune.runtime.device import MOST_WAITING
from finetune.runtime.fsdp import FSDP

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
    from torch.distributed.checkpoint.api import CheckpointException

PREFIX = "shard-"  # of the files, which torch names
MALFORMED = (SafetensorError, ValueError, KeyError, TypeError, AssertionError)


def check(are_wanted: bool, sharding: FSDP | None, say: Callable[[str], None]) -> None:
    """Say so if a run has no shards to write. Raises UsageError if this torch cannot write them as safetensors."""
    if are_wanted and sharding:
        _reader_and_writer()
    elif are_wanted:
        say("sharded_checkpoints: FSDP2 does not shard this run, so its checkpoints hold full tensors")


def _reader_and_writer() -> tuple[type[HuggingFaceStorageReader], type[HuggingFaceStorageWriter]]:
    """The classes of torch's safetensors format. Raises UsageError."""
    try:
        from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter

        HuggingFaceStorageWriter("", save_distributed=True)
    except (ImportError, TypeError):
        raise UsageError(f"sharded_checkpoints: torch {torch.__version__} lacks their format, 2.9 has it") from None
    return HuggingFaceStorageReader, HuggingFaceStorageWriter


def are_in(names: Iterable[str]) -> bool:
    """Whether a directory with these files holds shards."""
    return any(name.startswith(PREFIX) for name in names)


def new_group() -> ProcessGroup:
    """A group for saves, which exchange in a thread while training exchanges in its own group. Collective. Raises
    UsageError."""
    try:
        group = torch.distributed.new_group(backend="gloo", timeout=MOST_WAITING)
    except RuntimeError as error:
        problem = f"the processes cannot connect by gloo ({str(error).splitlines()[0][:200]})"
        way = "GLOO_SOCKET_IFNAME names the network to use"
        raise UsageError(f"sharded_checkpoints: {problem}; {way}") from None
    assert isinstance(group, torch.distributed.ProcessGroup)  # as this rank is in it
    return group


def write(
    directory: Path | None, tensors: Mapping[str, Any], rows: Mapping[str, torch.Tensor], group: ProcessGroup
) -> dict[str, str]:
    """Write the `rows` of this rank, copied from DTensors. Rank 0 gives the directory, or None if it could make none;
    the others give None. Returns {file: sha256} of all ranks. Collective. Raises OSError on all ranks if one fails, and
    UsageError if they have no disk in common."""
    given = [str(directory) if directory else None]
    torch.distributed.broadcast_object_list(given, group=group, group_src=0)
    if given[0] is None:
        raise OSError("rank 0 could not make a directory")
    place = Path(given[0])
    if not all(_gathered(place.is_dir(), group)):
        raise UsageError(
            f"sharded_checkpoints: not all machines see {place.parent}; they must share the disk of out_dir"
        )
    _write_own(place, tensors, rows, group)
    try:
        found: dict[str, str] | str = _sums_of_own(place, group)
    except OSError as error:
        found = error.strerror or str(error)
    sums = {}
    for each in _gathered(found, group):
        if isinstance(each, str):
            raise OSError(each)
        sums.update(each)
    return sums


def _gathered(value: Any, group: ProcessGroup) -> list[Any]:
    """The values of all ranks. Collective."""
    values: list[Any] = [None] * group.size()
    torch.distributed.all_gather_object(values, value, group=group)
    return values


def _write_own(place: Path, tensors: Mapping[str, Any], rows: Mapping[str, torch.Tensor], group: ProcessGroup) -> None:
    """Write the file of this rank. Collective. Raises OSError, or what else failed, on all ranks."""
    from torch.distributed import checkpoint
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor

    mesh = DeviceMesh.from_group(group, "cpu")
    shards = {
        name: DTensor.from_local(
            rows[name], mesh, tensor.placements, run_check=False, shape=tensor.shape, stride=tensor.stride()
        )
        for name, tensor in tensors.items()
    }
    writer = _reader_and_writer()[1](str(place), save_distributed=True)
    writer.per_thread_copy_ahead = 0  # else it asks the first GPU for a stream, in every rank
    try:
        checkpoint.save(shards, storage_writer=writer, process_group=group)
    except checkpoint.CheckpointException as error:
        raise _cause(error) from None


def _sums_of_own(place: Path, group: ProcessGroup) -> dict[str, str]:
    """{file: sha256} of what this rank wrote: one file, or none if it holds no rows. Raises OSError."""
    own = sorted(place.glob(f"{PREFIX}{group.rank() + 1:05d}-*"))
    for path in own:
        files.sync(path)
    return {path.name: files.sha256_of(path) for path in own}


def read(directory: Path, names: Collection[str]) -> dict[str, torch.Tensor]:
    """{name: full tensor} of the shards in the files of these names, whatever number of ranks wrote them. Raises
    ValueError, and UsageError if this torch cannot read them."""
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    class Listed(checkpoint.filesystem.FileSystem):
        """Has these files only, whatever else lies in the directory."""

        def ls(self, path: object) -> list[str]:
            return [str(directory / name) for name in names if name.startswith(PREFIX)]

    reader = _reader_and_writer()[0](str(directory))
    reader.fs, tensors = Listed(), {}
    try:
        for name, found in reader.read_metadata().state_dict_metadata.items():
            if not isinstance(found, TensorStorageMetadata):
                raise ValueError(f"{name} is no tensor")
            if sum(math.prod(chunk.sizes) for chunk in found.chunks) != math.prod(found.size):
                raise ValueError(f"some rows of {name} are missing, or there twice")
            tensors[name] = torch.empty(found.size, dtype=found.properties.dtype)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            checkpoint.load(tensors, storage_reader=reader, no_dist=True)
    except checkpoint.CheckpointException as error:
        cause = _cause(error)
        if not isinstance(cause, MALFORMED):
            raise cause from None  # of the disk, of memory, or Ctrl-C
        raise _unreadable(cause) from None
    except MALFORMED as error:
        raise _unreadable(error) from None
    return tensors


def _cause(error: CheckpointException) -> BaseException:
    """What failed on some rank; an OSError, if there is one."""
    causes = [cause for cause, _ in error.failures.values()]
    return next((cause for cause in causes if isinstance(cause, OSError)), causes[0])


def _unreadable(error: BaseException) -> ValueError:
    told = str(error).splitlines()
    return ValueError(f"its shards cannot be read: {told[0][:200] if told else type(error).__name__}")
