"""An earlier split, kept for new data: its validation documents stay in val, its training documents in train."""

from __future__ import annotations

import hashlib
import sys
from array import array
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from finetune.common.errors import UsageError
from finetune.data.base_tokenizer import without_surrogates
from finetune.data.dataset import Dataset, load
from finetune.data.documents import Chunk, cut, documents_of_bin
from finetune.data.encode import encode_chunks
from finetune.data.hf_tokenizer import HFTokenizer
from finetune.data.sources import Source
from finetune.data.split import documents_with_text
from finetune.data.tokenizer import Tokenizer

UNEVEN = 1.3  # a share of tokens that differs so much from that of the documents is said
DIGEST_BYTES = 8  # of a document; among 10 million documents the chance that two are equal is 3 in a million

Facts = dict[str, dict[str, str | int]]  # the entry of meta.json, if there is one


def keep_split(
    directory: str | Path | None, texts: dict[str, list[Source]], val_fraction: float, seed: int
) -> tuple[set[int] | None, Facts]:
    """`(numbers of the documents that go to val, facts)`: the documents of texts["train"] stay where they are in a
    prepared `directory`; the new ones are split by `val_fraction`, equal ones alike. `(None, {})` without a directory.
    Raises UsageError."""
    if directory is None:
        return None, {}
    if texts["val"]:
        raise _refused("cannot go with a validation source, which decides what val holds")
    for source in texts["train"]:
        if source.is_one_text:
            raise _refused(f"{source.name} is one running text, and only whole documents can stay in their split")
    kept, tokenizer = _load(directory)
    chunks = documents_with_text(texts["train"])
    if isinstance(tokenizer, HFTokenizer):
        train, val = (_hash_documents_of_bin(kept, split) for split in ("train", "val"))
        found = _hash_ids(chunks, tokenizer, kept.eot)
    else:
        eot_text = tokenizer.eot_text or ""
        train, val = (hash_documents(documents_of_bin(kept, split, tokenizer), eot_text) for split in ("train", "val"))
        found = hash_documents(chunks, eot_text)
    in_val = np.isin(found, val)
    in_train = np.isin(found, train) & ~in_val
    is_new = ~in_val & ~in_train
    if is_new.all():
        problem = f"none of the {len(found):,} documents is in {directory}; were they prepared with other columns"
        raise _refused(f"{problem} or another template? If the data are different ones, leave keep_split out")
    new, first = np.unique(found[is_new], return_index=True)
    new = new[np.argsort(first)]  # in the order of the source
    chosen = np.random.default_rng(seed).choice(new, round(len(new) * val_fraction), replace=False)
    goes_to_val = in_val | np.isin(found, chosen)
    for split, is_empty in (("val", not goes_to_val.any()), ("train", goes_to_val.all())):
        if is_empty:
            raise _refused(f"{split}.bin would be empty: no document of {directory}/{split}.bin is in the new data")
    facts: dict[str, str | int] = {
        "directory": str(directory),
        "val": int(in_val.sum()),
        "train": int(in_train.sum()),
        "new": int(is_new.sum()),
        "missing": int((~np.isin(np.unique(val), found)).sum()),
    }
    return set(np.flatnonzero(goes_to_val).tolist()), {"keep_split": facts}


def hash_documents(chunks: Iterable[Chunk], eot_text: str) -> np.ndarray:
    """A hash of the text of each document, uint64 (documents,). End-of-texts, which a bin has and a source has not, do
    not count."""
    hashes, digest, rest = array("Q"), hashlib.blake2b(digest_size=DIGEST_BYTES), ""
    for chunk in chunks:
        *parts, rest = (rest + chunk.text).split(eot_text) if eot_text else [chunk.text]
        # the end of a chunk can be the beginning of an end-of-text
        end = len(rest) if chunk.is_last else max(0, len(rest) - len(eot_text) + 1)
        digest.update(without_surrogates("".join([*parts, rest[:end]])).encode())
        rest = rest[end:] if eot_text else ""
        if chunk.is_last:
            hashes.append(int.from_bytes(digest.digest(), "little"))
            digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    return np.array(hashes, np.uint64)


def describe_split(meta: dict[str, Any]) -> list[str]:
    """What is to be said of the split in a meta.json, a line each."""
    lines = []
    if meta.get("split_by") == "characters":
        lines.append("too few documents to keep some whole for validation: the last characters of them all are val")
    if meta.get("split_by") == "documents":
        documents, tokens = (_share_of_val(meta["splits"], unit) for unit in ("documents", "tokens"))
        if max(documents, tokens) >= UNEVEN * min(documents, tokens):
            lines.append(f"val is {documents:.1%} of the documents and {tokens:.1%} of the tokens")
    if kept := meta.get("keep_split"):
        line = f"split kept from {kept['directory']}: {kept['val']:,} documents stay in val, {kept['train']:,} in train"
        lines.append(f"{line}; {kept['new']:,} are new")
        if kept["missing"]:
            lines.append(
                f"{kept['missing']:,} validation documents of {kept['directory']} are not in the data any more"
            )
    return lines


def _share_of_val(splits: dict[str, dict[str, int]], unit: str) -> float:
    return splits["val"][unit] / sum(split[unit] for split in splits.values())


def _load(directory: str | Path) -> tuple[Dataset, Tokenizer]:
    """The Dataset whose split is kept, and its tokenizer. Raises UsageError if it was not split by documents."""
    kept = load(directory)
    split_by = kept.meta.get("split_by")
    if split_by is None and any(kept.is_running_text(split) for split in ("train", "val")):
        split_by = "text"
    if split_by in ("text", "characters"):
        raise _refused(f"{directory} was split at a character, not by documents; prepare with --val=SOURCE instead")
    if kept.tokenizer is None:
        raise _refused(f"{directory} has no tokenizer, so its documents cannot be compared")
    return kept, kept.tokenizer


def _hash_documents_of_bin(kept: Dataset, split: str) -> np.ndarray:
    """A hash of the ids of each document of a split, for tokenizers that do not give every text back."""
    ids, hashes, first = np.memmap(kept.bin(split), kept.dtype, "r"), array("Q"), 0
    for end in kept.document_ends(split).tolist():
        document = ids[first:end]
        hashes.append(_digest(document[document != kept.eot].astype("<u4").tobytes()))
        first = end
    return np.array(hashes, np.uint64)


def _hash_ids(chunks: Iterable[Chunk], tokenizer: HFTokenizer, eot: int | None) -> np.ndarray:
    """The same of documents that are encoded now."""
    hashes, document = array("Q"), b""
    for chunk in cut(chunks, sys.maxsize):
        for _, ids in encode_chunks([chunk], tokenizer, None):
            document += ids[ids != eot].astype("<u4").tobytes()
        if chunk.is_last:
            hashes.append(_digest(document))
            document = b""
    return np.array(hashes, np.uint64)


def _digest(document: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(document, digest_size=DIGEST_BYTES).digest(), "little")


def _refused(problem: str) -> UsageError:
    return UsageError(f"keep_split: {problem}")
