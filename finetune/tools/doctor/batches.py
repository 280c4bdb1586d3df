"""Documents in batches of about a megabyte, analysed in threads: faults of encoding repaired, words hashed, documents
sketched. numpy works without the lock of the interpreter, so the threads use all cores."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from finetune.common.machine import num_cores
from finetune.data.documents import Chunk
from finetune.data.tokenizer import Tokenizer
from finetune.tools.doctor.characters import Characters, characters_of, texts_with_faults
from finetune.tools.doctor.encoding_faults import Faults, repair
from finetune.tools.doctor.near_duplicates import Sketches, Words, make_sketches
from finetune.tools.doctor.passages import PASSAGE, WINDOW, Passages, Shared, Windows
from finetune.tools.doctor.words import word_hashes

LONG = 1_000_000  # words; longer documents are compared by their digest alone
BATCH_CHARACTERS, BATCH_CHUNKS = 1 << 20, 1 << 13


@dataclass
class Analysis:
    """How to analyse the documents of a split."""

    tokenizer: Tokenizer | None = None  # counts the tokens of chunks whose number is unknown
    counted: int = 0  # characters up to which tokens are counted; beyond, in one batch of ONE_IN
    passages: Passages | None = None  # those to look for


ONE_IN = 16


@dataclass
class Batch:
    """Some whole documents, or a part of a long one, and what their texts show by themselves."""

    chunks: list[Chunk]
    is_part: bool
    texts: list[str] = field(default_factory=list)  # of the chunks, repaired
    faults: dict[int, Faults] = field(default_factory=dict)  # by the number of the chunk
    lengths: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # characters of each chunk
    sizes: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # bytes of each chunk, before the repair
    tokens: np.ndarray | None = None  # of each chunk; None if they were not counted
    hashes: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint32))  # of the words
    is_given: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))  # the word is not learned
    word_ends: np.ndarray = field(default_factory=lambda: np.zeros(1, np.int64))  # of the documents, from 0
    chunk_ends: np.ndarray = field(default_factory=lambda: np.zeros(1, np.int64))  # of the documents, from 0
    sketches: Sketches | None = None  # of whole documents
    may_share: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # documents with passages perhaps
    shared_windows: Windows | None = None  # of a part of a long document

    def analyse(self, analysis: Analysis, counts: bool) -> Batch:
        characters = self._repair()
        self.hashes, starts = word_hashes(characters)
        self.is_given = ~self._are_learned(characters, starts)
        self._count_tokens(analysis.tokenizer if counts else None)
        words = Words.of(self.hashes)
        if self.is_part:
            self.shared_windows = analysis.passages.windows_in(words) if analysis.passages else None
            return self
        is_last = [chunk.is_last for chunk in self.chunks]
        self.chunk_ends = np.append(0, np.flatnonzero(is_last) + 1)
        self.word_ends = np.append(0, np.searchsorted(starts, characters.ends))[self.chunk_ends]
        self.sketches = make_sketches(self._digests(), words, self.word_ends, self.is_given)
        if analysis.passages:
            self.may_share = analysis.passages.may_share(words, self.word_ends[1:])
        return self

    def document(self, i: int) -> slice:
        """The chunks of document i."""
        return slice(int(self.chunk_ends[i]), int(self.chunk_ends[i + 1]))

    def _repair(self) -> Characters:
        self.texts = [chunk.text for chunk in self.chunks]
        characters = characters_of(self.texts)
        self.lengths = self.sizes = characters.lengths
        if not characters.are_ascii:
            self.sizes = np.fromiter((len(utf8(text)) for text in self.texts), np.int64, len(self.texts))
        suspects = texts_with_faults(characters)
        for i in suspects:
            self.texts[i], faults = repair(self.texts[i])
            if faults:
                self.faults[i] = faults
        return characters_of(self.texts) if suspects else characters

    def _are_learned(self, characters: Characters, starts: np.ndarray) -> np.ndarray:
        """Whether each word is learned, and not part of a prompt, given where words start."""
        bounds, are_learned = [0], [True]
        for chunk, size, end in zip(self.chunks, characters.lengths.tolist(), characters.ends.tolist()):
            begin = end - size
            bounds.append(begin)
            are_learned.append(chunk.is_target if chunk.spans is None else False)
            for first, last in chunk.spans or ():
                bounds += [min(begin + first, end), min(begin + last, end)]  # which a repair may have moved
                are_learned += [True, False]
        counts = np.diff(np.append(np.searchsorted(starts, bounds), len(starts)))  # words from each bound on
        return np.repeat(are_learned, counts)

    def _count_tokens(self, tokenizer: Tokenizer | None) -> None:
        tokens = [chunk.tokens for chunk in self.chunks]
        if tokenizer and None in tokens:
            lengths = map(len, tokenizer.encode_many([chunk.text for chunk in self.chunks]))
            tokens = [length if count is None else count for length, count in zip(lengths, tokens)]
        if None not in tokens:
            self.tokens = np.array(tokens, np.int64)

    def _digests(self) -> list[bytes]:
        if len(self.chunk_ends) > len(self.chunks):  # a chunk each
            return [digest_of(text) for text in self.texts]
        return [digest_of("".join(self.texts[self.document(i)])) for i in range(len(self.chunk_ends) - 1)]


class LongDocument:
    """What is kept of a document while its parts are read."""

    def __init__(self) -> None:
        self.digest = hashlib.blake2b(digest_size=16)
        self.hashes: list[np.ndarray] = []  # of its words, unless it is LONG
        self.are_given: list[np.ndarray] = []  # which of them are not learned
        self.words, self.is_complete = 0, False
        self.text = ""  # of its first part
        self.tail = np.zeros(0, np.uint32)  # hashes of the last words, where a passage may have begun
        self.passages: list[tuple[Shared, str]] = []

    def add(self, batch: Batch) -> None:
        for text in batch.texts:
            self.digest.update(utf8(text))
        self.text = self.text or batch.texts[0]
        self.words += len(batch.hashes)
        self.hashes = [*self.hashes, batch.hashes] if self.words <= LONG else []
        self.are_given = [*self.are_given, batch.is_given] if self.words <= LONG else []
        self.is_complete = batch.chunks[-1].is_last

    def find_passages(self, passages: Passages, batch: Batch) -> None:
        """Note the passages that a part shares, also those that began in the part before."""
        assert batch.shared_windows
        hashes = np.concatenate([self.tail, batch.hashes])
        windows = passages.windows_in(Words.of(hashes[: len(self.tail) + WINDOW - 1]))  # that begin in the tail
        here, there = batch.shared_windows
        windows = tuple(np.concatenate(both) for both in zip(windows, (here + len(self.tail), there)))
        for passage in passages.find(hashes, (windows[0], windows[1])):
            start = max(0, passage.there - len(self.tail))
            self.passages.append((passage, passages.excerpt(batch.texts, start)))
        self.tail = hashes[1 - PASSAGE :]

    def sketches(self) -> Sketches:
        hashes = np.concatenate([np.zeros(0, np.uint32), *self.hashes])
        is_given = np.concatenate([np.zeros(0, bool), *self.are_given])
        return make_sketches([self.digest.digest()], Words.of(hashes), np.array([0, len(hashes)]), is_given)


def analysed(chunks: Iterable[Chunk], analysis: Analysis) -> Iterator[Batch]:
    """The Batches of a split, in their order."""
    cores = num_cores()
    pending: deque[Future[Batch]] = deque()
    characters = number = 0
    with ThreadPoolExecutor(cores) as pool:
        for number, batch in enumerate(_batches(chunks)):
            counts = characters < analysis.counted or number % ONE_IN == 0
            characters += sum(len(chunk.text) for chunk in batch.chunks)
            pending.append(pool.submit(batch.analyse, analysis, counts))
            if len(pending) > 2 * cores:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _batches(chunks: Iterable[Chunk]) -> Iterator[Batch]:
    """Whole documents up to about BATCH_CHARACTERS, and longer documents in parts."""
    pending: list[Chunk] = []
    size = whole = 0  # characters pending, and how many of the chunks are whole documents
    is_part = False
    for chunk in chunks:
        pending.append(chunk)
        size += len(chunk.text)
        if chunk.is_last and not is_part:
            whole = len(pending)
        is_full = size >= BATCH_CHARACTERS or len(pending) >= BATCH_CHUNKS
        if not is_full and not (is_part and chunk.is_last):
            continue
        if whole:
            yield Batch(pending[:whole], is_part=False)
            pending, whole = pending[whole:], 0
            size = sum(len(chunk.text) for chunk in pending)
        else:
            yield Batch(pending, is_part=True)
            is_part, pending, size = not chunk.is_last, [], 0
    if whole:
        yield Batch(pending[:whole], is_part=False)
    if pending[whole:]:
        yield Batch(pending[whole:], is_part=True)


def utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def digest_of(text: str) -> bytes:
    return hashlib.blake2b(utf8(text), digest_size=16).digest()
