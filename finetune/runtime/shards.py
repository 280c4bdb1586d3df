"""Sharded tensors on disk: each rank writes the rows it holds, by torch.distributed.checkpoint.

Files are safetensors: torch's own format is a pickle, which can run code. All machines need the same disk."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping
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

PREFIX = "shard-"  # of the files, which torch names
NO_SHARED_DISK = "the files of some ranks are not there; sharded checkpoints need a disk that all machines share"


def check(are_wanted: bool, sharding: FSDP | None, say: Callable[[str], None]) -> None:
    """Say so if a run has no shards to write. Raises UsageError if this torch cannot write them as safetensors."""
    if not are_wanted:
        return
    if not sharding:
        say("sharded_checkpoints: FSDP2 does not shard this run, so its checkpoints hold full tensors")
        return
    try:
        from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter

        HuggingFaceStorageReader(""), HuggingFaceStorageWriter("", save_distributed=True)
    except (ImportError, TypeError):
        raise UsageError(f"sharded_checkpoints: torch {torch.__version__} lacks their format, 2.9 has it") from None


def are_in(names: Iterable[str]) -> bool:
    """Whether a directory with these files holds shards."""
    return any(name.startswith(PREFIX) for name in names)


def new_group() -> ProcessGroup:
    """A group for saves, which exchange in a thread while training exchanges in its own group. Collective."""
    group = torch.distributed.new_group(backend="gloo", timeout=MOST_WAITING)
    assert isinstance(group, torch.distributed.ProcessGroup)  # as this rank is in it
    return group


def write(
    directory: Path | None, tensors: Mapping[str, Any], rows: Mapping[str, torch.Tensor], group: ProcessGroup
) -> dict[str, str]:
    """Write the `rows` of this rank, copied from DTensors, into the directory of rank 0; None there if it has none.
    Returns {file: sha256} of all ranks. Collective. Raises OSError on all ranks if one fails."""
    given = [str(directory) if directory else None]
    torch.distributed.broadcast_object_list(given, group=group, group_src=0)
    if given[0] is None:
        raise OSError("rank 0 could not begin a directory")
    place = Path(given[0])
    try:
        result: dict[str, str] | str = _write_own(place, tensors, rows, group)
    except OSError as error:
        result = error.strerror or str(error)
    results: list[Any] = [None] * group.size()
    torch.distributed.all_gather_object(results, result, group=group)
    if problems := [found for found in results if isinstance(found, str)]:
        raise OSError(problems[0])
    sums = {name: sha256 for found in results for name, sha256 in found.items()}
    if directory and not all((place / name).is_file() for name in sums):
        raise OSError(NO_SHARED_DISK)
    return sums


def _write_own(
    place: Path, tensors: Mapping[str, Any], rows: Mapping[str, torch.Tensor], group: ProcessGroup
) -> dict[str, str]:
    """Write the shard of this rank. Returns {file: sha256} of it. Raises OSError."""
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
    writer = checkpoint.HuggingFaceStorageWriter(str(place), save_distributed=True)
    try:
        checkpoint.save(shards, storage_writer=writer, process_group=group)
    except checkpoint.CheckpointException as error:
        causes = [cause for cause, _ in error.failures.values()]
        raise next((cause for cause in causes if isinstance(cause, OSError)), OSError(str(causes[0]))) from None
    own = sorted(place.glob(f"{PREFIX}{group.rank() + 1:05d}-*"))
    for path in own:
        files.sync(path)
    return {path.name: files.sha256_of(path) for path in own}


def read(directory: Path) -> dict[str, torch.Tensor]:
    """{name: full tensor} of the shards in a directory, whatever number of ranks wrote them. Raises ValueError."""
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    reader = checkpoint.HuggingFaceStorageReader(str(directory))
    tensors = {}
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
    except (SafetensorError, KeyError, TypeError, AssertionError, checkpoint.CheckpointException) as error:
        raise ValueError(f"its shards cannot be read: {str(error) or type(error).__name__}") from None
    return tensors
