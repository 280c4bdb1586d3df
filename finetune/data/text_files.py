"""Text files: opened, decompressed and decoded."""

from __future__ import annotations

import codecs
import hashlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, TypeAlias

from finetune.common.errors import UsageError
from finetune.common.files import CHUNK_BYTES
from finetune.data.documents import Chunk

TEXT_SUFFIXES = (".txt", ".md", ".text", ".markdown")
COMPRESSED_SUFFIXES = (".gz", ".xz", ".bz2", ".zst")

Digest: TypeAlias = "hashlib._Hash | None"  # fed the bytes that are read


def suffix_of(path: Path) -> str:
    """The suffix in lower case, without that of a compression: `.txt` of a.TXT.gz."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED_SUFFIXES:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def open_decompressed(path: Path) -> BinaryIO:
    """The bytes of a file, decompressed by its suffix."""
    import fsspec

    if path.suffix.lower() not in COMPRESSED_SUFFIXES:
        return open(path, "rb")
    return fsspec.filesystem("file").open(str(path), "rb", compression="infer")


def read_file(path: Path, digest: Digest = None, chunk_bytes: int = CHUNK_BYTES) -> Iterator[Chunk]:
    """A text file as one document; see `read_document`."""
    with open_decompressed(path) as file:
        yield from read_document(str(path), file, digest, chunk_bytes)


def read_document(name: str, file: BinaryIO, digest: Digest = None, chunk_bytes: int = CHUNK_BYTES) -> Iterator[Chunk]:
    """Decode UTF-8 bytes to one document, without byte order mark and with every line end as \\n.

    `digest` is fed the decompressed bytes. Raises UsageError with the place of the first byte that is not UTF-8."""
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8-sig")(), translate=True)
    offset, line = 0, 1  # of the next chunk
    while True:
        try:
            data = file.read(chunk_bytes)
        except (OSError, EOFError) as error:
            raise UsageError(f"{name}: cannot be read: {error}") from None
        if offset == 0 and data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            convert = "iconv -f UTF-16 -t UTF-8"
            raise UsageError(f"{name}: looks like UTF-16; convert it to UTF-8, for example with {convert}")
        if digest:
            digest.update(data)
        try:
            text = decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            undecoded, valid = error.object, error.object[: error.start]
            # `undecoded` begins with bytes left over from the previous chunk
            place = offset + len(data) - len(undecoded) + len(valid)
            byte, line = undecoded[error.start], line + valid.count(b"\n")
            raise UsageError(f"{name}: byte 0x{byte:02X} at offset {place:,} (line {line:,}) is not UTF-8") from None
        offset, line = offset + len(data), line + data.count(b"\n")
        if text:
            yield Chunk(text)
        if not data:
            break
    yield Chunk("", is_last=True)
