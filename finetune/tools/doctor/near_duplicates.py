"""Equal documents and nearly equal documents.

No text is kept. A document leaves 20 bytes to find an equal one, 20 slots in tables, given by its MinHash signature, to
find candidates for a nearly equal one, and its shingles in a temporary file, 4 bytes a word, to compare candidates
exactly. Documents come in groups, so that numpy works on many at once."""

from __future__ import annotations

import tempfile
from array import array
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from finetune.data.verbatim import MULTIPLIER
from finetune.tools.doctor.digests import Digests

# Jaccard similarity of 5-word shingles from which on documents are nearly equal: Lee et al. 2021, arXiv:2107.06499
NEAR = 0.8
SHINGLE = 5  # words
SHORT = 20  # words; in a shorter document only case and spacing may differ, because another word can be another answer
# two documents of similarity 0.8 agree in no band with a probability of (1 - 0.8^4)^20 = 3 in 100,000
BANDS, ROWS = 20, 4
CHUNK = 4096  # shingles hashed at a time, so that the products stay in the cache
FACTORS = np.random.RandomState(0).randint(1 << 32, size=(BANDS * ROWS, 1), dtype=np.uint32) | np.uint32(1)
FACTORS = np.repeat(FACTORS, CHUNK, axis=1)  # twice as fast as broadcasting
SLOTS = 1 << 19  # of the table of a band
MAX_DOCUMENTS = 1 << 19  # of a split; 20 x 2^19 x (4 + 4 + 2) bytes = 105 MB of tables
DEPTH = 8  # candidates looked up in each band
CHECKED = 32  # candidates compared exactly, those that agree in most bands first
ALL_BANDS = np.arange(BANDS)


class Sketches(NamedTuple):
    """What is compared of some documents. One without shingles is compared for equality only."""

    digests: list[bytes]
    shingles: np.ndarray  # uint32, sorted and distinct for each document
    ends: np.ndarray  # int64 (documents + 1,); the shingles of document i are ends[i] to ends[i + 1]
    slots: np.ndarray  # int64 (documents, BANDS): of a hash of each band of the signature, the low bits
    tags: np.ndarray  # uint16 (documents, BANDS): the high bits, to tell bands of a slot apart

    def shingles_of(self, i: int) -> np.ndarray:
        return self.shingles[self.ends[i] : self.ends[i + 1]]


class Words(NamedTuple):
    """Words one after the other, as hashes."""

    hashes: np.ndarray  # uint32
    fives: np.ndarray  # of each run of SHINGLE words, uint64

    @classmethod
    def of(cls, hashes: np.ndarray) -> Words:
        return cls(hashes, run_hashes(hashes, SHINGLE) if len(hashes) >= SHINGLE else np.zeros(0, np.uint64))


def make_sketches(digests: list[bytes], words: Words, ends: np.ndarray, is_given: np.ndarray | None = None) -> Sketches:
    """The Sketches of documents: their digests, their words, and where those of each end, int64 (documents + 1,), from
    0. Where words are given, not learned, documents are only nearly equal if those are equal: with the same passage and
    another question, the answer is another one."""
    prompts = None
    if is_given is not None and is_given.any():
        prompts = _prompt_hashes(words.hashes, ends, is_given)
        ends = np.append(0, (~is_given).cumsum())[ends]
        words = Words.of(words.hashes[~is_given])
    shingles, shingle_ends = _shingles(words, ends)
    if prompts is not None:
        shingles ^= np.repeat(prompts, np.diff(shingle_ends))
    shingles, shingle_ends = _distinct(shingles, shingle_ends)
    bands = np.zeros((len(digests), BANDS), np.uint64)
    has_shingles = np.diff(shingle_ends) > 0
    if has_shingles.any():
        signatures = minhash(shingles, shingle_ends[:-1][has_shingles]).reshape(BANDS, ROWS, -1)
        bands[has_shingles] = combine([signatures[:, row] for row in range(ROWS)]).T
    tags = (bands >> np.uint64(48)).astype(np.uint16)
    return Sketches(digests, shingles, shingle_ends, (bands % SLOTS).astype(np.int64), tags)


def _prompt_hashes(hashes: np.ndarray, ends: np.ndarray, is_given: np.ndarray) -> np.ndarray:
    """A hash of the words that are given in each document, in their order, uint32."""
    counts = np.append(0, is_given.cumsum())[ends]
    place = np.arange(counts[-1]) - np.repeat(counts[:-1], np.diff(counts))
    sums = np.append(np.uint64(0), combine([hashes[is_given], place.astype(np.uint64)]).cumsum(dtype=np.uint64))[counts]
    return (sums[1:] - sums[:-1]).astype(np.uint32)


def _shingles(words: Words, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The shingles of documents, uint32, and where those of each end, from 0. A SHORT document is one shingle."""
    sizes = np.diff(ends)
    is_long = sizes >= SHORT
    counts = np.where(is_long, sizes - SHINGLE + 1, np.minimum(sizes, 1))
    shingle_ends = np.append(0, counts.cumsum())
    shingles = np.empty(shingle_ends[-1], np.uint32)
    if is_long.any():
        is_inside = np.repeat(is_long, sizes)[: 1 - SHINGLE]  # the shingle ends in its document
        for left in range(1, SHINGLE):
            is_inside[(ends[1:] - left)[is_long & (ends[1:] - left < len(is_inside))]] = False
        shingles[np.repeat(is_long, counts)] = words.fives[is_inside]
    for size in np.unique(sizes[~is_long & (sizes > 0)]).tolist():
        of_size = np.flatnonzero(sizes == size)
        shingles[shingle_ends[of_size]] = combine([words.hashes[ends[of_size] + word] for word in range(size)])
    return shingles, shingle_ends


def _distinct(shingles: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The shingles of each document sorted, each once, and where those of each end. Documents of about a size are the
    rows of an array, since numpy sorts short rows ten times as fast as all at once."""
    counts = np.diff(ends)
    widths = np.int64(1) << np.ceil(np.log2(np.maximum(counts, 1))).astype(np.int64)
    for width in np.unique(widths[counts > 1]).tolist():
        alike = np.flatnonzero((widths == width) & (counts > 1))
        columns = np.arange(width)
        is_filled = columns < counts[alike, None]
        places = (ends[alike, None] + columns)[is_filled]
        rows = np.full(is_filled.shape, 0xFFFFFFFF, np.uint32)  # what fills a row goes to its end
        rows[is_filled] = shingles[places]
        rows.sort(axis=1)
        shingles[places] = rows[is_filled]
    is_new = np.append(True, shingles[1:] != shingles[:-1])[: len(shingles)]
    is_new[ends[:-1][counts > 0]] = True
    return shingles[is_new], np.append(0, is_new.cumsum())[ends]


def minhash(shingles: np.ndarray, starts: np.ndarray | Sequence[int] = (0,)) -> np.ndarray:
    """The MinHash signatures of sets, given where each starts, uint32 (BANDS * ROWS, sets). The probability that two
    signatures agree in a value is the Jaccard similarity of the two sets."""
    starts = np.asarray(starts)
    signatures = np.full((BANDS * ROWS, len(starts)), 0xFFFFFFFF, np.uint32)
    buffer = np.empty((BANDS * ROWS, CHUNK), np.uint32)
    for begin in range(0, len(shingles), CHUNK):
        part = shingles[begin : begin + CHUNK]
        hashes = buffer[:, : len(part)]
        # modulo 2^32: a permutation, because the factors are odd
        np.multiply(part, FACTORS[:, : len(part)], out=hashes)
        first, last = np.searchsorted(starts, [begin, begin + len(part) - 1], side="right")
        lowest = np.minimum.reduceat(hashes, np.maximum(starts[first - 1 : last] - begin, 0), axis=1)
        np.minimum(signatures[:, first - 1 : last], lowest, out=signatures[:, first - 1 : last])
    return signatures


class NearDuplicates:
    """The documents of a split so far. `find` says which of them another one repeats.

    The bands of the signatures lie in tables of fixed size, so memory is constant."""

    def __init__(self, max_documents: int = MAX_DOCUMENTS) -> None:
        self.max_documents, self.skipped = max_documents, 0
        self.exact = Digests()
        self.numbers = array("Q", [0])  # of document i; i = 0 is none
        self.ends = array("Q", [0])  # the shingles of document i are ends[i - 1] to ends[i] in the file
        self.file = tempfile.TemporaryFile()
        self.latest = np.zeros(BANDS * SLOTS, np.int32)  # the last document in each slot of each band
        self.earlier = np.zeros((max_documents + 1, BANDS), np.int32)  # the one before it in the slot of each band
        self.tags = np.zeros((max_documents + 1, BANDS), np.uint16)

    def may_repeat(self, sketches: Sketches) -> np.ndarray:
        """Whether each document agrees in some band with one here, bool: `find` finds no near one for the others."""
        latest = self.latest[ALL_BANDS * SLOTS + sketches.slots].ravel()
        tags, result = sketches.tags.ravel(), np.zeros(len(sketches.digests), bool)
        places = np.flatnonzero(latest)
        documents = latest[places]
        for _ in range(DEPTH):
            bands = places % BANDS
            result[places[self.tags[documents, bands] == tags[places]] // BANDS] = True
            documents = self.earlier[documents, bands]
            places, documents = places[documents > 0], documents[documents > 0]
        return result

    def find(self, sketches: Sketches, i: int) -> int | None:
        """The number of the document that document i of the sketches nearly repeats, or None."""
        shingles = sketches.shingles_of(i)
        for other in self._candidates(sketches.slots[i], sketches.tags[i]):
            first, last = self.ends[other - 1], self.ends[other]
            if min(last - first, len(shingles)) < NEAR * max(last - first, len(shingles)):
                continue
            self.file.seek(4 * first)
            known = np.frombuffer(self.file.read(4 * (last - first)), np.uint32)
            common = len(np.intersect1d(shingles, known, assume_unique=True))
            if common >= NEAR * (len(shingles) + len(known) - common):
                return self.numbers[other]
        return None

    def _candidates(self, slots: np.ndarray, tags: np.ndarray) -> list[int]:
        """The documents that agree in some band, those that agree in most bands first."""
        found: Counter[int] = Counter()
        documents = self.latest[ALL_BANDS * SLOTS + slots]
        for _ in range(DEPTH):
            if not documents.any():
                break
            found.update(documents[self.tags[documents, ALL_BANDS] == tags].tolist())
            documents = self.earlier[documents, ALL_BANDS]
        del found[0]
        return [i for i, _ in found.most_common(CHECKED)]

    def add(self, sketches: Sketches, chosen: range, first: int) -> None:
        """Add the chosen documents of some sketches. `first` is the number of the first of the sketches."""
        self.exact.recent.update(
            zip(sketches.digests[chosen.start : chosen.stop], range(first + chosen.start, first + chosen.stop))
        )
        added = self._fitting(sketches, np.asarray(chosen, np.int64))
        if not len(added):
            return
        sizes = np.diff(sketches.ends)
        is_added = np.zeros(len(sizes), bool)
        is_added[added] = True
        self.file.seek(0, 2)
        self.file.write(sketches.shingles[np.repeat(is_added, sizes)].tobytes())
        self.numbers.frombytes((added + first).astype(np.uint64).tobytes())
        self.ends.frombytes((sizes[added].cumsum() + self.ends[-1]).astype(np.uint64).tobytes())
        self._chain(len(self.numbers) - len(added), sketches.slots[added], sketches.tags[added])

    def _chain(self, first: int, slots: np.ndarray, tags: np.ndarray) -> None:
        """Put documents from `first` on into the tables. Those in the same slot form a chain, the latest in front."""
        last = first + len(slots)
        self.tags[first:last] = tags
        keys = ((ALL_BANDS * SLOTS + slots) << 32) + np.arange(first, last)[:, None]
        keys = np.sort(keys, axis=None)
        slots, documents = keys >> 32, keys & 0xFFFFFFFF
        follows = slots[1:] == slots[:-1]
        earlier = self.latest[slots]
        earlier[1:][follows] = documents[:-1][follows]
        self.earlier[documents, slots // SLOTS] = earlier
        is_latest = np.append(~follows, True)
        self.latest[slots[is_latest]] = documents[is_latest]

    def _fitting(self, sketches: Sketches, chosen: np.ndarray) -> np.ndarray:
        """Those that have shingles, up to max_documents."""
        chosen = chosen[sketches.ends[chosen + 1] > sketches.ends[chosen]]
        left = self.max_documents + 1 - len(self.numbers)
        self.skipped += max(0, len(chosen) - left)
        return chosen[:left]


def repeated_within(sketches: Sketches) -> np.ndarray:
    """Whether each document agrees in some band with another one of the sketches, bool."""
    result = np.zeros(len(sketches.digests), bool)
    keys = (ALL_BANDS << 36 | sketches.slots << 16 | sketches.tags)[np.diff(sketches.ends) > 0].ravel()
    ordered = np.sort(keys)
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    if len(twice):
        result[np.flatnonzero(np.diff(sketches.ends) > 0)[np.flatnonzero(np.isin(keys, twice)) // BANDS]] = True
    return result


def combine(columns: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    """One hash (uint64) of the values in the same place of all columns, in their order."""
    total = np.zeros(columns[0].shape, np.uint64)
    for column in columns:
        total += column
        total *= np.uint64(MULTIPLIER)
    return total ^ (total >> np.uint64(32))


def run_hashes(hashes: np.ndarray, count: int) -> np.ndarray:
    """A hash of each run of `count` words."""
    return combine([hashes[k : len(hashes) - count + 1 + k] for k in range(count)])
