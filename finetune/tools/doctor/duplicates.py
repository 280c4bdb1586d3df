"""Documents that repeat an earlier one of their split, or one of val."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from finetune.tools.doctor.near_duplicates import MAX_DOCUMENTS, NearDuplicates, Sketches, repeated_within

Verdict = dict | None  # what is wrong with a document, {"kind", "like": "val 3"}


class DuplicateFinder:
    """Compares each document with those before it, for the kinds of faults that `fixes` remove. A document that repeats
    one is not compared with later ones."""

    def __init__(self, fixes: Collection[str], max_documents: int = MAX_DOCUMENTS) -> None:
        self.fixes, self.max_documents = fixes, max_documents
        self.seen: dict[str, NearDuplicates] = {}  # by split

    def find(self, split: str, first: int, sketches: Sketches, words: np.ndarray) -> list[Verdict]:
        """The Verdicts on the next documents of a split, from number `first` on, which have so many words each."""
        if split not in self.seen:
            self.seen[split] = NearDuplicates(self.max_documents)
        own = self.seen[split]
        searches = []
        if "leaks" in self.fixes and split == "train" and "val" in self.seen:
            searches.append(_Search("val", self.seen["val"], ("leaks", "leaks"), sketches))
        if "dedup" in self.fixes:
            searches.append(_Search(split, own, ("exact_duplicates", "near_duplicates"), sketches))
            searches[-1].may_be_near |= repeated_within(sketches)
        suspects = words == 0
        for search in searches:
            suspects |= search.may_be_near | (search.equal > 0)
        verdicts: list[Verdict] = [None] * len(words)
        start = 0  # of the documents that are not added yet
        for i in np.flatnonzero(suspects).tolist():
            own.add(sketches, range(start, i), first)
            start = i
            if not words[i]:
                verdicts[i] = {"kind": "empty"} if "dedup" in self.fixes else None
                start = i + 1
            elif verdict := next(filter(None, (search.find(sketches, i) for search in searches)), None):
                verdicts[i], start = verdict, i + 1
        own.add(sketches, range(start, len(words)), first)
        return verdicts

    def __enter__(self) -> DuplicateFinder:
        return self

    def __exit__(self, *_: object) -> None:
        for seen in self.seen.values():
            seen.file.close()


class _Search:
    """A search for documents that repeat those of a split."""

    def __init__(self, split: str, seen: NearDuplicates, kinds: tuple[str, str], sketches: Sketches) -> None:
        self.split, self.seen, self.kinds = split, seen, kinds
        self.equal = seen.exact.find(sketches.digests)
        self.may_be_near = seen.may_repeat(sketches)

    def find(self, sketches: Sketches, i: int) -> Verdict:
        exact_kind, near_kind = self.kinds
        if same := int(self.equal[i]) or self.seen.exact.recent.get(sketches.digests[i]):
            return {"kind": exact_kind, "like": f"{self.split} {same}"}
        if self.may_be_near[i] and (same := self.seen.find(sketches, i)):
            return {"kind": near_kind, "like": f"{self.split} {same}"}
        return None
