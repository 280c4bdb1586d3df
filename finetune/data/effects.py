"""Which options of reading have an effect on some files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from finetune.common.errors import UsageError
from finetune.data.file_kinds import DOCUMENT_SUFFIXES, PAGE_SUFFIXES
from finetune.data.tables import TABLES, ReadOptions
from finetune.data.text_files import suffix_of

WHOLE = ("auto", "file")  # values of --documents: a text file is a document
CSV = {suffix for suffix, kind in TABLES.items() if kind == "csv"}
ARROW = {suffix for suffix, kind in TABLES.items() if kind == "arrow"}
FIXED = {*ARROW, *DOCUMENT_SUFFIXES} - {*PAGE_SUFFIXES}  # whose format says the encoding


def check(options: ReadOptions, names: list[str], files: Iterable[Path], has_hub: bool, has_content: bool) -> None:
    """Raise UsageError for an option that has no effect on any of some sources: files, datasets of the Hub, texts."""
    suffixes = {*map(suffix_of, files)}
    has_table = has_hub or any(suffix in TABLES for suffix in suffixes)
    has_text = has_content or any(suffix not in TABLES for suffix in suffixes)
    named = [f"{kind}_column" for kind in options.columns()] + ["prompt_template"] * bool(options.prompt_template)
    checks = [
        (bool(named), has_table, ", ".join(named), "table"),
        (options.separator is not None, bool(suffixes & CSV), "separator", "csv file"),
        (options.header != "auto", bool(suffixes & CSV), "header", "csv file"),
        (options.documents not in WHOLE, has_text, "documents", "text file"),
        (options.on_bad_row != "error", has_table, "on_bad_row", "table"),
        (options.encoding is not None, bool(suffixes - FIXED), "encoding", "text, json, csv or html file"),
    ]
    for is_given, has_effect, name, what in checks:
        if is_given and not has_effect:
            raise UsageError(f"{name}: has no effect, because there is no {what} in {', '.join(names)}")
