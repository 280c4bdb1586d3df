"""What is wrong with a corpus: duplicates, leaks of val into train, faults of encoding, too few tokens.

    facts = examine({"train": documents, "val": documents}, tokenizer)

Documents are a stream of Chunks, read once. Memory holds hashes of them (see near_duplicates.py), never the corpus."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Collection, Iterable, Mapping

import numpy as np

from finetune.common import files
from finetune.data.dataset import Dataset
from finetune.data.documents import Chunk, documents_of_bin
from finetune.data.tokenizer import Tokenizer
from finetune.tools.doctor import near_duplicates
from finetune.tools.doctor.encoding_faults import repair
from finetune.tools.doctor.near_duplicates import NearDuplicates, Passages, Shared

Splits = Mapping[str, Iterable[Chunk]]  # the documents of "train" and perhaps "val"

BLOCK_SIZE = 1024  # GPT-2's positions
MIN_TOKENS = 100_000  # fewer may overfit (docs/quickstart.md)
# train tokens up to which docs/quickstart.md recommends a model, and the recipe for it
SIZES = [
    (1_000_000, "GPT-2 small (124M)", "recipes/small.yaml"),
    (10_000_000, "GPT-2 medium (355M)", "recipes/medium.yaml"),
    (float("inf"), "GPT-2 large (774M)", "recipes/large.yaml"),
]
FOR_CHARACTERS = "a small GPT from scratch, as pretrained ones have no characters", "recipes/shakespeare_char.yaml"
BYTES_PER_TOKEN = 4  # of English in GPT-2's BPE, roughly
LONG = 1_000_000  # words; longer documents are compared by their digest alone
MAX_EXAMPLES, EXCERPT = 3, 60
# kind: its name in the report, and the --fix for it
KINDS = {
    "empty": ("documents without a word", "dedup"),
    "exact_duplicates": ("documents that repeat an earlier one", "dedup"),
    "near_duplicates": ("documents that nearly repeat an earlier one", "dedup"),
    "leaks": ("documents of train that val has too, or nearly", "leaks"),
    "passages": (f"passages of {near_duplicates.PASSAGE} words and more of val in train", None),
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
    characters."""
    sizes, limits = {}, []
    with DuplicateFinder(FIXES, max_documents) as duplicates:
        examiner = _Examiner(tokenizer, duplicates)
        for split in val_first(splits):
            sizes[split] = examiner.examine_split(split, splits[split])
            if split in duplicates.seen and duplicates.seen[split].skipped:
                limits.append(f"near duplicates among the first {max_documents:,} documents of {split}")
    if examiner.passages.skipped:
        limits.append(f"passages of the first {near_duplicates.MAX_PASSAGE_WORDS:,} words of val")
    passages = examiner.findings["passages"]
    passages["count"], passages["words"] = examiner.passages.count()
    return {
        "splits": sizes,
        "findings": examiner.findings,
        "limits": limits,
        "one_text": all(size["documents"] <= 1 for size in sizes.values()),
        "size": _recommend(sizes["train"], tokenizer),
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
        lengths, totals, document = array("Q"), Counter(), Document()
        for chunk in documents:
            place = {"split": split, "document": len(lengths) + 1}
            text, faults = repair(chunk.text)
            for kind, (count, line) in faults.items():
                self._note(kind, count, place, line)
            is_first, hashes = document.is_new, document.add(text)
            if split == "val":
                self.passages.add(hashes, is_first)
            else:
                document.find_passages(self.passages, hashes, text)
            tokens = chunk.tokens
            if tokens is None and self.tokenizer:
                tokens = len(self.tokenizer.encode(chunk.text))
            document.length += len(chunk.text) if tokens is None else tokens
            totals["characters"] += len(chunk.text)
            totals["bytes"] += len(_utf8(chunk.text))
            totals["tokens"] += tokens or 0
            totals["uncounted"] += tokens is None
            if chunk.is_last:
                self._compare(document, place, text)
                lengths.append(document.length)
                document = Document()
        return _size(np.frombuffer(lengths, np.uint64).astype(np.int64), totals)

    def _compare(self, document: Document, place: dict, text: str) -> None:
        """Note what a complete document shares with others; `text` is its last chunk."""
        if found := self.duplicates.find(place["split"], place["document"], document):
            self._note(found.pop("kind"), 1, place | found, text)
            return
        for passage, excerpt in document.passages:
            self._note("passages", 0, place | {"like": f"val {passage.document}"}, excerpt)
            self.passages.mark(passage)

    def _note(self, kind: str, count: int, place: dict, text: str) -> None:
        finding = self.findings[kind]
        finding["count"] += count
        if len(finding["examples"]) < MAX_EXAMPLES:
            excerpt = " ".join(text[: 4 * EXCERPT].split())
            excerpt = excerpt if len(excerpt) <= EXCERPT else excerpt[: EXCERPT - 1] + "…"
            finding["examples"].append(place | {"text": excerpt})


class Document:
    """What is kept of a document while its chunks are read."""

    def __init__(self) -> None:
        self.digest = hashlib.blake2b(digest_size=16)
        self.hashes: list[np.ndarray] = []  # of its words, unless it is LONG
        self.words, self.is_new = 0, True
        self.length = 0
        self.tail = np.zeros(0, np.uint32)  # hashes of the last words, where a passage may have begun
        self.passages: list[tuple[Shared, str]] = []

    def add(self, text: str) -> np.ndarray:
        """Take in a chunk; return the hashes of its words."""
        self.digest.update(_utf8(text))
        hashes = near_duplicates.word_hashes(text)
        self.words, self.is_new = self.words + len(hashes), False
        self.hashes = [*self.hashes, hashes] if self.words <= LONG else []
        return hashes

    def find_passages(self, passages: Passages, hashes: np.ndarray, text: str) -> None:
        """Note the passages that a chunk shares, also those that began in the chunk before."""
        hashes = np.concatenate([self.tail, hashes])
        for passage in passages.find(hashes):
            start = max(0, passage.there - len(self.tail))
            self.passages.append((passage, " ".join(near_duplicates.split_words(text)[start : start + 12])))
        self.tail = hashes[1 - near_duplicates.PASSAGE :]


class DuplicateFinder:
    """Compares each document with those before it. A document that repeats one is not compared with later ones."""

    def __init__(self, fixes: Collection[str], max_documents: int = near_duplicates.MAX_DOCUMENTS) -> None:
        self.fixes, self.max_documents = fixes, max_documents
        self.seen: dict[str, NearDuplicates] = {}  # by split

    def find(self, split: str, number: int, document: Document) -> dict | None:
        """What is wrong with a document, {"kind", "like": "val 3"}, among the kinds that `fixes` remove; else None."""
        if split not in self.seen:
            self.seen[split] = NearDuplicates(self.max_documents)
        if not document.words:
            return {"kind": "empty"} if "dedup" in self.fixes else None
        sketch = near_duplicates.make_sketch(document.digest.digest(), document.hashes)
        is_compared_with_val = "leaks" in self.fixes and split == "train" and "val" in self.seen
        if is_compared_with_val and (same := self.seen["val"].find(sketch)):
            return {"kind": "leaks", "like": f"val {same[1]}"}
        if "dedup" in self.fixes and (same := self.seen[split].find(sketch)):
            return {"kind": f"{same[0]}_duplicates", "like": f"{split} {same[1]}"}
        self.seen[split].add(sketch, number)
        return None

    def __enter__(self) -> DuplicateFinder:
        return self

    def __exit__(self, *_: object) -> None:
        for seen in self.seen.values():
            seen.file.close()


def val_first(splits: Splits) -> list[str]:
    """val before train: documents of both are removed from train, because a run on a smaller val could not be compared
    with earlier runs."""
    return sorted(splits, key=["val", "train"].index)


def _size(lengths: np.ndarray, totals: Counter[str]) -> dict:
    """The size of a split: totals, quantiles of document lengths, and what a cut at BLOCK_SIZE would lose."""
    tokens = None if totals["uncounted"] else totals["tokens"]
    quantiles = [0] * 4
    if len(lengths):
        quantiles = np.quantile(lengths, [0.5, 0.9, 0.99, 1], method="inverted_cdf").tolist()
    unit = "characters" if tokens is None else "tokens"
    size: dict = {
        "documents": len(lengths),
        "characters": totals["characters"],
        "bytes": totals["bytes"],
        "tokens": tokens,
        "lengths": {"unit": unit, **dict(zip(("p50", "p90", "p99", "max"), quantiles))},
    }
    if tokens is not None:
        lost = np.maximum(lengths - BLOCK_SIZE, 0)
        size["tokens_per_byte"] = tokens / max(1, totals["bytes"])
        size["truncation"] = {
            "at": BLOCK_SIZE,
            "documents": int((lost > 0).sum()) / max(1, len(lost)),
            "tokens": int(lost.sum()) / max(1, tokens),
        }
    return size


def _recommend(train: dict, tokenizer: Tokenizer | None) -> dict:
    """The model and recipe for so many tokens; without a tokenizer their number is estimated from the bytes."""
    is_estimated = train["tokens"] is None
    tokens = train["bytes"] // BYTES_PER_TOKEN if is_estimated else train["tokens"]
    model, recipe = next((model, recipe) for limit, model, recipe in SIZES if tokens < limit)
    if tokenizer and tokenizer.kind == "char":
        model, recipe = FOR_CHARACTERS
    size = {"tokens": tokens, "estimated": is_estimated, "may_overfit": tokens < MIN_TOKENS}
    return {**size, "model": model, "recipe": recipe}


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
