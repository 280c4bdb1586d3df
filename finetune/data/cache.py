"""Bins to an Arrow cache of blocks that `datasets` memory-maps.

Row k of a split's cache holds tokens k*T .. k*T+T, one more than T, so a row by itself predicts T tokens and consecutive rows
predict every token of the split exactly once. Only the first token of a split, which nothing precedes, is never predicted.
A file is named by the sha256 of its bin: an edited bin never meets an old cache, and processes that build at once write the same file.
"""

import contextlib
import json
import os
import tempfile
from pathlib import Path

import numpy as np

from finetune.cli import UsageError

ROWS_BYTES = 1 << 22  # bytes of tokens in one Arrow record batch
FORMAT = 1


def open_cache(dataset, split, block_size, contents):
    """A `datasets.Dataset` of the blocks of a split, built when it is not there. `contents` is `bins.survey` of the split.

    Raises UsageError when the split has fewer than block_size + 1 tokens.
    """
    tokens = contents.tokens
    if tokens < block_size + 1:
        raise UsageError(
            f"{dataset.bin(split)}: {tokens:,} tokens, and a block of {block_size:,} needs {block_size + 1:,}; "
            f"lower block_size{' or raise val_fraction' if split == 'val' else ''}"
        )
    mark = contents.sha256[:32] + (f"-{contents.mask_sha256[:16]}" if contents.mask_sha256 else "")
    name = f"{split}-T{block_size}-v{FORMAT}-{mark}.arrow"
    for folder in _folders(dataset):
        if (opened := _open(folder / name, tokens)) is not None:
            return opened
    for folder in _folders(dataset):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _build(dataset.bin(split), folder / name, block_size, dataset.mask(split))
        except OSError:  # a read-only directory; the next folder is the user's own
            continue
        if (opened := _open(folder / name, tokens)) is not None:
            return opened
    raise UsageError(f"{dataset.bin(split)}: its Arrow cache can be written neither beside it nor under {_folders(dataset)[-1]}")


def _folders(dataset):
    """Where caches are looked for and built: beside the bins, else in the cache directory of `datasets`."""
    from datasets import config

    return [dataset.directory / ".arrow", Path(config.HF_DATASETS_CACHE) / "finetune"]


def _open(path, tokens):
    """The cache, or None when it is missing or damaged, which is repaired by building it again."""
    import pyarrow
    from datasets import Dataset

    if not path.is_file():
        return None
    try:
        opened = Dataset.from_file(str(path))
        if len(opened) == num_rows(tokens, opened.features["input_ids"].length - 1):
            return opened
    except (pyarrow.ArrowInvalid, OSError, ValueError, KeyError, AttributeError):
        pass
    print(f"{path}: damaged, building it again")
    return None


def num_rows(tokens, block_size):
    """Rows of a split: ceil of its predicted tokens over block_size."""
    return -(-(tokens - 1) // block_size)


def _build(bin_path, path, block_size, mask_path=None):
    """Write the cache of one bin, and of its mask, to a temporary file beside `path`, then rename it into place. Constant memory."""
    import pyarrow as pa
    from datasets import Features, List, Value
    from tqdm import tqdm

    width, tokens = block_size + 1, bin_path.stat().st_size // 2
    rows, step = num_rows(tokens, block_size), max(1, ROWS_BYTES // (2 * (block_size + 1)))
    columns = {"input_ids": (bin_path, "uint16")} | ({"targets": (mask_path, "uint8")} if mask_path else {})
    features = Features({name: List(Value(dtype), length=width) for name, (_, dtype) in columns.items()})
    schema = features.arrow_schema.with_metadata({"huggingface": json.dumps({"info": {"features": features.to_dict()}})})
    handle, work = tempfile.mkstemp(prefix=".tmp-", suffix=".arrow", dir=path.parent)
    try:
        with contextlib.ExitStack() as open_files:
            files = {name: (open_files.enter_context(open(source, "rb")), np.dtype(dtype)) for name, (source, dtype) in columns.items()}
            writer = open_files.enter_context(pa.ipc.new_stream(open_files.enter_context(os.fdopen(handle, "wb")), schema))
            for first in tqdm(range(0, rows, step), desc=f"caching {bin_path.name}", disable=None, leave=False):
                count = min(step, rows - first)
                arrays = []
                for file, dtype in files.values():
                    file.seek(dtype.itemsize * first * block_size)
                    run = np.zeros(count * block_size + 1, dtype=dtype)  # the last row of a split is filled up with zeros
                    run_bytes = file.readinto(memoryview(run).cast("B"))
                    assert run_bytes, "bin shrank while it was read"
                    blocks = np.lib.stride_tricks.sliding_window_view(run, width)[::block_size]
                    arrays.append(pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(blocks).reshape(-1)), width))
                writer.write_batch(pa.record_batch(arrays, schema=schema))
        os.chmod(work, 0o644)  # mkstemp made it private
        os.replace(work, path)
    finally:
        if os.path.exists(work):
            os.unlink(work)
