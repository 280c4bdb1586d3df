"""The documents of a prepared directory as Chunks, decoded many at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import numpy as np

from finetune.data.dataset import Dataset
from finetune.data.documents import Chunk
from finetune.data.tokenizer import CharTokenizer, Tokenizer

GROUP_TOKENS = 1 << 17  # decoded at a time, so that the arrays stay in the cache
MAX_TOKENS = 1 << 18  # of a chunk: about a megabyte of text


def documents_of_bin(
    dataset: Dataset, split: str, tokenizer: Tokenizer, chunk_tokens: int = MAX_TOKENS
) -> Iterator[Chunk]:
    """The documents of a split without their end-of-text. Prompts and answers are Chunks of their own. A document of
    more than `chunk_tokens` is cut before white space, else between two characters."""
    decoder = _Decoder(tokenizer)
    rest, ends = _Part(np.zeros(0, dataset.dtype), np.zeros(0, bool)), dataset.document_ends(split)
    offset = 0  # of `rest` in the bin
    has_turns = dataset.documents(split) is not None  # an end-of-text may stand within a document
    for part in _parts(dataset, split, min(chunk_tokens, GROUP_TOKENS)):
        part = _Part(np.concatenate([rest.ids, part.ids]), np.concatenate([rest.is_target, part.is_target]))
        first, last = np.searchsorted(ends, [offset, offset + len(part.ids)], side="right")
        document_ends = ends[first:last] - offset
        size = int(document_ends[-1]) if len(document_ends) else 0
        if size:
            yield from decoder.chunks(part[:size], document_ends, has_turns)
        rest, offset = part[size:], offset + size
        if len(rest.ids) >= chunk_tokens and (size := decoder.last_cut(rest.ids)):
            yield from decoder.chunks(rest[:size], np.zeros(0, np.int64), has_turns)
            rest, offset = rest[size:], offset + size


class _Part(NamedTuple):
    """Some tokens of a bin."""

    ids: np.ndarray
    is_target: np.ndarray  # bool

    def __getitem__(self, place: slice) -> _Part:  # pyrefly: ignore
        return _Part(self.ids[place], self.is_target[place])


def _parts(dataset: Dataset, split: str, size: int) -> Iterator[_Part]:
    mask = dataset.mask(split)
    with open(dataset.bin(split), "rb") as file, open(mask or dataset.bin(split), "rb") as mask_file:
        while len(ids := np.frombuffer(file.read(dataset.dtype.itemsize * size), dataset.dtype)):
            yield _Part(ids, _read_mask(mask_file, len(ids)) if mask else np.ones(len(ids), bool))


def _read_mask(file: BinaryIO, size: int) -> np.ndarray:
    return np.frombuffer(file.read(size), np.uint8) != 0


class _Decoder:
    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        table = tokenizer.all_bytes + [b""] * max(0, (1 << 16) - tokenizer.vocab_size)
        self.content = np.frombuffer(b"".join(table), np.uint8)
        self.sizes = np.fromiter(map(len, table), np.int32, len(table))
        self.starts = (self.sizes.cumsum() - self.sizes).astype(np.int32)
        first = np.array([text[0] if text else 0x80 for text in table])
        self.begins_with_space = np.array([text[:1].isspace() for text in table])
        self.begins_character = (first < 0x80) | (first >= 0xC0)  # 0x80 to 0xBF continue a character of UTF-8
        self.is_cut = False  # the last Chunk was a part of a document
        self.errors = "surrogatepass" if isinstance(tokenizer, CharTokenizer) else "replace"

    def last_cut(self, ids: np.ndarray) -> int:
        """Where to cut a long document; 0 if there is no place."""
        for is_good in (self.begins_with_space, self.begins_character):
            if len(cuts := np.flatnonzero(is_good[ids])):
                return int(cuts[-1])
        return 0

    def chunks(self, part: _Part, document_ends: np.ndarray, has_turns: bool) -> Iterator[Chunk]:
        """The Chunks of some tokens, given where documents end among them."""
        is_end = np.zeros(len(part.ids), bool)  # the token is the last of its Chunk
        is_end[:-1] = part.is_target[1:] != part.is_target[:-1]
        is_end[-1] = is_end[document_ends - 1] = True
        is_eot = part.ids == (-1 if self.tokenizer.eot is None else self.tokenizer.eot)
        if has_turns:
            is_end |= is_eot
        ends = np.flatnonzero(is_end) + 1
        is_last = np.zeros(len(part.ids) + 1, bool)
        is_last[document_ends] = True
        data, places = self.decode(part.ids)
        starts, has_eot = np.append(0, ends[:-1]), is_eot[ends - 1]
        if not (has_turns or len(document_ends)):
            has_eot[:] = False
        bounds = zip(
            starts.tolist(),
            places[starts].tolist(),
            places[ends - has_eot].tolist(),
            (ends - has_eot - starts).tolist(),
            is_last[ends].tolist(),
            part.is_target[starts].tolist(),
            has_eot.tolist(),
        )
        continues, self.is_cut = self.is_cut, not len(document_ends)
        for start, begin, end, tokens, last, is_target, eot in bounds:
            if self.tokenizer.needs_whole and (start or not continues):  # it may strip a space before the first word
                text = self.tokenizer.decode(part.ids[start : start + tokens])
            else:
                text = data[begin:end].decode("utf-8", self.errors)
            yield Chunk(text, last, is_target, eot and not last, tokens)

    def decode(self, ids: np.ndarray) -> tuple[bytes, np.ndarray]:
        """The bytes of ids, and where those of each begin, with the end of the last."""
        sizes = np.take(self.sizes, ids, mode="clip")
        places = np.append(np.int32(0), sizes.cumsum(dtype=np.int32))
        of_byte = np.repeat(np.take(self.starts, ids, mode="clip") - places[:-1], sizes)
        of_byte += np.arange(len(of_byte), dtype=np.int32)
        return np.take(self.content, of_byte, mode="clip").tobytes(), places
