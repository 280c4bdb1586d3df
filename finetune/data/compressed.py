"""Compressed files: opened by their suffix, and in words what is wrong with one that cannot be read."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from finetune.common.files import CHUNK_BYTES

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

SUFFIXES = (".gz", ".xz", ".bz2", ".zst")
READ_ERRORS = (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError)  # of a file that is damaged or gone
MAGIC = {".gz": b"\x1f\x8b", ".xz": b"\xfd7zXZ\0", ".bz2": b"BZh", ".zst": b"\x28\xb5\x2f\xfd", ".zip": b"PK"}
TOOLS = {".gz": "gzip", ".xz": "xz", ".bz2": "bzip2", ".zst": "zstd"}
CUT_SHORT = "cut short; download or copy it again"
DAMAGED = "damaged; download or copy it again"
# what libraries say of a file that ends too early
ENDS = ("ended before", "truncated", "unexpected end", "end of data", "file is not a zip file", "incomplete", "eof")


def open_decompressed(path: Path, suffix: str | None = None) -> BinaryIO:
    """The bytes of a file, decompressed by its suffix or the one given. Raises OSError."""
    suffix = suffix or path.suffix.lower()
    if suffix == ".zst":
        import pyarrow

        return cast(BinaryIO, pyarrow.input_stream(str(path), compression="zstd"))
    if suffix == ".gz":
        return cast(BinaryIO, gzip.open(path))
    file = open(path, "rb")
    makers: dict[str, Callable[[], bz2.BZ2Decompressor | lzma.LZMADecompressor]] = {
        ".bz2": bz2.BZ2Decompressor,
        ".xz": lzma.LZMADecompressor,
    }
    return cast(BinaryIO, io.BufferedReader(_Streams(file, makers[suffix]))) if suffix in makers else file


def explain(error: Exception, path: Path, suffix: str | None = None) -> str:
    """What is wrong with a file that could not be read, in words, with the way out."""
    suffix = suffix or path.suffix.lower()
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if suffix not in MAGIC:
        return str(error) or type(error).__name__
    with open(path, "rb") as file:
        head = file.read(len(MAGIC[suffix]))
    if not head:
        return "empty"
    if not MAGIC[suffix].startswith(head):
        what = "a zip archive" if suffix == ".zip" else f"compressed with {TOOLS[suffix]}"
        name = path.with_suffix("").name
        is_text = path.suffix.lower() == suffix != ".zip" and not name.endswith(".tar")
        return f"not {what}; {f'if it is text as it is, name it {name}' if is_text else 'download it again'}"
    is_cut = isinstance(error, EOFError) or any(end in str(error).lower() for end in ENDS)
    return CUT_SHORT if is_cut else DAMAGED


class _Streams(io.RawIOBase):
    """The bytes of the compressed streams in a file. What follows them is an error; bz2 and lzma would leave it out."""

    def __init__(self, file: BinaryIO, make: Callable[[], bz2.BZ2Decompressor | lzma.LZMADecompressor]) -> None:
        self._file, self._make = file, make
        self._decompressor = make()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        target = memoryview(buffer)
        while True:
            data = b""
            if self._decompressor.eof:
                data = self._decompressor.unused_data.lstrip(b"\0") or self._file.read(CHUNK_BYTES).lstrip(b"\0")
                if not data:
                    return 0
                self._decompressor = self._make()
            elif self._decompressor.needs_input:
                data = self._file.read(CHUNK_BYTES)
                if not data:
                    raise EOFError("ended before the end of the stream")
            found = self._decompressor.decompress(data, len(target))
            if found:
                target[: len(found)] = found
                return len(found)

    def close(self) -> None:
        self._file.close()
        super().close()
