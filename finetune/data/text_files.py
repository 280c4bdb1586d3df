"""Text files: opened, decompressed and decoded."""

from __future__ import annotations

import codecs
import hashlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from finetune.common.errors import UsageError
from finetune.data.documents import Chunk

CHUNK_BYTES = 1 << 22
TEXT_SUFFIXES = (".txt", ".md", ".text", ".markdown")
COMPRESSED_SUFFIXES = (".gz", ".xz", ".bz2", ".zst")


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


def update_digest(path: Path, digest: hashlib._Hash) -> None:
    """Feed the bytes of a file, as stored, to `digest`."""
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)


def read_file(path: Path, digest: hashlib._Hash | None = None, chunk_bytes: int = CHUNK_BYTES) -> Iterator[Chunk]:
    """A text file as one document; see `read_document`."""
    return read_document(str(path), lambda: open_decompressed(path), digest, chunk_bytes)


def read_document(
    name: str, open_bytes: Callable[[], BinaryIO], digest: hashlib._Hash | None = None, chunk_bytes: int = CHUNK_BYTES
) -> Iterator[Chunk]:
    """Decode UTF-8 bytes to one document, without byte order mark and with every line end as \\n.

    `digest` is fed the decompressed bytes. Raises UsageError with the place of the first byte that is not UTF-8."""
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8-sig")(), translate=True)
    offset = 0
    with open_bytes() as file:
        while True:
            try:
                chunk = file.read(chunk_bytes)
            except (OSError, EOFError) as error:
                raise UsageError(f"{name}: cannot be read: {error}") from None
            if offset == 0 and chunk[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
                convert = "iconv -f UTF-16 -t UTF-8"
                raise UsageError(f"{name}: looks like UTF-16; convert it to UTF-8, for example with {convert}")
            if digest:
                digest.update(chunk)
            try:
                text = decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                undecoded = len(error.object) - len(chunk)  # bytes left over from the previous chunk
                bad = _describe_byte(open_bytes, offset - undecoded + error.start, chunk_bytes)
                raise UsageError(f"{name}: {bad}") from None
            offset += len(chunk)
            if text:
                yield Chunk(text)
            if not chunk:
                break
    yield Chunk("", is_last=True)


def _describe_byte(open_bytes: Callable[[], BinaryIO], offset: int, chunk_bytes: int) -> str:
    """`byte 0xE9 at offset 6 (line 2) is not UTF-8`."""
    line, left = 1, offset
    with open_bytes() as file:
        while left > 0 and (chunk := file.read(min(left, chunk_bytes))):
            line += chunk.count(b"\n")
            left -= len(chunk)
        byte = file.read(1)
    return f"byte 0x{byte[0] if byte else 0:02X} at offset {offset:,} (line {line:,}) is not UTF-8"
