"""Texts split at added tokens, as the tokenizers library splits them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import cycle
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import AddedToken

MOST = 64  # a regular expression of more tokens is slower than the library


class TokenSplitter:
    """Finds `tokens`, {id: token}, without flags but `normalized`, in texts that no normalizer changes.

    The longest of the tokens at a place counts; those to be found in normalized text come second."""

    def __init__(self, tokens: Mapping[int, AddedToken]) -> None:
        self.ids = {token.content: i for i, token in tokens.items()}
        stages = [[token.content for token in tokens.values() if token.normalized == late] for late in (False, True)]
        self.patterns = [re.compile(f"({_alternatives(names)})") for names in stages if names]

    def split(self, text: str) -> Iterator[str | int]:
        """The texts between the tokens, if not empty, and the ids of the tokens."""
        parts: Iterable[tuple[str, bool]] = [(text, False)]
        for pattern in self.patterns:
            parts = [found for part, is_token in parts for found in _split(pattern, part, is_token)]
        for part, is_token in parts:
            if part:
                yield self.ids[part] if is_token else part


def _split(pattern: re.Pattern[str], part: str, is_token: bool) -> Iterable[tuple[str, bool]]:
    return [(part, True)] if is_token else zip(pattern.split(part), cycle([False, True]))


def _alternatives(names: list[str]) -> str:
    return "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
