"""Texts of documents with a layout, such as .docx and .pdf, through markitdown."""

from __future__ import annotations

import importlib.util
import logging
import re
from pathlib import Path

from finetune.common.errors import UsageError
from finetune.common.formatting import unify_newlines
from finetune.data.file_kinds import DOCUMENT_SUFFIXES, EXTRA, HEAD_BYTES, check, check_binary

OTHERS = (".doc", ".odt", ".rtf")  # not known to markitdown
# what markitdown adds: the number of a slide, and the name of a picture behind its description
ADDED = re.compile(r"<!-- Slide number: \d+ -->\n?|!\[([^\]]*)\]\([^)]*\)")
STARTS = {".docx": b"PK", ".pptx": b"PK", ".epub": b"PK", ".pdf": b"%PDF-"}


def is_document(path: Path) -> bool:
    """Whether its suffix is that of a document with a layout."""
    return path.suffix.lower() in (*DOCUMENT_SUFFIXES, *OTHERS)


def is_installed() -> bool:
    """Whether such documents can be read here."""
    return importlib.util.find_spec("markitdown") is not None


def to_text(path: Path) -> str:
    """The text of a document as Markdown. Raises UsageError if there is none, or if markitdown is missing."""
    kind = path.suffix.lower()
    with open(path, "rb") as file:
        head = file.read(HEAD_BYTES)
    if kind in OTHERS:
        check(str(path), head)
        raise UsageError(f"{path}: {kind} is not read; save it as .docx or as plain text")
    if not head.lstrip().startswith(STARTS.get(kind, b"")):  # markitdown would take it for text
        check_binary(path, str(path))
        raise UsageError(f"{path}: is no {kind} file")
    try:
        from markitdown import MarkItDown  # pyrefly: ignore[missing-import]
    except ImportError:
        raise UsageError(f"{path}: reading {kind} needs {EXTRA}; or save it as plain text") from None
    logging.getLogger("pdfminer").setLevel(logging.ERROR)  # it warns of fonts
    try:
        text: str = MarkItDown(enable_plugins=False).convert_local(path).markdown
    except Exception as error:  # each format has its own library
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UsageError(f"{path}: cannot be converted to text: {lines[-1].strip(' -')}") from None
    text = ADDED.sub(lambda match: match[1] or "", unify_newlines(text))
    if not text.strip():
        raise UsageError(f"{path}: has no text in it; scanned pages need OCR first, for example ocrmypdf")
    return text
