"""What is wrong with a corpus: duplicates, leaks of val into train, faults of encoding, too few tokens.

    facts = examine({"train": documents, "val": documents}, tokenizer)

Documents are a stream of Chunks, read once. Memory holds hashes of them (see near_duplicates.py), never the corpus."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from finetune.common import files
from finetune.data.dataset import Dataset
from finetune.data.documents import Chunk
from finetune.data.tokenizer import Tokenizer
from finetune.tools.doctor import near_duplicates
from finetune.tools.doctor.batches import Analysis, Batch, LongDocument, analysed
from finetune.tools.doctor.bin_reader import documents_of_bin
from finetune.tools.doctor.duplicates import DuplicateFinder, Verdict
from finetune.tools.doctor.passages import MAX_PASSAGE_WORDS, PASSAGE, Passages, Shared
from finetune.tools.doctor.sample import Sampler, sample_documents
from finetune.tools.doctor.size import Size, recommend

Splits = Mapping[str, Iterable[Chunk]]  # the documents of "train" and perhaps "val"

COUNTED = 50_000_000  # characters of a split whose tokens are counted, not estimated
MAX_EXAMPLES, EXCERPT = 3, 60
# kind: its name in the report, and the --fix for it
KINDS = {
    "empty": ("documents without a word", "dedup"),
    "exact_duplicates": ("documents that repeat an earlier one", "dedup"),
    "near_duplicates": ("documents that nearly repeat an earlier one", "dedup"),
    "leaks": ("documents of train that val has too, or nearly", "leaks"),
    "passages": (f"passages of {PASSAGE} words and more of val in train", None),
    "mojibake": ("lines of UTF-8 read as something else, like Ã©", "encoding"),
    "nul": ("lines with NUL characters", "encoding"),
    "control": ("lines with other control characters", "encoding"),
    "bom": ("lines with a byte order mark", "encoding"),
    "crlf": ("lines that end in CR or CR LF", "encoding"),
    "lost": ("lines with U+FFFD, where characters were lost", None),
}
FIXES = ("dedup", "leaks", "encoding")


def examine(
    splits: Splits, tokenizer: Tokenizer | None = None, max_documents: int = near_duplicates.MAX_DOCUMENTS
) -> dict:
    """The facts about a corpus, for JSON: the size of each split, and count and examples of each kind of fault.

    Documents are numbered from 1. Lengths are in tokens if there is a `tokenizer` or the Chunks have `tokens`, else in
    characters. The tokens of a large corpus are estimated from a part of it."""
    sizes, limits, sampler = {}, [], Sampler()
    with DuplicateFinder(FIXES, max_documents) as duplicates:
        examiner = _Examiner(tokenizer, duplicates)
        for split in val_first(splits):
            documents = sampler.pass_on(splits[split]) if split == "train" else splits[split]
            sizes[split] = examiner.examine_split(split, documents)
            if split in duplicates.seen and duplicates.seen[split].skipped:
                limits.append(f"near duplicates among the first {max_documents:,} documents of {split}")
    if examiner.passages.skipped:
        limits.append(f"passages of the first {MAX_PASSAGE_WORDS:,} words of val")
    passages = examiner.findings["passages"]
    passages["count"], passages["words"] = examiner.passages.count()
    one_text = all(size["documents"] <= 1 for size in sizes.values())
    eot = tokenizer.eot_text if tokenizer and not one_text else None
    return {
        "splits": sizes,
        "findings": examiner.findings,
        "limits": limits,
        "one_text": one_text,
        "sample": sample_documents(sampler.kept, eot),
        "size": recommend(sizes["train"], tokenizer),
    }


def examine_dataset(dataset: Dataset) -> dict:
    """The facts about a prepared directory, which are also added to its meta.json."""
    assert dataset.tokenizer
    splits = {split: documents_of_bin(dataset, split, dataset.tokenizer) for split in ("train", "val")}
    facts = dataset.meta["doctor"] = examine(splits, dataset.tokenizer)
    with files.replacing(dataset.directory / "meta.json") as path:
        files.write_json(path, dataset.meta, ensure_ascii=False)
    return {**facts, "names": [str(dataset.directory)]}


class _Examiner:
    """Collects the findings, split by split."""

    def __init__(self, tokenizer: Tokenizer | None, duplicates: DuplicateFinder) -> None:
        self.tokenizer, self.duplicates, self.passages = tokenizer, duplicates, Passages()
        self.findings: dict[str, dict] = {kind: {"count": 0, "examples": []} for kind in KINDS}

    def examine_split(self, split: str, documents: Iterable[Chunk]) -> dict:
        """Note what is wrong with a split and return its size."""
        size, document, is_val = Size(self.tokenizer is not None), LongDocument(), split == "val"
        if not is_val:
            _ = self.passages.windows  # made before the threads use it
        for batch in analysed(documents, Analysis(self.tokenizer, COUNTED, None if is_val else self.passages)):
            first = size.documents + 1
            self._note_faults(batch, split, first)
            if is_val:
                whole = batch.word_ends[:-1]
                self.passages.add(batch.hashes, np.zeros(int(not document.words), np.int64) if batch.is_part else whole)
            if not batch.is_part:
                self._compare(split, first, batch)
            else:
                document.add(batch)
                if not is_val:
                    document.find_passages(self.passages, batch)
                if document.is_complete:
                    self._compare_long(split, first, document)
                    document = LongDocument()
            size.add(batch)
        return size.facts()

    def _note_faults(self, batch: Batch, split: str, first: int) -> None:
        for i, faults in batch.faults.items():
            number = first if batch.is_part else first + int(np.searchsorted(batch.chunk_ends, i, side="right")) - 1
            for kind, (count, line) in faults.items():
                self._note(kind, count, {"split": split, "document": number}, line)

    def _compare(self, split: str, first: int, batch: Batch) -> None:
        """Note what whole documents share with others."""
        assert batch.sketches
        verdicts = self.duplicates.find(split, first, batch.sketches, np.diff(batch.word_ends))
        may_share = set(batch.may_share.tolist())
        for i, verdict in enumerate(verdicts):
            if verdict is None and i not in may_share:
                continue
            texts, passages = batch.texts[batch.document(i)], []
            if verdict is None:
                for passage in self.passages.find(batch.hashes[batch.word_ends[i] : batch.word_ends[i + 1]]):
                    passages.append((passage, self.passages.excerpt(texts, passage.there)))
            self._note_shared(split, first + i, verdict, texts[0], passages)

    def _compare_long(self, split: str, number: int, document: LongDocument) -> None:
        verdicts = self.duplicates.find(split, number, document.sketches(), np.array([document.words]))
        self._note_shared(split, number, verdicts[0], document.text, document.passages)

    def _note_shared(
        self, split: str, number: int, verdict: Verdict, text: str, passages: list[tuple[Shared, str]]
    ) -> None:
        place = {"split": split, "document": number}
        if verdict:
            self._note(verdict.pop("kind"), 1, place | verdict, text)
            return
        for passage, excerpt in passages:
            self._note("passages", 0, place | {"like": f"val {passage.document}"}, excerpt)
            self.passages.mark(passage)

    def _note(self, kind: str, count: int, place: dict, text: str) -> None:
        finding = self.findings[kind]
        finding["count"] += count
        if len(finding["examples"]) < MAX_EXAMPLES:
            excerpt = " ".join(text[: 4 * EXCERPT].split())
            excerpt = excerpt if len(excerpt) <= EXCERPT else excerpt[: EXCERPT - 1] + "…"
            finding["examples"].append(place | {"text": excerpt})


def val_first(splits: Splits) -> list[str]:
    """val before train: documents of both are removed from train, because a run on a smaller val could not be compared
    with earlier runs."""
    return sorted(splits, key=["val", "train"].index)
