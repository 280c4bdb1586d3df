"""The corpus without the faults that the doctor can fix."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from finetune.common.errors import UsageError
from finetune.common.files import temporary_directory
from finetune.tools.doctor.batches import Analysis, Batch, LongDocument, analysed
from finetune.tools.doctor.duplicates import DuplicateFinder, Verdict
from finetune.tools.doctor.quality import KINDS, Splits, val_first


class Cleaned(NamedTuple):
    """A document after cleaning."""

    split: str
    number: int  # from 1
    text: str
    faults: dict[str, int]  # kind: lines fixed in it
    removed: dict | None  # why it is removed: {"kind", "like"}


def clean(splits: Splits, fixes: Collection[str]) -> Iterator[Cleaned]:
    """Yield every document, those of val first. `fixes` are some of FIXES:

    dedup removes documents that are empty or repeat an earlier one of their split, exactly or nearly; leaks removes
    documents from train that val has; encoding does what `repair` can. Documents are compared as they are after the
    repair, also without encoding."""
    with DuplicateFinder(fixes) as duplicates:
        for split in val_first(splits):
            number, document, parts = 1, LongDocument(), []
            for batch in analysed(splits[split], Analysis()):
                if not batch.is_part:
                    assert batch.sketches
                    verdicts = duplicates.find(split, number, batch.sketches, np.diff(batch.word_ends))
                    for i, verdict in enumerate(verdicts):
                        yield _cleaned(split, number + i, [(batch, batch.document(i))], verdict, fixes)
                    number += len(verdicts)
                    continue
                document.add(batch)
                parts.append((batch, slice(None)))
                if document.is_complete:
                    verdicts = duplicates.find(split, number, document.sketches(), np.array([document.words]))
                    yield _cleaned(split, number, parts, verdicts[0], fixes)
                    number, document, parts = number + 1, LongDocument(), []


def _cleaned(
    split: str, number: int, parts: list[tuple[Batch, slice]], removed: Verdict, fixes: Collection[str]
) -> Cleaned:
    faults, texts = Counter(), []
    for batch, chunks in parts:
        if "encoding" not in fixes:
            texts += [chunk.text for chunk in batch.chunks[chunks]]
            continue
        texts += batch.texts[chunks]
        for i, found in batch.faults.items():
            if i in range(*chunks.indices(len(batch.chunks))):
                faults.update({kind: count for kind, (count, _) in found.items() if KINDS[kind][1] == "encoding"})
    return Cleaned(split, number, "".join(texts), dict(faults), removed)


def output_files(out_dir: str, splits: Collection[str]) -> dict[str, Path]:
    """The files to write: one for the cleaned documents of each split, "removed" for the others. Raises UsageError if
    one exists."""
    names = {split: f"{split}.jsonl" for split in splits} if "val" in splits else {"train": "clean.jsonl"}
    files = {split: Path(out_dir) / name for split, name in {**names, "removed": "removed.jsonl"}.items()}
    for path in files.values():
        if path.exists():
            raise UsageError(f"{path}: is there already; name another --out_dir")
    return files


def write_cleaned(documents: Iterable[Cleaned], outputs: dict[str, Path]) -> str:
    """Write cleaned documents, all files or none; return a summary."""
    written, changed = Counter(dict.fromkeys(outputs, 0)), Counter()
    with temporary_directory(outputs["removed"].parent) as work:
        with contextlib.ExitStack() as stack:
            files = {}
            for name, path in outputs.items():
                # half a surrogate pair is not UTF-8; backslashreplace makes it an escape of JSON
                file = open(work / path.name, "w", encoding="utf-8", errors="backslashreplace")
                files[name] = stack.enter_context(file)
            for document in documents:
                name, row = document.split, {}
                if document.removed:
                    name, row = "removed", {"split": document.split, "document": document.number, **document.removed}
                    changed[document.split, document.removed["kind"]] += 1
                else:
                    changed.update({(document.split, kind): lines for kind, lines in document.faults.items()})
                files[name].write(json.dumps({**row, "text": document.text}, ensure_ascii=False) + "\n")
                written[name] += 1
        if not written["removed"]:
            del written["removed"]
        for name in written:
            (work / outputs[name].name).rename(outputs[name])
    lines = []
    for (split, kind), count in changed.items():
        verb = "fixed" if KINDS[kind][1] == "encoding" else "removed"
        lines.append(f"{verb:7} {count:>8,} {KINDS[kind][0]} ({split})")
    lines = lines or ["nothing to fix"]
    for name, count in written.items():
        lines.append(f"{'wrote':7} {count:>8,} documents to {outputs[name]}")
    return "\n".join(lines)
