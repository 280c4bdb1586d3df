"""The rows of parquet, Arrow and feather files, batch by batch."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.common.errors import UsageError
from finetune.data import compressed, csv_header, file_kinds
from finetune.data.rows import NoValue, Row, with_texts

if TYPE_CHECKING:
    import pyarrow.parquet

BATCH_ROWS = 1024
MAGIC, PARQUET_MAGIC = b"ARROW1", b"PAR1"  # at both ends of a file
CUT_SHORT = "its end is missing, so it was cut short; copy or download it again"
OLD_END = b"\0\0\0\0"  # of a stream, before Arrow 0.15
NO_VALUE = (ArithmeticError, ValueError, LookupError)  # of a date out of Python's range, or of an unknown time zone
END = b"\xff\xff\xff\xff" + OLD_END


def read(path: Path, name: str) -> Iterator[Row]:
    """The rows of a file by its suffix. Raises UsageError."""
    import pyarrow

    kind = path.suffix.lower().removeprefix(".")
    if f".{kind}" in compressed.SUFFIXES:
        raise UsageError(f"{name}: parquet and Arrow files are not read compressed; unpack it")
    try:
        number = 0
        for batch in _read_parquet(path) if kind == "parquet" else _read_arrow(path):
            batch.validate(full=True)  # its lengths would be believed
            batch = _with_own_names(batch)
            # a batch of a dataset's shard can hold many rows
            for first in range(0, batch.num_rows, BATCH_ROWS):
                for value in _values(batch.slice(first, BATCH_ROWS)):
                    number += 1
                    yield Row(number, value)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        if isinstance(error, UsageError):
            raise
        file_kinds.check_binary(path, name)
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UsageError(f"{name}: cannot be read as {kind}: {_cut_short(path, error) or reason}") from None


def _with_own_names(batch: pyarrow.RecordBatch) -> pyarrow.RecordBatch:
    """The columns, those of one name with numbers: a row of Python keeps one of them."""
    import pyarrow

    names = batch.schema.names
    is_clear = len({*names}) == len(names)
    return batch if is_clear else pyarrow.RecordBatch.from_arrays(batch.columns, names=csv_header.shown(names))


def _values(batch: pyarrow.RecordBatch) -> list[dict[str, Any]]:
    """The rows of a batch. Only a column that is read needs a value of Python in each cell."""
    try:
        rows = batch.to_pylist()
    except NO_VALUE:
        columns = [list(map(_value, column)) for column in batch.columns]
        rows = [dict(zip(batch.schema.names, cells)) for cells in zip(*columns)]
    has_bytes = any("binary" in str(kind) for kind in batch.schema.types)
    return list(map(with_texts, rows)) if has_bytes else rows


def _value(cell: pyarrow.Scalar) -> Any:
    try:
        return cell.as_py()
    except NO_VALUE:
        return NoValue()


def _cut_short(path: Path, error: Exception) -> str | None:
    """What is wrong with a file that has the beginning of its kind and not the end, in words."""
    import pyarrow

    with open(path, "rb") as file:
        head = file.read(len(MAGIC))
        file.seek(-min(len(MAGIC), path.stat().st_size), 2)
        tail = file.read()
    if head.startswith(END[:4]) and isinstance(error, pyarrow.ArrowException | OSError):  # a stream
        return "it ends within a message or is damaged; copy or download it again"
    is_cut = any(head.startswith(magic) and not tail.endswith(magic) for magic in (MAGIC, PARQUET_MAGIC))
    return CUT_SHORT if is_cut else None


def _read_parquet(path: Path) -> Iterator[pyarrow.RecordBatch]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        _check_joined_parquet(path, file.metadata)
        yield from file.iter_batches(BATCH_ROWS)


def _check_joined_parquet(path: Path, metadata: pyarrow.parquet.FileMetaData) -> None:
    """Raise ValueError if another file stands in front of the last one: pyarrow reads one of them."""
    if not (metadata.num_row_groups and metadata.num_columns):
        return
    last = metadata.row_group(metadata.num_row_groups - 1)
    columns = [last.column(number) for number in range(last.num_columns)]
    starts = [min(filter(None, (one.dictionary_page_offset, one.data_page_offset))) for one in columns]
    end = max(start + one.total_compressed_size for start, one in zip(starts, columns))
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if content.find(PARQUET_MAGIC * 2, end) >= 0:
            raise ValueError("several parquet files are joined in it; give them one by one")


def _read_arrow(path: Path) -> Iterator[pyarrow.RecordBatch]:
    """The batches of an Arrow file or stream; `datasets` writes streams."""
    import pyarrow

    with pyarrow.memory_map(str(path)) as source:
        try:
            file = pyarrow.ipc.open_file(source)
        except pyarrow.ArrowInvalid:
            _check_stream(source)
            yield from pyarrow.ipc.open_stream(source)
            return
        _check_joined(source)
        yield from (file.get_batch(number) for number in range(file.num_record_batches))


def _check_stream(source: pyarrow.MemoryMappedFile) -> None:
    """Raise ValueError unless a stream ends with its mark, which a writer that was stopped does not write."""
    if source.size() and not _find_end(source, 0):
        raise ValueError(
            "it has no end mark, so its writer was stopped and rows can be missing; write it again, or keep what is"
            ' there with python -c "import pyarrow.ipc as i, pyarrow.feather as f;'
            " f.write_feather(i.open_stream('FILE').read_all(), 'out.feather')\""
        )
    if source.tell() < source.size():
        raise ValueError("several Arrow streams are joined in it; give them one by one")
    source.seek(0)


def _check_joined(source: pyarrow.MemoryMappedFile) -> None:
    """Raise ValueError if another file stands in front of the last one: pyarrow reads one of them."""
    import pyarrow

    try:
        if not _find_end(source, 8):
            return
    except (pyarrow.ArrowException, OSError):  # a writer may leave the mark out, and the footer tells where all is
        return
    end = source.tell()
    source.seek(source.size() - len(MAGIC) - 4)
    footer = int.from_bytes(source.read(4), "little")
    if end + footer + 4 + len(MAGIC) < source.size():
        raise ValueError("several Arrow files are joined in it; give them one by one")


def _find_end(source: pyarrow.MemoryMappedFile, start: int) -> bool:
    """Go behind the end mark of the messages that begin at `start`; False if there is none."""
    import pyarrow

    source.seek(start)
    while mark := source.read(8):
        if mark == END or mark[:4] == OLD_END:
            source.seek(source.tell() - (0 if mark == END else len(mark) - 4))
            return True
        source.seek(source.tell() - len(mark))
        pyarrow.ipc.read_message(source)
    return False
