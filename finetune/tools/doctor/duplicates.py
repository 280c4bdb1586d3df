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
        searched = []  # (kind for an equal document, for a nearly equal one, split, where to search, ...)
        if "leaks" in self.fixes and split == "train" and "val" in self.seen:
            val = self.seen["val"]
            searched.append(("leaks", "leaks", "val", val, val.exact.find(sketches.digests), val.may_repeat(sketches)))
        equal, is_near = own.exact.find(sketches.digests), own.may_repeat(sketches) | repeated_within(sketches)
        if "dedup" in self.fixes:
            searched.append(("exact_duplicates", "near_duplicates", split, own, equal, is_near))
        verdicts: list[Verdict] = []
        fresh: list[int] = []  # not added yet
        for i, digest in enumerate(sketches.digests):
            if not words[i]:
                verdicts.append({"kind": "empty"} if "dedup" in self.fixes else None)
                continue
            if is_near[i]:
                self._add(own, sketches, fresh, first)
            verdict = None
            for exact_kind, near_kind, name, seen, known, may_repeat in searched:
                if same := known[i] or seen.exact.recent.get(digest):
                    verdict = {"kind": exact_kind, "like": f"{name} {same}"}
                elif may_repeat[i] and (same := seen.find(sketches, i)):
                    verdict = {"kind": near_kind, "like": f"{name} {same}"}
                if verdict:
                    break
            verdicts.append(verdict)
            if not verdict:
                own.exact.recent[digest] = first + i
                fresh.append(i)
        self._add(own, sketches, fresh, first)
        return verdicts

    def _add(self, seen: NearDuplicates, sketches: Sketches, fresh: list[int], first: int) -> None:
        seen.add(sketches, fresh, first)
        fresh.clear()

    def __enter__(self) -> DuplicateFinder:
        return self

    def __exit__(self, *_: object) -> None:
        for seen in self.seen.values():
            seen.file.close()
