"""Texts that are alike: equal documents, nearly equal ones, and passages that two of them share.

No text is kept. Of a document there are 16 bytes to find an equal one, 20 places in tables, given by its MinHash
signature, to find candidates for a nearly equal one, and its shingles, 4 bytes a word, in a temporary file, where a
candidate is compared exactly."""

import hashlib
import re
import tempfile
import zlib
from array import array
from collections import Counter
from functools import reduce
from typing import NamedTuple

import numpy as np

# Jaccard similarity of 5-word shingles from which on documents are nearly equal: Lee et al. 2021, arXiv:2107.06499
NEAR = 0.8
SHORT = 20  # words: below, one other word may be another answer, so only case and spacing may differ
# two documents of similarity 0.8 agree in no band with a chance of (1 - 0.8^4)^20 = 3 in 100,000
BANDS, ROWS = 20, 4
FACTORS, SHIFTS = np.random.RandomState(0).randint(1 << 32, size=(2, BANDS * ROWS, 1), dtype=np.uint32)
FACTORS |= np.uint32(1)
CHUNK = 1024  # shingles that are hashed at a time, so that the products stay in the cache
SLOTS = 1 << 19  # places in the table of a band
MAX_DOCUMENTS = 1 << 19  # of a split; 20 x 2^19 x (4 + 4 + 2) bytes = 105 MB for the tables of that many
DEPTH = 8  # how many documents that agree in a band are looked at,
CHECKED = 32  # and how many of them all are compared exactly, those that agree in most bands first
PASSAGE = 50  # words
WINDOW = 25  # every passage of 2 x 25 - 1 words has one of the windows that begin at each 25th word
MAX_PASSAGE_WORDS = 10_000_000  # of the text that passages are looked for, 4 bytes each
# Chinese, Japanese, Thai, Lao and Khmer are written without spaces: each character is a word
UNSPACED = "\u0e00-\u0eff\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
WORD = re.compile(rf"[{UNSPACED}]|[^\s{UNSPACED}]+")


def split(text):
    return text.split() if text.isascii() else WORD.findall(text)


def words(text):
    """A hash (uint32) of each word of a text, whatever its case."""
    text = text.lower()
    spaced = text if text.isascii() else " ".join(WORD.findall(text))
    return np.fromiter(map(zlib.crc32, spaced.encode("utf-8", "surrogatepass").split()), np.uint32)


class Sketch(NamedTuple):
    """What is compared of a document. `shingles` (sorted, distinct, uint32) is None when only equal ones are looked
    for."""

    digest: bytes
    shingles: np.ndarray | None = None
    bands: np.ndarray | None = None  # (BANDS,) a hash of each band of its signature


def digest():
    return hashlib.blake2b(digest_size=16)


def sketch(digest, hashes=None):
    """The Sketch of a document from the digest of its text and the hashes of its words."""
    if hashes is None or not len(hashes):
        return Sketch(digest)
    shingles = np.unique(_runs(hashes, 5 if len(hashes) >= SHORT else len(hashes)).astype(np.uint32))
    return Sketch(digest, shingles, _fold(minhash(shingles).reshape(BANDS, ROWS).T))


def minhash(shingles: np.ndarray) -> np.ndarray:
    """The MinHash signature of a document, (BANDS * ROWS,) uint32. Two signatures agree in each value with a chance
    that is the Jaccard similarity of the two sets."""

    def lowest(part: np.ndarray) -> np.ndarray:
        hashes = part * FACTORS  # modulo 2^32: a permutation, because the factors are odd
        hashes += SHIFTS
        return np.minimum.reduce(hashes, axis=1)

    return reduce(np.minimum, (lowest(shingles[start : start + CHUNK]) for start in range(0, len(shingles), CHUNK)))


class NearDuplicates:
    """The documents of a split so far, to be asked which of them a new one repeats.

    The bands of the signatures lie in tables of fixed size, so memory is constant.
    """

    def __init__(self):
        self.exact = {}  # digest to number
        self.numbers = array("Q", [0])  # the first is nobody's
        self.ends = array("Q", [0])  # the shingles of numbers[i] are those from ends[i - 1] to ends[i]
        self.latest = np.zeros((BANDS, SLOTS), np.int32)  # the last i in a slot, and
        self.earlier = np.zeros(
            (MAX_DOCUMENTS + 1, BANDS), np.int32
        )  # for each i the one before it in the slot of each band
        self.tags = np.zeros((MAX_DOCUMENTS + 1, BANDS), np.uint16)  # what tells a band from others in its slot
        self.file = tempfile.TemporaryFile()
        self.skipped = 0  # documents beyond MAX_DOCUMENTS

    def find(self, sketch):
        """("exact" or "near", number of the document that `sketch` repeats), or None."""
        if sketch.digest in self.exact:
            return "exact", self.exact[sketch.digest]
        if sketch.shingles is None:
            return None
        for i in self._candidates(*_places(sketch.bands)):
            first, last = self.ends[i - 1], self.ends[i]
            if min(last - first, len(sketch.shingles)) < NEAR * max(last - first, len(sketch.shingles)):
                continue
            self.file.seek(4 * first)
            other = np.frombuffer(self.file.read(4 * (last - first)), np.uint32)
            common = len(np.intersect1d(sketch.shingles, other, assume_unique=True))
            if common >= NEAR * (len(sketch.shingles) + len(other) - common):
                return "near", self.numbers[i]
        return None

    def _candidates(self, slots, tags):
        """The documents that agree in some band, those that agree in most bands first."""
        each, found = np.arange(BANDS), Counter()
        at = self.latest[each, slots]
        for _ in range(DEPTH):
            if not at.any():
                break
            found.update(at[self.tags[at, each] == tags].tolist())
            at = self.earlier[at, each]
        del found[0]
        return [i for i, _ in found.most_common(CHECKED)]

    def add(self, sketch, number):
        self.exact[sketch.digest] = number
        i, each = len(self.numbers), np.arange(BANDS)
        if sketch.shingles is None or i > MAX_DOCUMENTS:
            self.skipped += sketch.shingles is not None
            return
        self.file.seek(0, 2)
        self.file.write(sketch.shingles.tobytes())
        self.numbers.append(number)
        self.ends.append(self.ends[-1] + len(sketch.shingles))
        slots, self.tags[i] = _places(sketch.bands)
        self.earlier[i] = self.latest[each, slots]
        self.latest[each, slots] = i


def _places(bands):
    """The slot of each band, from the low bits of its hash, and its tag, from the high ones."""
    return (bands % SLOTS).astype(np.int64), (bands >> np.uint64(48)).astype(np.uint16)


class Shared(NamedTuple):
    """A passage of `length` words that begins at word `here`, in this `document` (from 1), and at word `there` of
    another text."""

    document: int
    here: int
    there: int
    length: int


class Passages:
    """A text, and which passages of it, of PASSAGE words or more, others share. A passage that stands in it twice
    counts once."""

    def __init__(self):
        self.words = array("I")
        self.starts = array("Q")  # of its documents
        self.windows, self.skipped = None, 0

    def add(self, hashes, begins):
        """Append words; `begins` says that a document begins with them. What is beyond MAX_PASSAGE_WORDS is not
        searched."""
        if begins:
            self.starts.append(len(self.words))
        fit = hashes[: MAX_PASSAGE_WORDS - len(self.words)]
        self.words.frombytes(fit.tobytes())
        self.skipped += len(hashes) - len(fit)

    def _index(self):
        self.text = np.frombuffer(self.words, np.uint32)
        self.shared = np.zeros(len(self.text), bool)
        grid = self.text[: len(self.text) // WINDOW * WINDOW].reshape(-1, 5, 5)
        fives = _fold([grid[:, :, k] for k in range(5)])
        self.windows, first = np.unique(_fold([fives[:, k] for k in range(5)]), return_index=True)
        self.at = first * WINDOW
        self.known = np.zeros(1 << 24, bool)  # a first sieve, so that only few windows are searched for
        self.known[self.windows >> np.uint64(40)] = True

    def find(self, hashes):
        """The Shared passages of this text and the words of another one."""
        if self.windows is None:
            self._index()
        if len(hashes) < PASSAGE or not len(self.windows):
            return []
        fives = _runs(hashes, 5)
        windows = _fold([fives[5 * k : len(fives) - 5 * (4 - k)] for k in range(5)])
        there = np.flatnonzero(self.known[windows >> np.uint64(40)])
        if not len(there):  # as a rule
            return []
        near = np.searchsorted(self.windows, windows[there]).clip(max=len(self.windows) - 1)
        true = self.windows[near] == windows[there]
        passages, covered = [], set()
        for i, j in zip(there[true].tolist(), self.at[near[true]].tolist()):
            if j in covered or self.shared[j : j + WINDOW].all():
                continue
            before = _agreement(hashes[:i][::-1], self.text[:j][::-1])
            length = before + _agreement(hashes[i:], self.text[j:])
            if length >= PASSAGE:
                document = int(np.searchsorted(self.starts, j, side="right"))
                passages.append(Shared(document, j - before, i - before, length))
                covered.update(range(j, j - before + length - WINDOW + 1, WINDOW))
        return passages

    def mark(self, passage):
        self.shared[passage.here : passage.here + passage.length] = True

    def count(self):
        """(number of passages, words in them)"""
        if self.windows is None:
            return 0, 0
        begins = self.shared.copy()
        begins[1:] &= ~self.shared[:-1]
        starts = np.frombuffer(self.starts, np.uint64).astype(np.int64)
        begins[starts[starts < len(begins)]] |= self.shared[starts[starts < len(begins)]]
        return int(begins.sum()), int(self.shared.sum())


def _fold(columns):
    """One hash (uint64) of the values in the same place of all columns, order included."""
    total = np.zeros(columns[0].shape, np.uint64)
    for column in columns:
        total += column
        total *= np.uint64(0x9E3779B97F4A7C15)  # the golden ratio, odd; array arithmetic wraps
    return total ^ (total >> np.uint64(32))


def _runs(hashes, count):
    """A hash of each run of `count` words."""
    return _fold([hashes[k : len(hashes) - count + 1 + k] for k in range(count)])


def _agreement(one, other):
    """How many values the two begin with in common."""
    done, step = 0, 256
    while True:
        a, b = one[done : done + step], other[done : done + step]
        size = min(len(a), len(b))
        differ = a[:size] != b[:size]
        if differ.any():
            return done + int(differ.argmax())
        done += size
        if size < step:
            return done
