"""Text files: opened, decompressed, decoded, and cut into documents."""

from __future__ import annotations

import codecs
import hashlib
import io
import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TextIO, TypeAlias

from finetune.common.errors import UsageError
from finetune.common.files import CHUNK_BYTES
from finetune.common.formatting import unify_newlines
from finetune.data import compressed, encodings, file_kinds
from finetune.data.compressed import READ_ERRORS
from finetune.data.documents import Chunk

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

TEXT_SUFFIXES = (".txt", ".md", ".text", ".markdown")
ESCAPES = {"\\n": "\n", "\\t": "\t", "\\r": "\r", "\\f": "\f", "\\\\": "\\"}
MOST_CHARACTERS = 1 << 27  # of a line or a value of a table
CUT_CHARACTER = ("truncated data", "unexpected end of data")  # reasons of a codec
GUESS_BYTES = 1 << 15  # around a byte that cannot be decoded
STRAY = 10  # characters beyond ASCII for each byte that cannot be decoded, if the encoding is the right one
# letters of UTF-16 among others, and others among UTF-16, in which that many are no text
WIDE_RUN = re.compile(rb"(?:[\t-\xff][\0\x04-\x06]){8,}|(?:[\0\x04-\x06][\t-\xff]){8,}")
ASCII_RUN = re.compile(rb"[\t\n\r -~]{64,}")
SURROGATE = re.compile("[\ud800-\udfff]")  # which the codecs of escapes let pass

Digest: TypeAlias = "hashlib._Hash | None"  # fed the bytes that are read


@dataclass(frozen=True)
class TextOptions:
    """How a text file is read.

    `documents` is "file" (a document is the file), "lines" (a line) or a separator of documents, in which \\n, \\t, \\f
    and \\\\ are escapes."""

    documents: str = "file"
    encoding: str | None = None  # UTF-8

    @property
    def separator(self) -> str | None:
        """The text between documents; None if the file is one document. Raises UsageError."""
        if self.documents == "file":
            return None
        if self.documents == "lines":
            return "\n"
        if not self.documents or re.fullmatch("(?i)(files?|lines?|rows?|documents?|paragraphs?)", self.documents):
            raise UsageError(f'documents: {self.documents!r} is not file, lines or a separator such as "\\n\\n\\n"')
        return unify_newlines(unescape(self.documents, "ntrf"))  # as in the text


def unescape(text: str, letters: str = "ntr") -> str:
    """The text with \\n, \\t, \\r and \\\\ as the characters that they mean; a shell passes them as two letters."""
    return re.sub(rf"\\[{letters}\\]", lambda match: ESCAPES[match[0]], text)


def suffix_of(path: Path) -> str:
    """The suffix in lower case, without that of a compression: `.txt` of a.TXT.gz."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in compressed.SUFFIXES:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def open_text(path: Path, encoding: str | None = None) -> TextIO:
    """The text of a file, decompressed by its suffix, without byte order mark, line ends as they are.

    Raises UsageError, also while it is read, if the file is not text: what it is; or the place of a byte that is not of
    the encoding (UTF-8), and the one that the text is probably in."""
    texts = decode(str(path), _read_chunks(path), encoding)
    # passed on as UTF-8, because io has no other way from chunks of text to lines
    file = _Lines(io.BufferedReader(_Utf8(texts), CHUNK_BYTES), encoding="utf-8", newline="")
    file.title = str(path)
    return file


class _Lines(io.TextIOWrapper):
    """Text whose lines are at most MOST_CHARACTERS long: a small compressed file can hold one of gigabytes."""

    title, length = "", 0  # of the line so far

    def readline(self, size: int = MOST_CHARACTERS + 1, /) -> str:
        part = super().readline(size)
        self.length += len(part)
        if self.length > MOST_CHARACTERS:
            raise UsageError(f"{self.title}: holds a line of more than {MOST_CHARACTERS:,} characters")
        if part.endswith(("\n", "\r")):
            self.length = 0
        return part

    def __next__(self) -> str:
        if line := self.readline():
            return line
        raise StopIteration


def read_file(
    path: Path, digest: Digest = None, chunk_bytes: int = CHUNK_BYTES, options: TextOptions | None = None
) -> Iterator[Chunk]:
    """The documents of a text file; see `read_document`."""
    yield from _documents(str(path), _read_chunks(path, chunk_bytes, digest), options or TextOptions())


def read_document(
    name: str, file: BinaryIO, digest: Digest = None, chunk_bytes: int = CHUNK_BYTES, options: TextOptions | None = None
) -> Iterator[Chunk]:
    """The documents of some bytes, without byte order mark and with every line end as \\n.

    `digest` is fed the decompressed bytes. Raises UsageError as `open_text` does."""
    yield from _documents(name, _read(name, file, chunk_bytes, digest), options or TextOptions())


def _read_chunks(path: Path, chunk_bytes: int = CHUNK_BYTES, digest: Digest = None) -> Iterator[bytes]:
    try:
        file = compressed.open_decompressed(path)
    except READ_ERRORS as error:
        raise UsageError(f"{path}: cannot be read: {compressed.explain(error, path)}") from None
    if path.suffix.lower() in compressed.SUFFIXES:
        file_kinds.check_binary(path, str(path))  # such as a pointer of git-lfs
    with file:
        yield from _read(str(path), file, chunk_bytes, digest)


def _read(name: str, file: BinaryIO, chunk_bytes: int, digest: Digest) -> Iterator[bytes]:
    while True:
        try:
            data = file.read(chunk_bytes)
        except READ_ERRORS as error:
            raise UsageError(f"{name}: cannot be read: {compressed.explain(error, Path(name))}") from None
        if not data:
            return
        if digest:
            digest.update(data)
        yield data


def decode(name: str, chunks: Iterable[bytes], encoding: str | None = None) -> Iterator[str]:
    """Decode the bytes of a file, without byte order mark; line ends stay. Raises UsageError as `open_text` does."""
    codec = encodings.find_codec(encoding) if encoding else "utf-8"
    decoder = codecs.getincrementaldecoder(codec)()
    offset, line, is_ascii, before = 0, 1, True, b""  # of the next chunk; of the text so far
    for data in itertools.chain(chunks, [b""]):
        mark = 0
        if not offset and data:
            file_kinds.check(name, data, encoding)
            codec, mark = encodings.codec_of(data, codec)
            decoder = codecs.getincrementaldecoder(codec)()
        _check_mixture(name, data, codec, offset, line)
        if offset and _is_suspicious(data, codec):
            file_kinds.check_encoding(f"{name}: from line {line:,} on", data, encoding)
        if is_ascii and not data.isascii():
            is_ascii = False
            if codec != "utf-8" and encodings.is_surely_utf8(data):
                raise UsageError(f"{name}: is UTF-8, not {encoding}; leave --encoding={encoding} out")
        try:
            text = decoder.decode(data[mark:], final=not data)
        except UnicodeDecodeError as error:
            undecoded = len(error.object) - len(data[mark:])  # the start of a character at the end of what was before
            raise _error(name, codec, error, offset + len(data), line, before[: len(before) - undecoded]) from None
        if codec != "utf-8" and (half := SURROGATE.search(text)):
            place = f"{name}: line {line + text.count(chr(10), 0, half.start()):,} holds {half[0]!r}"
            raise UsageError(f"{place}, half of a surrogate pair, which is no character; take it out")
        yield text
        offset, line, before = offset + len(data), line + text.count("\n"), data[-GUESS_BYTES:]


def _check_mixture(name: str, data: bytes, codec: str, offset: int, line: int) -> None:
    """Raise UsageError if a part of a file, at this offset and line, is UTF-16 among other text, or the reverse."""
    is_wide = encodings.is_wide(codec)
    if not is_wide and 0 not in data:
        return
    runs = filter(_has_words, ASCII_RUN.finditer(data)) if is_wide else WIDE_RUN.finditer(data)
    if found := next(runs, None):
        one, other = (codec.upper(), "UTF-8") if is_wide else ("UTF-8" if codec == "utf-8" else codec, "UTF-16")
        place = offset + found.start()
        line += data[: found.start()].decode(codec, "replace").count("\n")
        raise UsageError(
            f"{name}: from line {line:,} on (offset {place:,}) is {other} below {one}, as PowerShell's >> can add it;"
            f" convert that part with iconv: head -c {place} and tail -c +{place + 1} cut the file there"
        )


def _has_words(run: re.Match[bytes]) -> bool:
    """Whether letters of ASCII are not the halves of other characters, such as those of frames."""
    return all(len({*run[0][half::2]}) >= 8 for half in (0, 1))


def _is_suspicious(data: bytes, codec: str) -> bool:
    """Whether a later part of a file is not text of this encoding, although it can be decoded."""
    return not encodings.is_wide(codec) and (data.count(0) > 0.01 * len(data) or b"\x1b$" in data)


def _error(name: str, codec: str, error: UnicodeDecodeError, end: int, line: int, before: bytes) -> UsageError:
    """What to say of a byte that cannot be decoded. The bytes of `error` end at offset `end` and begin in `line`;
    `before` are those before them."""
    data, start = before + error.object, len(before) + error.start
    around = UnicodeDecodeError(codec, data, start, len(before) + error.end, error.reason)
    flaw = encodings.flaw_in_utf8(around, GUESS_BYTES) if codec == "utf-8" else None
    line += data[len(before) : start].decode(codec, "replace").count("\n")
    offset = end - len(data) + start
    encoding = "UTF-8" if codec == "utf-8" else codec
    is_cut = around.end == len(data) and error.reason in CUT_CHARACTER
    if is_cut and (flaw or encodings.is_wide(codec)):
        advice = f"head -c {offset} keeps what is before it"
        return UsageError(f"{name}: ends within a character of {encoding} (line {line:,}); {advice}")
    place = f"{name}: byte 0x{data[start]:02X} at offset {offset:,} (line {line:,}) is not {encoding}"
    if flaw:
        return UsageError(f"{place}{flaw}, or drop it with iconv -c -f UTF-8 -t UTF-8")
    lines = data[max(0, start - GUESS_BYTES) : start + GUESS_BYTES].split(b"\n")
    foreign = [text for text in lines if not text.isascii()]
    if codec != "utf-8" and encodings.is_utf8(b"\n".join(foreign)):
        return UsageError(f"{place}; it is UTF-8: leave --encoding={codec} out")
    text = b"\n".join(foreign).decode(codec, "replace")
    if codec != "utf-8" and STRAY * text.count("\ufffd") < sum(not char.isascii() for char in text):
        return UsageError(f"{place}; drop it with iconv -c -f {file_kinds.iconv_name(codec)} -t UTF-8")
    good = [text for text in foreign if encodings.is_utf8(text + b"\n")]
    probable = encodings.guess(b"\n".join(text for text in foreign if text not in good))
    if codec == "utf-8" and encodings.is_surely_utf8(b"\n".join(good)):
        known = f", probably {probable}" if probable else ""
        return UsageError(f"{place}; some lines are UTF-8 and some are not{known}: convert those first")
    if probable in (None, codec):
        return UsageError(f"{place}; name its encoding, for example --encoding=cp1252")
    return UsageError(f"{place}; probably {probable}: --encoding={probable}")


def _documents(name: str, chunks: Iterable[bytes], options: TextOptions) -> Iterator[Chunk]:
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    texts = itertools.chain(decode(name, chunks, options.encoding), [""])
    texts = (newlines.decode(text, final=not text) for text in texts)
    if options.separator:
        yield from _split(texts, options.separator)
    else:
        yield from (Chunk(text) for text in texts if text)
        yield Chunk("", is_last=True)


def _split(texts: Iterable[str], separator: str) -> Iterator[Chunk]:
    """The documents between separators, without those that are only white space."""
    start, has_begun = "", False  # of a document: its white space at the start, or part of it was passed on
    for text, is_end in _pieces(texts, separator):
        start += text
        if start.strip() or has_begun:
            if start or is_end:
                yield Chunk(start, is_last=is_end)
            start, has_begun = "", not is_end
        elif is_end:
            start = ""


def _pieces(texts: Iterable[str], separator: str) -> Iterator[tuple[str, bool]]:
    """The texts between separators in parts, and whether a separator, or the end, follows each part."""
    rest = ""
    for text in texts:
        *parts, rest = (rest + text).split(separator)
        yield from ((part, True) for part in parts)
        known = max(0, len(rest) - len(separator) + 1)  # a separator may begin behind this place
        yield rest[:known], False
        rest = rest[known:]
    yield rest, True


class _Utf8(io.RawIOBase):
    """Chunks of text as a stream of UTF-8."""

    def __init__(self, texts: Iterator[str]) -> None:
        self._texts, self._data = texts, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        while not self._data:
            text = next(self._texts, None)
            if text is None:
                return 0
            self._data = memoryview(text.encode("utf-8"))
        target = memoryview(buffer)
        size = min(len(target), len(self._data))
        target[:size], self._data = self._data[:size], self._data[size:]
        return size

    def close(self) -> None:
        self._texts = iter(())  # and so the file
        super().close()
