"""Documents as streams of chunks, so that no document is ever held whole."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from finetune.data.base_tokenizer import SAFE_CUT
from finetune.data.dataset import Dataset
from finetune.data.tokenizer import Tokenizer

CHUNK_TOKENS = 1 << 18  # about a megabyte of text
CHUNK_CHARACTERS = 4 * CHUNK_TOKENS


class Chunk(NamedTuple):
    """A part of a document.

    The document ends with the chunk that `is_last`. The model learns chunks that are targets; prompts are not. With
    `eot_after` an end-of-text follows although the document goes on: an assistant's turn ended. `tokens` is the length
    if known. `spans` marks a whole conversation, rendered by a chat template: the model learns the characters from
    start to end of each. With `special`, tokens spelled in the text are tokens, which a chunk with `spans` implies."""

    text: str
    is_last: bool = False
    is_target: bool = True
    eot_after: bool = False
    tokens: int | None = None
    spans: tuple[tuple[int, int], ...] | None = None
    special: bool = False

    def cut(self, place: int) -> tuple[Chunk, Chunk]:
        """The chunk in two, at a character."""
        spans = [self.spans, self.spans]
        if self.spans is not None:
            spans[0] = tuple((start, min(end, place)) for start, end in self.spans if start < place)
            spans[1] = tuple((max(start - place, 0), end - place) for start, end in self.spans if end > place)
        before = self._replace(text=self.text[:place], spans=spans[0], is_last=False, eot_after=False)
        return before, self._replace(text=self.text[place:], spans=spans[1])


Encoded = tuple[Chunk, np.ndarray]  # a chunk and its ids


def documents_of_bin(
    dataset: Dataset, split: str, tokenizer: Tokenizer, chunk_tokens: int = CHUNK_TOKENS
) -> Iterator[Chunk]:
    """The documents of a bin without their end-of-text. A long one is cut before white space, else between two
    characters."""
    begins_with_space, begins_character = _token_starts(tokenizer)
    rest, offset = np.zeros(0, dataset.dtype), 0  # tokens read but not yielded, and where they begin in the bin
    ends, is_begun = dataset.document_ends(split), False
    with open(dataset.bin(split), "rb") as file:
        while data := file.read(dataset.dtype.itemsize * chunk_tokens):
            ids = np.concatenate([rest, np.frombuffer(data, dataset.dtype)])
            first, last = np.searchsorted(ends, [offset, offset + len(ids)], side="right")
            *documents, rest = np.split(ids, ends[first:last] - offset)
            offset += len(ids) - len(rest)
            for document in documents:
                if document[-1] == tokenizer.eot:
                    document = document[:-1]
                yield Chunk(_decode(tokenizer, document, is_begun), is_last=True, tokens=len(document))
                is_begun = False
            cuts = np.flatnonzero(begins_with_space[rest])
            if not len(cuts):
                cuts = np.flatnonzero(begins_character[rest])
            size = int(cuts[-1]) if len(cuts) else 0
            if len(rest) >= chunk_tokens and size:
                yield Chunk(_decode(tokenizer, rest[:size], is_begun), tokens=size)
                rest, offset, is_begun = rest[size:], offset + size, True


def _decode(tokenizer: Tokenizer, ids: np.ndarray, is_begun: bool) -> str:
    """The text of ids. Where a document `is_begun`, no tokenizer may strip the space before the first word."""
    is_stripped = is_begun and tokenizer.needs_whole
    return tokenizer.decode_bytes(ids).decode("utf-8", "replace") if is_stripped else tokenizer.decode(ids)


def _token_starts(tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """Of every id, bool each: whether its text begins with white space, and whether with a whole character."""
    size = max(tokenizer.vocab_size, 1 << 16)  # a bin may hold ids beyond the vocabulary
    begins_with_space, begins_character = np.zeros(size, bool), np.zeros(size, bool)
    for i, text in enumerate(tokenizer.token_bytes):
        if text:
            begins_with_space[i] = text[:1].isspace()
            begins_character[i] = text[0] < 0x80 or text[0] >= 0xC0  # 0x80 to 0xBF continue a character of UTF-8
    return begins_with_space, begins_character


def cut(
    chunks: Iterable[Chunk], size: int, anywhere: bool = False, pattern: re.Pattern[str] = SAFE_CUT
) -> Iterator[Chunk]:
    """The same documents in chunks of at most about `size` characters. Encoding them one by one gives the ids of the
    whole, because they are cut only where their tokenizer always cuts: at the `pattern`, or `anywhere` for characters.
    A text without such a place stays whole, and so does a chunk with `spans`."""
    rest, searched = Chunk(""), 0  # the text not yielded yet, and how far it has no place to cut
    for chunk in chunks:
        if rest.text and (chunk.spans is not None or not _continues(rest, chunk)):  # these are encoded separately
            yield rest
            rest = Chunk("")
        if chunk.spans is not None:
            yield chunk
            continue
        text, searched = rest.text + chunk.text, searched if rest.text else 0
        while len(text) > size:
            place = (
                size if anywhere else _last_cut(pattern, text, size) or _first_cut(pattern, text, max(size, searched))
            )
            if not place:
                searched = len(text) - 2
                break
            yield Chunk(text[:place], is_target=chunk.is_target, special=chunk.special)
            text, searched = text[place:], 0
        if chunk.is_last or chunk.eot_after:
            yield chunk._replace(text=text)
            text = ""
        rest = Chunk(text, is_target=chunk.is_target, special=chunk.special)
    if rest.text:
        yield rest


def _continues(rest: Chunk, chunk: Chunk) -> bool:
    return (rest.is_target, rest.special) == (chunk.is_target, chunk.special)


WINDOW = 4096


def _last_cut(pattern: re.Pattern[str], text: str, size: int) -> int | None:
    """The last safe place in the WINDOW characters before `size`."""
    start = max(0, size - WINDOW)
    cuts = [match.start() for match in pattern.finditer(text, start, size + 2) if start < match.start() <= size]
    return cuts[-1] if cuts else None


def _first_cut(pattern: re.Pattern[str], text: str, start: int) -> int | None:
    """The first safe place from `start` on, but not at the end, because the text that follows is not known yet."""
    match = pattern.search(text, start)
    return match.start() if match and match.start() < len(text) - 2 else None
