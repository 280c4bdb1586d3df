"""One id per character."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal, SupportsInt

import numpy as np

from finetune.common.errors import UsageError
from finetune.data import bpe_files
from finetune.data.base_tokenizer import BaseTokenizer, touches


class CharTokenizer(BaseTokenizer):
    """One id per character, in code point order, as nanoGPT's character-level preparation numbers them."""

    kind: Literal["char"] = "char"

    def __init__(self, chars: Iterable[str]) -> None:
        self.chars = list(chars)
        self.vocab_size = len(self.chars)
        self._points = np.array([ord(char) for char in self.chars], dtype=np.uint32)
        self._order = np.argsort(self._points)  # a vocabulary from elsewhere may be unsorted

    def encode(self, text: str, special: bool = False) -> np.ndarray:
        """Ids of `text`; there are no `special` ones. Raises UsageError naming unknown characters."""
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        found = np.searchsorted(self._points, points, sorter=self._order).clip(max=self.vocab_size - 1)
        ids = self._order[found]
        unknown = self._points[ids] != points
        if unknown.any():
            examples = ", ".join(repr(chr(point)) for point in np.unique(points[unknown])[:5])
            raise UsageError(f"{examples} not among the {self.vocab_size} characters of this vocabulary")
        return ids.astype(self.dtype)

    def encode_marked(self, text: str, spans: Sequence[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
        ids, first = self.encode(text), np.arange(len(text))
        return ids, touches(first, first + 1, spans)

    def decode(self, ids: Iterable[SupportsInt]) -> str:
        """The text of `ids`; unknown ids, such as those of a padded vocabulary, are skipped."""
        return "".join(self.chars[int(i)] for i in ids if int(i) < self.vocab_size)

    def decode_bytes(self, ids: Iterable[SupportsInt]) -> bytes:
        return self.decode(ids).encode("utf-8", "surrogatepass")

    @cached_property
    def token_bytes(self) -> list[bytes]:
        return [char.encode("utf-8", "surrogatepass") for char in self.chars]

    @cached_property
    def fingerprint(self) -> str:
        return hashlib.sha256("".join(self.chars).encode("utf-8", "surrogatepass")).hexdigest()

    def describe(self) -> dict[str, str]:
        name = f"{self.vocab_size} characters"
        return {"kind": "char", "name": name, "sha256": self.fingerprint, "chars": "".join(self.chars)}

    def save(self, directory: str | Path, block_size: int | None = None) -> None:
        bpe_files.write_characters(directory, self.chars, block_size)
