"""The files of a cleaned corpus: one for each split and kind of row, and one for what was removed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import TextIO

from finetune.common.errors import UsageError
from finetune.common.files import temporary_directory
from finetune.tools.doctor.cleaning import Cleaned
from finetune.tools.doctor.corpus import Corpus
from finetune.tools.doctor.quality import KINDS
from finetune.tools.doctor.rows import Row, as_pair

REMOVED = "removed"


def output_files(out_dir: str, splits: Collection[str]) -> dict[str, Path]:
    """The files to write: one for the cleaned documents of each split, "removed" for the others. Raises UsageError if
    one exists."""
    names = {split: f"{split}.jsonl" for split in splits} if "val" in splits else {"train": "clean.jsonl"}
    files = {split: Path(out_dir) / name for split, name in {**names, REMOVED: "removed.jsonl"}.items()}
    for path in [kept for file in files.values() for kept in (file, *map(file.with_stem, _stems(file)))]:
        if path.exists():
            raise UsageError(f"{path}: is there already; name another --out_dir")
    return files


def _stems(file: Path) -> tuple[str, str]:
    """The names of the files of a split that has texts and conversations, because one file holds rows of one kind."""
    return f"{file.stem}-text", f"{file.stem}-messages"


def write_cleaned(documents: Iterable[Cleaned], outputs: dict[str, Path], corpus: Corpus | None = None) -> str:
    """Write cleaned documents, all files or none; return a summary. Rows of messages in `corpus` stay messages."""
    changed: Counter[tuple[str, str]] = Counter()
    with temporary_directory(outputs[REMOVED].parent) as work:
        splits = {name: _Split(work, name, corpus) for name in outputs}
        try:
            for document in documents:
                if document.removed:
                    why = {"split": document.split, "document": document.number, **document.removed}
                    splits[REMOVED].write_removed({**why, **document.row})
                    changed[document.split, document.removed["kind"]] += 1
                else:
                    splits[document.split].write(document.row)
                    changed.update({(document.split, kind): lines for kind, lines in document.faults.items()})
        finally:
            for split in splits.values():
                split.close()
        written = [made for name, split in splits.items() for made in split.publish(outputs[name], name != REMOVED)]
    lines = []
    for (split, kind), count in changed.items():
        verb = "fixed" if KINDS[kind][1] == "encoding" else "removed"
        lines.append(f"{verb:7} {count:>8,} {KINDS[kind][0]} ({split})")
    lines = lines or ["nothing to fix"]
    lines += [f"{'wrote':7} {count:>8,} documents to {path}" for path, count in written]
    return "\n".join(lines)


class _Split:
    """The rows of a split: texts in one file, conversations in another, as prompts and completions as long as these
    can hold them, then as messages."""

    def __init__(self, work: Path, name: str, corpus: Corpus | None) -> None:
        self.work, self.name, self.corpus = work, name, corpus
        self.files: dict[str, TextIO] = {}
        self.counts: Counter[str] = Counter()
        self.are_pairs = True

    def write(self, row: Row) -> None:
        kind = "text" if "text" in row else "messages"
        if kind == "messages" and self.are_pairs:
            has_messages = self.corpus is not None and self.corpus.has_messages(self.name)
            pair = None if has_messages else as_pair(row)
            if pair is None:
                self._end_pairs()
            row = pair or row
        self._write(kind, row)

    def write_removed(self, row: Row) -> None:
        self._write("text", row)

    def _write(self, kind: str, row: Row) -> None:
        if kind not in self.files:
            self.files[kind] = _open(self._path(kind))
        self.files[kind].write(_line(row))
        self.counts[kind] += 1

    def _end_pairs(self) -> None:
        """Rewrite the rows so far as messages."""
        self.are_pairs = False
        if "messages" not in self.files:
            return
        self.files["messages"].close()
        path, rewritten = self._path("messages"), self.work / "rewritten.jsonl"
        self.files["messages"] = _open(rewritten)
        for pair in _rows(path):
            contents = zip(("user", "assistant"), (pair["prompt"], pair["completion"]))
            row = {"messages": [{"role": role, "content": content} for role, content in contents]}
            self.files["messages"].write(_line(row))
        rewritten.rename(path)

    def close(self) -> None:
        for file in self.files.values():
            file.close()

    def publish(self, path: Path, even_empty: bool) -> Iterator[tuple[Path, int]]:
        """Move the files to where they belong; yield each with its number of documents."""
        if not self.files and even_empty:
            self.files["text"] = _open(self._path("text"))
            self.close()
        for kind, name in zip(("text", "messages"), _stems(path)):
            if kind in self.files:
                final = path if len(self.files) == 1 else path.with_stem(name)
                self._path(kind).rename(final)
                yield final, self.counts[kind]

    def _path(self, kind: str) -> Path:
        return self.work / f"{self.name}-{kind}.jsonl"


def _open(path: Path) -> TextIO:
    # half a surrogate pair is not UTF-8; backslashreplace makes it an escape of JSON
    return open(path, "a", encoding="utf-8", errors="backslashreplace")


def _rows(path: Path) -> Iterator[Row]:
    with open(path, encoding="utf-8") as file:
        yield from map(json.loads, file)


def _line(row: Row) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"
