"""What the three tokenizers have in common."""

from __future__ import annotations

import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import SupportsInt

import numpy as np

# where GPT-2's pre-tokenizer always cuts: between a word and a single space before a word; behind a line end between
# words; between a punctuation mark and a letter or digit
SPACE_CUT = re.compile(r"(?<=\w)(?= \w)")
SAFE_CUT = re.compile(r"(?<=\w)(?= \w)|(?<=\w\n)(?=\w)|(?<=[.,;:!?。，；：！？、])(?=[^\W_])")
WHOLE = 1 << 22


class BaseTokenizer(ABC):
    """Text to token ids and back. `eot` is the id that ends a document and `eot_text` its name, None if there is none;
    `needs_whole` says that a document must be encoded in one piece."""

    vocab_size: int
    eot: int | None = None
    eot_text: str | None = None
    needs_whole: bool = False

    @property
    def dtype(self) -> np.dtype:
        """That of encoded ids and of a bin."""
        return np.dtype(np.uint16 if self.vocab_size <= 1 << 16 else np.uint32)

    @property
    def added(self) -> dict[str, int]:
        """The tokens, with their ids, that somebody added to the base vocabulary."""
        return {}

    @property
    def chat_template(self) -> str | None:
        """The chat template that came with the tokenizer."""
        return None

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Equal for tokenizers that give every text the same ids."""

    @property
    def base_fingerprint(self) -> str:
        """The fingerprint without the added tokens."""
        return self.fingerprint

    def extends(self, other: BaseTokenizer) -> bool:
        """Whether ids of `other` mean the same here: one base vocabulary, and all added tokens of `other`."""
        return self.base_fingerprint == other.base_fingerprint and other.added.items() <= self.added.items()

    @property
    def cut_pattern(self) -> re.Pattern[str] | None:
        """Where a text can be cut so that its parts have the ids of the whole; None is nowhere."""
        return SAFE_CUT

    def piece_size(self, size: int) -> int:
        """How many characters of a document to encode in one piece, where `size` are wanted: all if it `needs_whole`,
        but of very long documents WHOLE, unless no cut keeps the ids."""
        if not self.needs_whole:
            return size
        return max(size, WHOLE) if self.cut_pattern else sys.maxsize

    @property
    @abstractmethod
    def token_bytes(self) -> list[bytes]:
        """The bytes of text of each id, within a text; special tokens and unused ids have none."""

    @property
    def all_bytes(self) -> list[bytes]:
        """As `token_bytes`, but the names of special tokens too."""
        return self.token_bytes

    @cached_property
    def _ids_of_bytes(self) -> dict[bytes, list[int]]:
        ids: dict[bytes, list[int]] = {}
        for i, text in enumerate(self.token_bytes):
            ids.setdefault(text, []).append(i)
        return ids

    def beginnings(self, token: int) -> list[int]:
        """The ids of tokens that are a proper prefix of `token`."""
        text = self.decode_bytes([token])
        return [i for end in range(1, len(text)) for i in self._ids_of_bytes.get(text[:end], [])]

    @abstractmethod
    def encode(self, text: str, special: bool = False) -> np.ndarray:
        """The ids of a text. End-of-text and the other special tokens, spelled in it, are tokens only with `special`;
        other added tokens always are. Raises UsageError naming what the vocabulary cannot spell."""

    def encode_many(self, texts: Sequence[str]) -> list[np.ndarray]:
        """What `encode` gives for each text."""
        return [self.encode(text) for text in texts]

    @abstractmethod
    def encode_marked(self, text: str, spans: Sequence[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
        """`(ids, is_target)`: as with `special`, and whether each token touches one of the `spans` [start, end) of
        characters."""

    @abstractmethod
    def decode(self, ids: Iterable[SupportsInt]) -> str:
        """The text of `ids`; unknown ids are skipped."""

    @abstractmethod
    def decode_bytes(self, ids: Iterable[SupportsInt]) -> bytes:
        """The bytes of `ids` as they go on within a text; they may end within a character."""

    @abstractmethod
    def describe(self) -> dict[str, str]:
        """The entry of meta.json: kind, name, sha256."""

    @abstractmethod
    def save(self, directory: str | Path, block_size: int | None = None) -> None:
        """Write the files that AutoTokenizer of transformers loads."""


def touches(first: np.ndarray, end: np.ndarray, spans: Sequence[tuple[int, int]]) -> np.ndarray:
    """Whether each token, the characters from `first` to `end`, shares a character with one of the spans."""
    is_target = np.zeros(len(first), bool)
    for start, stop in spans:
        is_target |= (first < stop) & (end > start)
    return is_target


def without_surrogates(text: str) -> str:
    """The text with U+FFFD for each lone surrogate, which UTF-8 cannot hold."""
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
