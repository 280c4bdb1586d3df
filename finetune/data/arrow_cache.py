"""Bins to an Arrow cache of rows that `datasets` memory-maps.

Row k holds tokens k*T .. k*T+T, one more than T, so a row predicts T tokens, and all rows together predict every token
of the split but the first exactly once. A file is named by the sha256 of its bin: an edited bin never meets an old
cache, and processes that build at once write the same file. It ends with its own sha256, behind the end that Arrow
reads to, and is opened only if that is right: a start reads the cache once, as it reads the bin."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from finetune.common.errors import UsageError
from finetune.common.files import CHUNK_BYTES, read_chunks, replacing
from finetune.common.progress import progress
from finetune.data import packing
from finetune.data.dataset import BinStats, Dataset

if TYPE_CHECKING:
    from datasets import Dataset as ArrowDataset

BATCH_BYTES = 1 << 22  # of tokens in one Arrow record batch
SHA256_BYTES = 32
FORMAT = 2

Columns = dict[str, np.ndarray]  # of a record batch, (rows, T + 1) each


def open_cache(
    dataset: Dataset,
    split: str,
    block_size: int,
    stats: BinStats,
    isolated: bool = False,
    batch_bytes: int = BATCH_BYTES,
) -> ArrowDataset:
    """The Arrow cache of a split, built if it is missing. `stats` is `scan` of the split.

    With `isolated`, rows are packed documents: `position_ids` restart with each, and its first token is no target.
    Raises UsageError if the split has fewer than block_size + 1 tokens and is not isolated."""
    if not isolated:
        check_length(dataset, split, block_size, stats.tokens)
    name = _cache_name(dataset, split, block_size, stats, isolated)
    folders = cache_folders(dataset)
    for folder in folders:
        if (cache := _open(folder / name)) is not None:
            return cache
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            build = build_packed if isolated else build_consecutive
            build(dataset, split, folder / name, block_size, batch_bytes)
        except OSError:  # a read-only directory; the next folder is the user's own
            continue
        if (cache := _open(folder / name, is_new=True)) is not None:
            return cache
    raise UsageError(f"{dataset.bin(split)}: its Arrow cache can be written neither beside it nor under {folders[-1]}")


def check_length(dataset: Dataset, split: str, block_size: int, tokens: int) -> None:
    """Raise UsageError if a split has too few tokens for a single block."""
    if tokens < block_size + 1:
        problem = f"{tokens:,} tokens, and a block of {block_size:,} needs {block_size + 1:,}"
        advice = f"lower block_size{' or raise val_fraction' if split == 'val' else ''}"
        raise UsageError(f"{dataset.bin(split)}: {problem}; {advice}")


def num_rows(tokens: int, block_size: int) -> int:
    """Rows of a split that is not packed: its predicted tokens over block_size, rounded up."""
    return -(-(tokens - 1) // block_size)


def cache_folders(dataset: Dataset) -> list[Path]:
    """Where caches are looked for and built: beside the bins, else in the cache directory of `datasets`."""
    from datasets import config

    return [dataset.directory / ".arrow", Path(config.HF_DATASETS_CACHE) / "finetune"]


def _cache_name(dataset: Dataset, split: str, block_size: int, stats: BinStats, isolated: bool) -> str:
    kind = ""
    if isolated:  # documents end where the file of ends says, else at each end-of-text
        kind = "-isolated" if stats.documents_sha256 else f"-isolated{dataset.eot}"
    digests = [stats.sha256[:32]]
    digests += [digest[:16] for digest in (stats.mask_sha256, stats.documents_sha256) if digest]
    return f"{split}-T{block_size}-v{FORMAT}{kind}-{'-'.join(digests)}.arrow"


def _open(path: Path, is_new: bool = False) -> ArrowDataset | None:
    """The cache, or None if it is missing, or not as it was written and to be built again. A new one was hashed."""
    from datasets import Dataset

    try:
        if not path.is_file():
            return None
        content, written = (b"", b"") if is_new else _sha256(path)
        if content == written:
            return Dataset.from_file(str(path))
    except OSError:
        pass
    print(f"{path}: damaged, building it again")
    return None


def _sha256(path: Path) -> tuple[bytes, bytes]:
    """The sha256 of a file without its last 32 bytes, and these."""
    digest, rest = hashlib.sha256(), b""
    for chunk in read_chunks(path):
        rest += chunk
        digest.update(memoryview(rest)[:-SHA256_BYTES])
        rest = rest[-SHA256_BYTES:]
    return digest.digest(), rest


def build_consecutive(
    dataset: Dataset, split: str, path: Path, block_size: int, batch_bytes: int = BATCH_BYTES
) -> None:
    """Write the cache of a bin, and of its mask, cut every T tokens."""
    bins, dtypes = {"input_ids": dataset.bin(split)}, {"input_ids": str(dataset.dtype.name)}
    if mask := dataset.mask(split):
        bins["targets"], dtypes["targets"] = mask, "uint8"

    def fill(first_row: int, columns: Columns) -> None:
        for name, rows in columns.items():
            count, offset = len(rows) * block_size + 1, rows.itemsize * first_row * block_size
            values = np.fromfile(bins[name], rows.dtype, count, offset=offset)
            rows[:] = consecutive_rows(values, len(rows), block_size)

    _write(path, num_rows(dataset.num_tokens(split), block_size), block_size + 1, dtypes, fill, batch_bytes)


def consecutive_rows(values: np.ndarray, rows: int, block_size: int) -> np.ndarray:
    """A view (rows, T + 1) of `values`, padded with zeros; each row begins with the last value of the one before."""
    if missing := rows * block_size + 1 - len(values):
        values = np.pad(values, (0, missing))
    return np.lib.stride_tricks.sliding_window_view(values, block_size + 1)[::block_size]


def position_dtype(block_size: int) -> np.dtype:
    """That of the positions in a block; the one behind it is never read."""
    return np.dtype(np.uint16 if block_size <= 1 << 16 else np.uint32)


def num_packed_rows(dataset: Dataset, split: str, block_size: int) -> int:
    """Rows of a split that is packed."""
    rows = packing.pack(dataset.document_ends(split), block_size + 1, _target_mask(dataset, split))[2]
    return int(rows[-1]) + 1 if len(rows) else 0


def _target_mask(dataset: Dataset, split: str) -> np.ndarray | None:
    mask = dataset.mask(split)
    return np.memmap(mask, dtype=np.uint8, mode="r") if mask else None


def build_packed(dataset: Dataset, split: str, path: Path, block_size: int, batch_bytes: int = BATCH_BYTES) -> None:
    """Write the cache of the packed documents of a bin."""
    ids, is_target = dataset.open_bin(split), _target_mask(dataset, split)
    first, length, row = packing.pack(dataset.document_ends(split), block_size + 1, is_target)
    if not len(row):
        raise UsageError(f"{dataset.bin(split)}: no document of two tokens or more, so there is nothing to predict")
    rows = int(row[-1]) + 1
    first_pieces = np.searchsorted(row, np.arange(rows + 1))  # of each row, and the end
    counting = np.arange(block_size + 1, dtype=position_dtype(block_size))

    def fill(first_row: int, columns: Columns) -> None:
        for i in range(len(columns["input_ids"])):
            tokens, targets, positions = (columns[name][i] for name in ("input_ids", "targets", "position_ids"))
            used = 0
            for piece in range(first_pieces[first_row + i], first_pieces[first_row + i + 1]):
                source = slice(first[piece], first[piece] + length[piece])
                place = slice(used, used + length[piece])
                tokens[place] = ids[source]
                targets[place] = 1 if is_target is None else is_target[source]
                targets[used] = 0  # nothing before it predicts it
                positions[place] = counting[: length[piece]]
                used += length[piece]
            tokens[used:], targets[used:], positions[used:] = 0, 0, counting[: len(tokens) - used]

    dtypes = {"input_ids": dataset.dtype.name, "targets": "uint8", "position_ids": counting.dtype.name}
    _write(path, rows, block_size + 1, dtypes, fill, batch_bytes)


def _write(
    path: Path, rows: int, width: int, dtypes: dict[str, str], fill: Callable[[int, Columns], None], batch_bytes: int
) -> None:
    """Write an Arrow stream of `rows` lists of `width` values to a temporary file, then rename it to `path`.

    `fill(first_row, columns)` writes the rows from `first_row` on into the arrays of one record batch, which are
    reused for the next, so memory is constant."""
    import pyarrow as pa
    from datasets import Features, List, Value

    step = max(1, min(rows, batch_bytes // (2 * width)))
    features = Features({name: List(Value(dtype), length=width) for name, dtype in dtypes.items()})
    info = json.dumps({"info": {"features": features.to_dict()}})
    schema = features.arrow_schema.with_metadata({"huggingface": info})
    buffers = {name: np.empty((step, width), dtype=dtype) for name, dtype in dtypes.items()}
    title = f"caching {path.name.split('-')[0]}"
    with replacing(path) as work:
        with pa.OSFile(str(work), "wb") as file, _hashing(work) as (digest, hash_until):
            pieces = []
            with pa.ipc.new_stream(file, schema) as writer:
                for first_row in progress(range(0, rows, step), desc=title, leave=False):
                    columns = {name: buffer[: rows - first_row] for name, buffer in buffers.items()}
                    fill(first_row, columns)
                    flat = (pa.array(values.reshape(-1)) for values in columns.values())
                    arrays = [pa.FixedSizeListArray.from_arrays(values, width) for values in flat]
                    writer.write_batch(pa.record_batch(arrays, schema=schema))
                    pieces.append(hash_until(file.tell()))
            for piece in (*pieces, hash_until(file.tell())):
                piece.result()
        with open(work, "ab") as file:
            file.write(digest.digest())


@contextmanager
def _hashing(path: Path) -> Generator[tuple[hashlib._Hash, Callable[[int], Future[None]]]]:
    """The sha256 of a file that is being written, and a function that lets a thread read the file up to a place."""
    digest = hashlib.sha256()
    with open(path, "rb") as written, ThreadPoolExecutor(1) as thread:

        def read_until(end: int) -> None:
            while chunk := written.read(min(CHUNK_BYTES, end - written.tell())):
                digest.update(chunk)
            if written.tell() != end:
                raise OSError(f"{path}: ends after {written.tell():,} of {end:,} bytes")

        yield digest, lambda end: thread.submit(read_until, end)
