"""Verbatim copies of train.bin in generated text: `report_copies` finds them, `CopyBlocker` prevents them.

A span is a run of tokens of one sample. Samples are without their prompts, which the model did not write."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from finetune.common.errors import UsageError
from finetune.data.dataset import Dataset

CHUNK_TOKENS = 1 << 18  # tokens of train.bin hashed at a time; their hashes, 2 MB, stay in a processor's cache
MAX_PAIRS = 256  # matches that are followed to their end at a time
VERIFIED = 1 << 16  # matches compared token by token at a time
MULTIPLIER = 0x9E3779B97F4A7C15  # the golden ratio times 2^64, odd; array arithmetic wraps


def report_copies(
    dataset: Dataset,
    samples: Sequence[Sequence[int] | np.ndarray],
    n: int = 8,
    chunk_tokens: int = CHUNK_TOKENS,
    max_pairs: int = MAX_PAIRS,
) -> dict:
    """How much of `samples`, the generated ids of each, stands verbatim in train.bin.

    Returns `ngram`: n; `copied`: the share of runs of n tokens that stand in it, 0 to 1; `longest`: tokens of the
    longest span that does; `text`: that span, None without a tokenizer; `offset`: a place of it in train.bin, in
    tokens, or None. A run of n tokens of white space is none. Exact: hash matches are compared token by token. Memory
    does not depend on the size of the data."""
    texts = [
        part for sample in samples for part in _without_blanks(np.asarray(sample, dtype=dataset.dtype), dataset, n)
    ]
    max_length = max(map(len, texts), default=0)
    size = max(chunk_tokens, 4 * max_length)
    hashing = PrefixHash(max(size + max_length, sum(map(len, texts))))
    texts.append(np.empty(0, dataset.dtype))  # so that none is no special case
    ngrams = longer = NGramIndex(texts, n, hashing)
    copied, of_place = np.zeros(len(ngrams.first), bool), ngrams.index.of_place
    length, place, offset = 0, 0, None  # the longest span: its tokens, its place in the samples and in train.bin
    for first, chunk in _chunks(dataset, size, max_length):
        prefix, starts = hashing.prefix(chunk), np.arange(min(size, len(chunk)))
        matches, found = ngrams.find(prefix, starts)
        _mark_copied(copied, ngrams, chunk, matches, found)
        while length < max_length:
            if longer.n != length + 1:
                longer = NGramIndex(texts, length + 1, hashing)
            # a run of more than n tokens begins with one of n
            longer_matches, longer_found = longer.find(prefix, matches if longer.n >= n else starts)
            pairs = zip(longer_matches[:max_pairs].tolist(), longer.first[longer_found[:max_pairs]].tolist())
            spans = [(ngrams.agreement(j, chunk[i:]), i, j) for i, j in pairs]
            best, start, sample_place = max(spans, default=(0, 0, 0))
            if best <= length:
                break
            length, place, offset = best, sample_place, first + start
    span = ngrams.tokens[place : place + length]
    return {
        "ngram": n,
        "copied": float(copied[of_place].mean()) if len(of_place) else 0.0,
        "longest": length,
        "text": dataset.tokenizer.decode(span) if dataset.tokenizer else None,
        "offset": offset,
    }


class CopyBlocker:
    """Finds the ids that follow, anywhere in train.bin, the last `length` tokens written.

    Every stride-th run of `width` tokens is indexed, so that any `length` tokens contain exactly one of them. A match
    is compared with train.bin itself, which stays on disk. An entry takes 8 bytes and the stride is half of `length`:
    for 12 that is 1.3 bytes a token, 133 MB for 100 million tokens."""

    def __init__(self, dataset: Dataset, length: int) -> None:
        self.length, self.stride = length, max(1, length // 2)
        self.width = length - self.stride + 1
        self.tokens = dataset.open_bin("train")
        count = max(0, (len(self.tokens) - self.width) // self.stride + 1)
        if count > 1 << 32:
            problem = f"holds {len(self.tokens):,} tokens, of which an index is too large"
            way = f"--max_copy={2 * -(-len(self.tokens) >> 32)} or more makes it smaller"
            raise UsageError(f"max_copy: {dataset.bin('train')} {problem}; {way}")
        self.entries = np.empty(count, np.uint64)  # the upper half of each is a hash, the lower the number of the run
        for first in range(0, count, CHUNK_TOKENS):
            last = min(first + CHUNK_TOKENS, count)
            part = np.asarray(self.tokens[first * self.stride : (last - 1) * self.stride + self.width])
            self.entries[first:last] = self._hashes(part, self.stride) | np.arange(first, last, dtype=np.uint64)
        self.entries.sort()

    def __call__(self, ids: Sequence[int]) -> np.ndarray:
        """The ids (sorted, distinct) that would extend a sample's `ids` to a copied span of `length` + 1."""
        if len(ids) < self.length:
            return np.empty(0, self.tokens.dtype)
        end = np.asarray(ids[-self.length :], dtype=self.tokens.dtype)
        hashes = self._hashes(end, 1)  # one of its first `stride` runs is indexed, wherever it stands
        low = np.searchsorted(self.entries, hashes)
        high = np.searchsorted(self.entries, hashes | np.uint64(0xFFFFFFFF), side="right")
        followers = [np.empty(0, self.tokens.dtype)]
        for before in range(len(hashes)):  # tokens between the start of `end` and the run
            for first in range(low[before], high[before], VERIFIED):
                entries = self.entries[first : min(first + VERIFIED, high[before])]
                starts = (entries & np.uint64(0xFFFFFFFF)).astype(np.int64) * self.stride - before
                starts = starts[(starts >= 0) & (starts + self.length < len(self.tokens))]
                is_copy = (self.tokens[starts[:, None] + np.arange(self.length)] == end).all(1)
                followers.append(np.unique(self.tokens[starts[is_copy] + self.length]))
        return np.unique(np.concatenate(followers))

    def _hashes(self, tokens: np.ndarray, stride: int) -> np.ndarray:
        """In the upper 32 bits of each uint64, a hash of every stride-th run of `width` tokens."""
        runs = np.lib.stride_tricks.sliding_window_view(tokens, self.width)[::stride]
        total = np.zeros(len(runs), np.uint64)
        for column in runs.T:
            total += column
            total += np.uint64(1)
            total *= np.uint64(MULTIPLIER)
        return total & np.uint64(0xFFFFFFFF00000000)


class PrefixHash:
    """Hashes of all runs of n tokens, for any n, from prefix sums: sum of (t_k + 1) MULTIPLIER^(k + 1) for k < n."""

    def __init__(self, max_tokens: int) -> None:
        self.powers = np.full(max_tokens, MULTIPLIER, np.uint64).cumprod(dtype=np.uint64)
        inverse = np.full(max_tokens + 1, pow(MULTIPLIER, -1, 1 << 64), np.uint64)
        inverse[0] = 1
        self.inverse_powers = inverse.cumprod(dtype=np.uint64)

    def prefix(self, tokens: np.ndarray) -> np.ndarray:
        """The sums before each token and behind the last, uint64 (len(tokens) + 1,)."""
        total = np.zeros(len(tokens) + 1, np.uint64)
        np.cumsum((tokens + np.uint64(1)) * self.powers[: len(tokens)], dtype=np.uint64, out=total[1:])
        return total

    def runs(self, prefix: np.ndarray, starts: np.ndarray, n: int | np.ndarray) -> np.ndarray:
        """The hash of the run of n tokens at each start; n may be one for each."""
        return (prefix[starts + n] - prefix[starts]) * self.inverse_powers[starts]


class HashIndex:
    """The distinct values of some hashes (uint64): `first` is a place of each in them, `of_place` the value of each."""

    def __init__(self, hashes: np.ndarray) -> None:
        self.values, self.first, self.of_place = np.unique(hashes, return_index=True, return_inverse=True)
        self.shift = np.uint64(64 - min(24, max(16, 4 + len(self.values).bit_length())))
        self.sieve = np.zeros(1 << (64 - int(self.shift)), bool)  # leaves few hashes for the binary search
        self.sieve[self.values >> self.shift] = True

    def find(self, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The places in `hashes` that hold an indexed value, and the index of each of these values."""
        maybe = np.flatnonzero(self.sieve[hashes >> self.shift])
        if not len(maybe):  # usually
            return maybe, maybe
        nearest = np.searchsorted(self.values, hashes[maybe]).clip(max=len(self.values) - 1)
        is_found = self.values[nearest] == hashes[maybe]
        return maybe[is_found], nearest[is_found]


class NGramIndex:
    """The runs of n tokens in samples, found by their hashes."""

    def __init__(self, samples: list[np.ndarray], n: int, hashing: PrefixHash) -> None:
        self.n, self.hashing = n, hashing
        self.tokens = np.concatenate(samples)
        lengths = [np.arange(len(sample), 0, -1) for sample in samples]
        self.left = np.concatenate([np.empty(0, np.int64), *lengths])  # tokens to the end of the sample
        places = np.flatnonzero(self.left >= n)
        self.index = HashIndex(hashing.runs(hashing.prefix(self.tokens), places, n))
        self.first = places[self.index.first]  # a place of each distinct hash

    def find(self, prefix: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which `starts` of other tokens begin a run that is probably indexed, and the index of its hash."""
        starts = starts[starts + self.n < len(prefix)]
        found, index = self.index.find(self.hashing.runs(prefix, starts, self.n))
        return starts[found], index

    def agreement(self, place: int, tokens: np.ndarray) -> int:
        """How many of `tokens` stand at `place`, within one sample."""
        end = min(int(self.left[place]), len(tokens))
        differs = self.tokens[place : place + end] != tokens[:end]
        return int(differs.argmax()) if differs.any() else end


def _without_blanks(sample: np.ndarray, dataset: Dataset, n: int) -> list[np.ndarray]:
    """The parts of a sample between its runs of n or more tokens of white space, which every text has."""
    if not dataset.tokenizer:
        return [sample]
    blank = [token for token in np.unique(sample) if dataset.tokenizer.decode(np.asarray([token])).isspace()]
    is_blank = np.concatenate([[False], np.isin(sample, blank), [False]])
    begins, ends = np.flatnonzero(np.diff(is_blank.astype(np.int8))).reshape(-1, 2).T
    long = ends - begins >= n
    cuts = np.stack([begins[long], ends[long]], 1).ravel()
    return np.split(sample, cuts)[::2]


def _mark_copied(
    copied: np.ndarray, ngrams: NGramIndex, chunk: np.ndarray, matches: np.ndarray, found: np.ndarray
) -> None:
    """Set `copied` of the n-grams that really stand in the chunk where their hash does."""
    if len(matches):
        is_new = ~copied[found]
        matches, found = matches[is_new], found[is_new]
    run = np.arange(ngrams.n)
    for first in range(0, len(matches), VERIFIED):
        starts, index = matches[first : first + VERIFIED], found[first : first + VERIFIED]
        is_same = (chunk[starts[:, None] + run] == ngrams.tokens[ngrams.first[index][:, None] + run]).all(1)
        copied[index[is_same]] = True


def _chunks(dataset: Dataset, size: int, overlap: int) -> Iterator[tuple[int, np.ndarray]]:
    """(offset, tokens) of train.bin: `size` tokens from each offset on, and `overlap` more that belong to the next."""
    with open(dataset.bin("train"), "rb") as file:
        for first in range(0, dataset.num_tokens("train"), size):
            file.seek(dataset.dtype.itemsize * first)
            yield first, np.fromfile(file, dtype=dataset.dtype, count=size + overlap)
