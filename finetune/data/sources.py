"""Where text comes from: files, and two named corpora. Everything is streamed; nothing here holds a whole file."""

import codecs
import hashlib
import io
import re
from dataclasses import dataclass
from pathlib import Path

from finetune.cli import UsageError

CHUNK_BYTES = 1 << 22
SHAKESPEARE_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
NAMED = ("shakespeare", "python_docs")


@dataclass
class Source:
    """A text by name: a file, or bytes in memory."""

    name: str
    path: Path | None = None
    content: bytes | None = None

    def open(self):
        return open(self.path, "rb") if self.path else io.BytesIO(self.content)

    def size(self):
        """Length in bytes."""
        return self.path.stat().st_size if self.path else len(self.content)

    def texts(self, digest=None):
        """The text in pieces of some megabytes: UTF-8, without a leading byte order mark, every line end as \\n.

        `digest`, a hashlib object, is fed the raw bytes. Raises UsageError with byte and line where the file is not UTF-8.
        """
        decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8-sig")(), translate=True)
        done = 0
        with self.open() as file:
            while True:
                chunk = file.read(CHUNK_BYTES)
                if done == 0 and chunk[:2] in (b"\xff\xfe", b"\xfe\xff"):
                    raise UsageError(f"{self.name}: looks like UTF-16; convert it to UTF-8, for example with iconv -f UTF-16 -t UTF-8")
                if digest:
                    digest.update(chunk)
                try:
                    text = decoder.decode(chunk, final=not chunk)
                except UnicodeDecodeError as error:
                    # error.object is what was left over from before, then this chunk
                    at = done - (len(error.object) - len(chunk)) + error.start
                    raise UsageError(
                        f"{self.name}: byte 0x{error.object[error.start]:02X} at offset {at:,} ({self._line(at)}) is not UTF-8"
                    ) from None
                done += len(chunk)
                if text:
                    yield text
                if not chunk:
                    return

    def _line(self, offset):
        lines = 1
        with self.open() as file:
            while offset > 0:
                chunk = file.read(min(offset, CHUNK_BYTES))
                lines += chunk.count(b"\n")
                offset -= len(chunk)
        return f"line {lines:,}"


def find(names):
    """A Source for each name: a text file, `shakespeare` or `python_docs`. Raises UsageError."""
    if not names:
        raise UsageError("no text given; name a UTF-8 text file, shakespeare, or python_docs, which needs no download")
    found = []
    for name in names:
        path = Path(name)
        if path.is_file():
            found.append(Source(str(name), path=path))
        elif path.is_dir():
            raise UsageError(f"{name}: is a directory; name its text files, for example {path / '*.txt'}")
        elif name == "python_docs":
            found.append(Source(name, content=_python_docs()))
        elif name == "shakespeare":
            found.append(Source(name, path=_shakespeare()))
        else:
            raise UsageError(f"{name}: no such file, and not one of the named texts {', '.join(NAMED)}")
    return found


def pieces(texts, size, anywhere=False):
    """The same text in pieces of about `size` characters, cut only where GPT-2's pre-tokenizer cuts whatever follows, or `anywhere`.

    So encoding the pieces one by one gives the ids of the whole. A text without any such place stays in one piece.
    """
    rest, searched = "", 0
    for text in texts:
        rest += text
        while len(rest) > size:
            cut = size if anywhere else _last_cut(rest, size) or _first_cut(rest, max(size, searched))
            if not cut:
                searched = len(rest) - 2
                break
            yield rest[:cut]
            rest, searched = rest[cut:], 0
    if rest:
        yield rest


# a word before a single space and a word; a line end between words; a punctuation mark before a letter or digit
SAFE_CUT = re.compile(r"(?<=\w)(?= \w)|(?<=\w\n)(?=\w)|(?<=[.,;:!?。，；：！？、])(?=[^\W_])")
WINDOW = 4096


def _last_cut(text, size):
    """The last safe place in the WINDOW characters before `size`."""
    start = max(0, size - WINDOW)
    cuts = [match.start() for match in SAFE_CUT.finditer(text, start, size + 2) if start < match.start() <= size]
    return cuts[-1] if cuts else None


def _first_cut(text, start):
    match = SAFE_CUT.search(text, start)
    return match.start() if match and match.start() < len(text) - 2 else None  # what follows the end is not known yet


def _python_docs():
    """Python's language reference as plain text, which every CPython carries for its help(): 465,048 characters in 3.11."""
    from pydoc_data.topics import topics

    return "\n".join(topics.values()).encode("utf-8")


def _shakespeare():
    """Tiny Shakespeare (1,115,394 characters), at data/shakespeare/input.txt or downloaded to there."""
    import urllib.request

    path = Path("data/shakespeare/input.txt")
    if path.is_file():
        return path
    try:
        with urllib.request.urlopen(SHAKESPEARE_URL, timeout=10) as response:
            content = response.read(1 << 22)
    except OSError as error:
        raise UsageError(
            f"shakespeare: cannot be downloaded ({error}). Put the file {SHAKESPEARE_URL} at {path} by hand, or use python_docs, which needs no download"
        ) from None
    if hashlib.sha256(content).hexdigest() != SHAKESPEARE_SHA256:
        raise UsageError(f"shakespeare: what {SHAKESPEARE_URL} sent is not tiny Shakespeare (its sha256 differs); nothing was kept")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    partial.write_bytes(content)
    partial.rename(path)
    return path
