"""Bins to an Arrow cache of blocks that `datasets` memory-maps.

Row k of a split's cache holds tokens k*T .. k*T+T, one more than T, so a row by itself predicts T tokens and
consecutive rows predict every token of the split exactly once. Only the first token of a split, which nothing precedes,
is never predicted. A file is named by the sha256 of its bin: an edited bin never meets an old cache, and processes that
build at once write the same file."""

import contextlib
import json
from pathlib import Path

import numpy as np

from finetune.common.errors import UsageError
from finetune.common.files import replacing
from finetune.data import packing

ROWS_BYTES = 1 << 22  # bytes of tokens in one Arrow record batch
ROWS = b"finetune.rows"  # how many rows a whole cache has
FORMAT = 2


def open_cache(dataset, split, block_size, contents, isolated=False):
    """A `datasets.Dataset` of the blocks of a split, built when it is not there. `contents` is `bins.survey` of the
    split.

    With `isolated`, rows are documents packed whole: `position_ids` begin again with each, and its first token is no
    target. Raises UsageError when the split has fewer than block_size + 1 tokens and is not isolated."""
    tokens = contents.tokens
    if not isolated:
        check_length(dataset, split, block_size, tokens)
    mark = "-".join(
        digest[:length]
        for digest, length in ((contents.sha256, 32), (contents.mask_sha256, 16), (contents.documents_sha256, 16))
        if digest
    )
    kind = (
        f"-isolated{'' if contents.documents_sha256 else dataset.eot}" if isolated else ""
    )  # what ends documents cuts them
    name = f"{split}-T{block_size}-v{FORMAT}{kind}-{mark}.arrow"
    for folder in _folders(dataset):
        if (opened := _open(folder / name)) is not None:
            return opened
    for folder in _folders(dataset):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            build = _build_packed if isolated else _build
            build(dataset, split, folder / name, block_size)
        except OSError:  # a read-only directory; the next folder is the user's own
            continue
        if (opened := _open(folder / name)) is not None:
            return opened
    raise UsageError(
        f"{dataset.bin(split)}: its Arrow cache can be written neither beside it nor under {_folders(dataset)[-1]}"
    )


def check_length(dataset, split, block_size, tokens):
    """Raise UsageError when a split has not the tokens of a single block."""
    if tokens < block_size + 1:
        raise UsageError(
            f"{dataset.bin(split)}: {tokens:,} tokens, and a block of {block_size:,} needs {block_size + 1:,}; "
            f"lower block_size{' or raise val_fraction' if split == 'val' else ''}"
        )


def _folders(dataset):
    """Where caches are looked for and built: beside the bins, else in the cache directory of `datasets`."""
    from datasets import config

    return [dataset.directory / ".arrow", Path(config.HF_DATASETS_CACHE) / "finetune"]


def _open(path):
    """The cache, or None when it is missing or damaged, which is repaired by building it again."""
    import pyarrow
    from datasets import Dataset

    if not path.is_file():
        return None
    try:
        opened = Dataset.from_file(str(path))
        with pyarrow.memory_map(
            str(path)
        ) as file:  # a file that was cut between two record batches reads as a whole one
            if len(opened) == int(pyarrow.ipc.open_stream(file).schema.metadata[ROWS]):
                return opened
    except (pyarrow.ArrowInvalid, OSError, ValueError, KeyError, AttributeError, TypeError):
        pass
    print(f"{path}: damaged, building it again")
    return None


def num_rows(tokens, block_size):
    """Rows of a split that is not packed: ceil of its predicted tokens over block_size."""
    return -(-(tokens - 1) // block_size)


def _build(dataset, split, path, block_size):
    """Write the cache of a bin, and of its mask, cut every T tokens."""
    width, tokens = block_size + 1, dataset.num_tokens(split)
    sources = {"input_ids": (dataset.bin(split), "uint16")}
    if dataset.mask(split):
        sources["targets"] = (dataset.mask(split), "uint8")
    with contextlib.ExitStack() as open_files:
        files = {name: open_files.enter_context(open(source, "rb")) for name, (source, _) in sources.items()}
        runs = {}

        def fill(first, columns):
            for name, rows in columns.items():
                itemsize = rows.itemsize
                run = runs.setdefault(name, np.empty(len(rows) * block_size + 1, dtype=rows.dtype))[
                    : len(rows) * block_size + 1
                ]
                files[name].seek(itemsize * first * block_size)
                count = files[name].readinto(memoryview(run).cast("B"))
                assert count > 0, "bin shrank while it was read"
                run[count // itemsize :] = 0  # the last row of a split is filled up with zeros
                np.copyto(rows, np.lib.stride_tricks.sliding_window_view(run, width)[::block_size])

        _write(path, num_rows(tokens, block_size), width, {name: dtype for name, (_, dtype) in sources.items()}, fill)


def _build_packed(dataset, split, path, block_size):
    """Write the cache of the documents of a bin, isolated from each other."""
    ids = np.memmap(dataset.bin(split), dtype="<u2", mode="r")
    learned = np.memmap(dataset.mask(split), dtype=np.uint8, mode="r") if dataset.mask(split) else None
    first, length, row = packing.pack(dataset.document_ends(split), block_size + 1, learned)
    if not len(row):
        raise UsageError(f"{dataset.bin(split)}: no document of two tokens or more, so there is nothing to predict")
    begins = np.searchsorted(row, np.arange(row[-1] + 2))  # the first piece of each row, and an end

    def fill(first_row, columns):
        for number, (tokens, targets, positions) in enumerate(
            zip(columns["input_ids"], columns["targets"], columns["position_ids"]), first_row
        ):
            there = 0
            for piece in range(begins[number], begins[number + 1]):
                a, n = first[piece], length[piece]
                tokens[there : there + n] = ids[a : a + n]
                targets[there : there + n] = 1 if learned is None else learned[a : a + n]
                targets[there] = 0  # nothing before it predicts it
                positions[there : there + n] = places[:n]
                there += n
            tokens[there:], targets[there:], positions[there:] = 0, 0, places[: len(tokens) - there]

    places = np.arange(block_size + 1, dtype=np.uint16)
    _write(
        path,
        int(row[-1]) + 1,
        block_size + 1,
        {"input_ids": "uint16", "targets": "uint8", "position_ids": "uint16"},
        fill,
    )


def _write(path, rows, width, dtypes, fill):
    """Write an Arrow stream of `rows` lists of `width` values to a temporary file beside `path`, then rename it into
    place.

    `fill(first, columns)` puts the rows from `first` on into arrays (count, width), one for each of `dtypes`. Constant
    memory: the arrays of one record batch are those of the next."""
    import pyarrow as pa
    from datasets import Features, List, Value
    from tqdm import tqdm

    step = max(1, min(rows, ROWS_BYTES // (2 * width)))
    features = Features({name: List(Value(dtype), length=width) for name, dtype in dtypes.items()})
    schema = features.arrow_schema.with_metadata(
        {"huggingface": json.dumps({"info": {"features": features.to_dict()}}), ROWS: str(rows)}
    )
    buffers = {name: np.empty((step, width), dtype=dtype) for name, dtype in dtypes.items()}
    with replacing(path) as work, pa.OSFile(str(work), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        for first in tqdm(range(0, rows, step), desc=f"caching {path.name.split('-')[0]}", disable=None, leave=False):
            columns = {name: buffer[: rows - first] for name, buffer in buffers.items()}
            fill(first, columns)
            arrays = [
                pa.FixedSizeListArray.from_arrays(pa.array(rows_of.reshape(-1)), width) for rows_of in columns.values()
            ]
            writer.write_batch(pa.record_batch(arrays, schema=schema))
