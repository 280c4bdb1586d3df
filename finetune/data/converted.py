"""Texts of documents with a layout, such as .docx and .pdf, through markitdown."""

from __future__ import annotations

import importlib.util
import io
import logging
import re
import zipfile
from pathlib import Path

from finetune.common.errors import UsageError
from finetune.common.formatting import unify_newlines
from finetune.data import encodings
from finetune.data.compressed import CUT_SHORT
from finetune.data.file_kinds import DOCUMENT_SUFFIXES, EXTRA, HEAD_BYTES, PAGE_SUFFIXES, check, check_binary
from finetune.data.text_files import decode

OTHERS = (".doc", ".odt", ".rtf")  # not known to markitdown
# what markitdown adds: the number of a slide, and the name of a picture behind its description
ADDED = re.compile(r"<!-- Slide number: \d+ -->\n?|!\[([^\]]*)\]\([^)]*\)")
DECLARED = re.compile(
    rb"<meta\b[^>]*?\bcharset\s*=\s*[\"']?\s*([\w.:-]+)|<\?xml[^>]*?\bencoding\s*=\s*[\"']([\w.:-]+)", re.IGNORECASE
)
# what browsers take a name for (https://encoding.spec.whatwg.org/#names-and-labels), and Python for less
WIDER = {"iso8859-1": "cp1252", "ascii": "cp1252", "iso8859-9": "cp1254", "gb2312": "gb18030", "gbk": "gb18030"}
WIDER |= {"shift_jis": "cp932", "euc_kr": "cp949", "iso8859-11": "cp874", "tis-620": "cp874", "big5": "big5hkscs"}
LABELS = {"x-sjis": "cp932", "windows-31j": "cp932", "windows-874": "cp874", "windows-949": "cp949", "x-gbk": "gb18030"}
STARTS = {".docx": b"PK", ".pptx": b"PK", ".epub": b"PK", ".pdf": b"%PDF-"}


def is_document(path: Path) -> bool:
    """Whether its suffix is that of a document with a layout."""
    return path.suffix.lower() in (*DOCUMENT_SUFFIXES, *OTHERS)


def is_installed() -> bool:
    """Whether such documents can be read here."""
    return importlib.util.find_spec("markitdown") is not None


def to_text(path: Path, encoding: str | None = None) -> str:
    """The text of a document as Markdown; `encoding` is that of a web page, if it is not the one that the page names.
    Raises UsageError if there is no text, or if markitdown is missing."""
    kind = path.suffix.lower()
    with open(path, "rb") as file:
        head = file.read(HEAD_BYTES)
    if kind in OTHERS:
        check(str(path), head)
        raise UsageError(f"{path}: {kind} is not read; save it as .docx or as plain text")
    if not head.lstrip().startswith(STARTS.get(kind, b"")):  # markitdown would take it for text
        check_binary(path, str(path))
        raise UsageError(f"{path}: is no {kind} file")
    if STARTS.get(kind) == b"PK" and not zipfile.is_zipfile(path):
        raise UsageError(f"{path}: cannot be converted to text: {CUT_SHORT}")
    try:
        from markitdown import MarkItDown, StreamInfo  # pyrefly: ignore[missing-import]
    except ImportError:
        raise UsageError(f"{path}: reading {kind} needs {EXTRA}; or save it as plain text") from None
    logging.getLogger("pdfminer").setLevel(logging.ERROR)  # it warns of fonts
    page = page_text(path, encoding) if kind in PAGE_SUFFIXES else None
    converter = MarkItDown(enable_plugins=False)
    try:
        if page is None:
            text: str = converter.convert_local(path).markdown
        else:  # markitdown would guess the encoding
            info = StreamInfo(extension=kind, charset="utf-8")
            text = converter.convert_stream(io.BytesIO(page.encode()), stream_info=info).markdown
    except Exception as error:  # each format has its own library
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UsageError(f"{path}: cannot be converted to text: {lines[-1].strip(' -')}") from None
    text = ADDED.sub(lambda match: match[1] or "", unify_newlines(text))
    if not text.strip():
        raise UsageError(f"{path}: has no text in it; scanned pages need OCR first, for example ocrmypdf")
    return text


def page_text(path: Path, encoding: str | None = None) -> str:
    """A web page as it stands in a file, in `encoding`, else in UTF-8 or in the encoding that it names. Raises
    UsageError."""
    data = path.read_bytes()
    if encoding is None:
        encoding, _ = encodings.encoding_of_mark(data)
    if encoding is None and not encodings.is_surely_utf8(data):  # programs that save pages may leave an old name
        encoding = _declared(data[:HEAD_BYTES])
    return "".join(decode(str(path), [data], encoding))


def _declared(head: bytes) -> str | None:
    """Python's name of the encoding that a page names in its first lines, which an ASCII reader can read."""
    found = DECLARED.search(head)
    label = (found[1] or found[2]).decode("ascii", "replace").lower() if found else ""
    codec = LABELS.get(label) or encodings.codec_of_text(label)
    return None if codec is None or encodings.is_wide(codec) else WIDER.get(codec, codec)
