"""The corpus without the faults that the doctor can fix."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from finetune.common.errors import UsageError
from finetune.data.documents import Chunk
from finetune.tools.doctor.batches import Analysis, Batch, LongDocument, analysed
from finetune.tools.doctor.duplicates import DuplicateFinder, Verdict
from finetune.tools.doctor.quality import KINDS, Splits, val_first
from finetune.tools.doctor.rows import Recorder, Row, row_of_chunks, row_of_conversation


class Cleaned(NamedTuple):
    """A document after cleaning."""

    split: str
    number: int  # from 1
    row: Row  # {"text"} or {"messages"}
    faults: dict[str, int]  # kind: lines fixed in it
    removed: dict | None  # why it is removed: {"kind", "like"}

    @property
    def text(self) -> str:
        return self.row["text"]


def clean(splits: Splits, fixes: Collection[str], recorders: Mapping[str, Recorder] | None = None) -> Iterator[Cleaned]:
    """Yield every document, those of val first. `fixes` are some of FIXES:

    dedup removes documents that are empty or repeat an earlier one of their split, exactly or nearly; leaks removes
    documents from train that val has; encoding does what `repair` can. Documents are compared as they are after the
    repair, also without encoding. `recorders` hold the conversations of rows, by split. Raises UsageError."""
    with DuplicateFinder(fixes) as duplicates:
        for split in val_first(splits):
            recorder = recorders.get(split) if recorders else None
            yield from _Cleaner(split, fixes, recorder, duplicates).documents(splits[split])


@dataclass
class _Cleaner:
    """Cleans a split."""

    split: str
    fixes: Collection[str]
    recorder: Recorder | None
    duplicates: DuplicateFinder
    number: int = 1  # of the next document

    def documents(self, chunks: Iterable[Chunk]) -> Iterator[Cleaned]:
        document, parts = LongDocument(), []
        for batch in analysed(chunks, Analysis()):
            if not batch.is_part:
                assert batch.sketches
                verdicts = self.duplicates.find(self.split, self.number, batch.sketches, np.diff(batch.word_ends))
                for i, verdict in enumerate(verdicts):
                    yield self._cleaned([(batch, batch.document(i))], verdict)
                continue
            document.add(batch)
            parts.append((batch, slice(0, len(batch.chunks))))
            if document.is_complete:
                sketches, words = document.sketches(), np.array([document.words])
                yield self._cleaned(parts, self.duplicates.find(self.split, self.number, sketches, words)[0])
                document, parts = LongDocument(), []

    def _cleaned(self, parts: list[tuple[Batch, slice]], removed: Verdict) -> Cleaned:
        faults, chunks = Counter(), []
        for batch, place in parts:
            for i in range(place.start, place.stop):
                chunk = batch.chunks[i]
                if "encoding" in self.fixes and i in batch.faults:
                    chunk = chunk._replace(text=batch.texts[i])
                    found = {kind: count for kind, (count, _) in batch.faults[i].items()}
                    faults.update({kind: found[kind] for kind in found if KINDS[kind][1] == "encoding"})
                chunks.append(chunk)
        row, number = self._row(chunks, bool(faults)), self.number
        self.number += 1
        return Cleaned(self.split, number, row, dict(faults), removed)

    def _row(self, chunks: list[Chunk], repairs: bool) -> Row:
        if chunks[0].spans is not None and self.recorder:
            return row_of_conversation(self.recorder.conversations.popleft(), repairs)
        try:
            return row_of_chunks(chunks)
        except ValueError as error:
            problem = f"{self.split} document {self.number:,}: {error}, so it cannot be a row again"
            raise UsageError(f"{problem}; name the sources of the data instead") from None
