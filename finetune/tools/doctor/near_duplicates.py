"""Equal documents, nearly equal documents, and passages that two texts share.

No text is kept. A document leaves 16 bytes to find an equal one, 20 slots in tables, given by its MinHash signature, to
find candidates for a nearly equal one, and its shingles in a temporary file, 4 bytes a word, to compare candidates
exactly."""

from __future__ import annotations

import re
import tempfile
import zlib
from array import array
from collections import Counter
from collections.abc import Sequence
from functools import cached_property, reduce
from typing import NamedTuple

import numpy as np

from finetune.data.verbatim import MULTIPLIER, HashIndex

# Jaccard similarity of 5-word shingles from which on documents are nearly equal: Lee et al. 2021, arXiv:2107.06499
NEAR = 0.8
SHORT = 20  # words; in a shorter document only case and spacing may differ, because another word can be another answer
# two documents of similarity 0.8 agree in no band with a probability of (1 - 0.8^4)^20 = 3 in 100,000
BANDS, ROWS = 20, 4
FACTORS, SHIFTS = np.random.RandomState(0).randint(1 << 32, size=(2, BANDS * ROWS, 1), dtype=np.uint32)
FACTORS |= np.uint32(1)
CHUNK = 1024  # shingles hashed at a time, so that the products stay in the cache
SLOTS = 1 << 19  # of the table of a band
MAX_DOCUMENTS = 1 << 19  # of a split; 20 x 2^19 x (4 + 4 + 2) bytes = 105 MB of tables
DEPTH = 8  # candidates looked up in each band
CHECKED = 32  # candidates compared exactly, those that agree in most bands first
PASSAGE = 50  # words
WINDOW = 25  # every passage of 2 x 25 - 1 words contains one of the windows that begin at each 25th word
MAX_PASSAGE_WORDS = 10_000_000  # of the text whose passages are searched for, 4 bytes each
# Chinese, Japanese, Thai, Lao and Khmer are written without spaces: each character is a word
UNSPACED = "\u0e00-\u0eff\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
WORD = re.compile(rf"[{UNSPACED}]|[^\s{UNSPACED}]+")


def split_words(text: str) -> list[str]:
    return text.split() if text.isascii() else WORD.findall(text)


def word_hashes(text: str) -> np.ndarray:
    """A hash of each word, whatever its case, uint32."""
    text = text.lower()
    spaced = text if text.isascii() else " ".join(WORD.findall(text))
    return np.fromiter(map(zlib.crc32, spaced.encode("utf-8", "surrogatepass").split()), np.uint32)


class Sketch(NamedTuple):
    """What is compared of a document. Without `shingles` it is compared for equality only."""

    digest: bytes
    shingles: np.ndarray | None = None  # sorted, distinct, uint32
    bands: np.ndarray | None = None  # a hash of each band of the signature, uint64 (BANDS,)


def make_sketch(digest: bytes, parts: list[np.ndarray]) -> Sketch:
    """The Sketch of a document from the digest of its text and the hashes of its words, in parts."""
    hashes = np.concatenate([np.zeros(0, np.uint32), *parts])
    if not len(hashes):
        return Sketch(digest)
    shingles = np.unique(_run_hashes(hashes, 5 if len(hashes) >= SHORT else len(hashes)).astype(np.uint32))
    return Sketch(digest, shingles, _combine(minhash(shingles).reshape(BANDS, ROWS).T))


def minhash(shingles: np.ndarray) -> np.ndarray:
    """The MinHash signature, uint32 (BANDS * ROWS,). The probability that two signatures agree in a value is the
    Jaccard similarity of the two sets."""

    def lowest(part: np.ndarray) -> np.ndarray:
        hashes = part * FACTORS  # modulo 2^32: a permutation, because the factors are odd
        hashes += SHIFTS
        return np.minimum.reduce(hashes, axis=1)

    return reduce(np.minimum, (lowest(shingles[start : start + CHUNK]) for start in range(0, len(shingles), CHUNK)))


class NearDuplicates:
    """The documents of a split so far. `find` tells which of them a new one repeats.

    The bands of the signatures lie in tables of fixed size, so memory is constant."""

    def __init__(self, max_documents: int = MAX_DOCUMENTS) -> None:
        self.max_documents, self.skipped = max_documents, 0
        self.exact: dict[bytes, int] = {}  # digest: number
        self.numbers = array("Q", [0])  # of document i; i = 0 is none
        self.ends = array("Q", [0])  # the shingles of document i are ends[i - 1] to ends[i] in the file
        self.file = tempfile.TemporaryFile()
        self.latest = np.zeros((BANDS, SLOTS), np.int32)  # the last document in each slot
        self.earlier = np.zeros((max_documents + 1, BANDS), np.int32)  # the one before it in the slot of each band
        self.tags = np.zeros((max_documents + 1, BANDS), np.uint16)  # tells a band from others in its slot

    def find(self, sketch: Sketch) -> tuple[str, int] | None:
        """("exact" or "near", number of the document that is repeated), or None."""
        if sketch.digest in self.exact:
            return "exact", self.exact[sketch.digest]
        if sketch.shingles is None or sketch.bands is None:
            return None
        size = len(sketch.shingles)
        for i in self._candidates(*_slots_and_tags(sketch.bands)):
            first, last = self.ends[i - 1], self.ends[i]
            if min(last - first, size) < NEAR * max(last - first, size):
                continue
            self.file.seek(4 * first)
            other = np.frombuffer(self.file.read(4 * (last - first)), np.uint32)
            common = len(np.intersect1d(sketch.shingles, other, assume_unique=True))
            if common >= NEAR * (size + len(other) - common):
                return "near", self.numbers[i]
        return None

    def _candidates(self, slots: np.ndarray, tags: np.ndarray) -> list[int]:
        """The documents that agree in some band, those that agree in most bands first."""
        bands, found = np.arange(BANDS), Counter()
        documents = self.latest[bands, slots]
        for _ in range(DEPTH):
            if not documents.any():
                break
            found.update(documents[self.tags[documents, bands] == tags].tolist())
            documents = self.earlier[documents, bands]
        del found[0]
        return [i for i, _ in found.most_common(CHECKED)]

    def add(self, sketch: Sketch, number: int) -> None:
        self.exact[sketch.digest] = number
        if sketch.shingles is None or sketch.bands is None:
            return
        i, bands = len(self.numbers), np.arange(BANDS)
        if i > self.max_documents:
            self.skipped += 1
            return
        self.file.seek(0, 2)
        self.file.write(sketch.shingles.tobytes())
        self.numbers.append(number)
        self.ends.append(self.ends[-1] + len(sketch.shingles))
        slots, self.tags[i] = _slots_and_tags(sketch.bands)
        self.earlier[i] = self.latest[bands, slots]
        self.latest[bands, slots] = i


def _slots_and_tags(bands: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The slot of each band, from the low bits of its hash, and its tag, from the high bits."""
    return (bands % SLOTS).astype(np.int64), (bands >> np.uint64(48)).astype(np.uint16)


class Shared(NamedTuple):
    """A passage of `length` words at word `here` of the searched text, in its `document` (from 1), and at word `there`
    of another text."""

    document: int
    here: int
    there: int
    length: int


class Passages:
    """A text, and which of its passages of PASSAGE words or more stand in other texts. A passage that stands in it
    twice counts once."""

    def __init__(self) -> None:
        self.words = array("I")  # hashes
        self.starts = array("Q")  # of its documents
        self.skipped = 0

    def add(self, hashes: np.ndarray, is_first: bool) -> None:
        """Append words, the first of a document if `is_first`. Words beyond MAX_PASSAGE_WORDS are skipped."""
        if is_first:
            self.starts.append(len(self.words))
        fit = hashes[: MAX_PASSAGE_WORDS - len(self.words)]
        self.words.frombytes(fit.tobytes())
        self.skipped += len(hashes) - len(fit)

    # made when the first is searched for; then no more words can be added
    @cached_property
    def text(self) -> np.ndarray:
        return np.frombuffer(self.words, np.uint32)

    @cached_property
    def is_shared(self) -> np.ndarray:
        return np.zeros(len(self.text), bool)

    @cached_property
    def windows(self) -> HashIndex:
        grid = self.text[: len(self.text) // WINDOW * WINDOW].reshape(-1, 5, 5)
        fives = _combine([grid[:, :, k] for k in range(5)])
        return HashIndex(_combine([fives[:, k] for k in range(5)]))

    def find(self, hashes: np.ndarray) -> list[Shared]:
        """The passages shared with another text, given the hashes of its words."""
        if len(hashes) < PASSAGE:
            return []
        fives = _run_hashes(hashes, 5)
        windows = _combine([fives[5 * k : len(fives) - 5 * (4 - k)] for k in range(5)])
        there, index = self.windows.find(windows)
        passages, covered = [], set()
        for i, j in zip(there.tolist(), (WINDOW * self.windows.first[index]).tolist()):
            if j in covered or self.is_shared[j : j + WINDOW].all():
                continue
            before = _agreement(hashes[:i][::-1], self.text[:j][::-1])
            length = before + _agreement(hashes[i:], self.text[j:])
            if length >= PASSAGE:
                document = int(np.searchsorted(self.starts, j, side="right"))
                passages.append(Shared(document, j - before, i - before, length))
                covered.update(range(j, j - before + length - WINDOW + 1, WINDOW))
        return passages

    def mark(self, passage: Shared) -> None:
        self.is_shared[passage.here : passage.here + passage.length] = True

    def count(self) -> tuple[int, int]:
        """(number of passages marked, words in them)"""
        begins = self.is_shared.copy()
        begins[1:] &= ~self.is_shared[:-1]
        starts = np.frombuffer(self.starts, np.uint64).astype(np.int64)
        starts = starts[starts < len(begins)]
        begins[starts] |= self.is_shared[starts]
        return int(begins.sum()), int(self.is_shared.sum())


def _combine(columns: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    """One hash (uint64) of the values in the same place of all columns, in their order."""
    total = np.zeros(columns[0].shape, np.uint64)
    for column in columns:
        total += column
        total *= np.uint64(MULTIPLIER)
    return total ^ (total >> np.uint64(32))


def _run_hashes(hashes: np.ndarray, count: int) -> np.ndarray:
    """A hash of each run of `count` words."""
    return _combine([hashes[k : len(hashes) - count + 1 + k] for k in range(count)])


def _agreement(one: np.ndarray, other: np.ndarray) -> int:
    """How many values the two have in common at their beginning."""
    size = min(len(one), len(other))
    for start in range(0, size, 256):
        part = slice(start, min(start + 256, size))
        differs = one[part] != other[part]
        if differs.any():
            return start + int(differs.argmax())
    return size
