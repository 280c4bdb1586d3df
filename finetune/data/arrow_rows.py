"""The rows of parquet, Arrow and feather files, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.common.errors import UsageError
from finetune.data import file_kinds
from finetune.data.rows import Row

if TYPE_CHECKING:
    import pyarrow

BATCH_ROWS = 1024


def read(path: Path, name: str) -> Iterator[Row]:
    """The rows of a file by its suffix. Raises UsageError."""
    import pyarrow

    kind = path.suffix.lower().removeprefix(".")
    try:
        number = 0
        for batch in _read_parquet(path) if kind == "parquet" else _read_arrow(path):
            # a batch of a dataset's shard can hold many rows
            for first in range(0, batch.num_rows, BATCH_ROWS):
                for value in batch.slice(first, BATCH_ROWS).to_pylist():
                    number += 1
                    yield Row(number, value)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        if isinstance(error, UsageError):
            raise
        file_kinds.check_binary(path, name)
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UsageError(f"{name}: cannot be read as {kind}: {reason}") from None


def _read_parquet(path: Path) -> Iterator[pyarrow.RecordBatch]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        yield from file.iter_batches(BATCH_ROWS)


def _read_arrow(path: Path) -> Iterator[pyarrow.RecordBatch]:
    """The batches of an Arrow file or stream; `datasets` writes streams."""
    import pyarrow

    with pyarrow.memory_map(str(path)) as source:
        try:
            file = pyarrow.ipc.open_file(source)
            batches = (file.get_batch(number) for number in range(file.num_record_batches))
        except pyarrow.ArrowInvalid:
            source.seek(0)
            batches = iter(pyarrow.ipc.open_stream(source))
        yield from batches
