"""What a model wrote and what stands verbatim in train.bin: found afterwards by `report`, prevented by `Followers`.

A span is a run of tokens of one sample. Prompts are no part of samples: what is given to a model is not copied by it.
"""

import numpy as np

CHUNK = 1 << 18  # tokens of train.bin that are looked at together; their hashes, 2 MB, stay in a processor's cache
PAIRS = 256  # equal places that are followed at a time to where they end
VERIFIED = 1 << 16  # places compared token by token at a time
ODD = 0x9E3779B97F4A7C15  # the golden ratio times 2^64; array arithmetic wraps


def report_copies(dataset, samples, n=8):
    """How much of `samples`, arrays of generated ids without their prompts, stands in train.bin of a `bins.Dataset`.

    `{"ngram": n, "copied": share of their runs of n tokens that stand in it (0 to 1), "longest": tokens of the longest
    span that does, "text": that span decoded, None without a tokenizer, "offset": a place of it in train.bin, in
    tokens, None where there is none}`. Exact: what hashes find is compared token by token. Memory does not depend on
    the size of the data."""
    samples = [np.asarray(sample, dtype=np.uint16) for sample in samples]
    most = max(map(len, samples), default=0)
    size = max(CHUNK, 4 * most)
    hashing = Hashing(max(size + most, sum(map(len, samples))))
    grams = longer = NGramIndex(samples, n, hashing)
    copied = np.zeros(len(grams.hashes), bool)
    length, place, offset = 0, 0, None  # of the longest span: its tokens, where in the samples, where in train.bin
    for first, chunk in _chunks(dataset.bin("train"), size, most):
        prefix, begins = hashing.prefix(chunk), np.arange(min(size, len(chunk)))
        at, known = grams.find(prefix, begins)
        _mark(copied, grams, chunk, at, known)
        while length < most:
            if longer.n != length + 1:
                longer = NGramIndex(samples, length + 1, hashing)
            here, known = longer.find(prefix, at if longer.n >= n else begins)  # a longer run begins with one of n
            pairs = zip(here[:PAIRS].tolist(), longer.first[known[:PAIRS]].tolist())
            best, i, j = max(((grams.agreement(j, chunk[i:]), i, j) for i, j in pairs), default=(0, 0, 0))
            if best <= length:
                break
            length, place, offset = best, j, first + i
    span = grams.tokens[place : place + length]
    return {
        "ngram": n,
        "copied": float(copied[grams.of_place].mean()) if len(grams.of_place) else 0.0,
        "longest": length,
        "text": dataset.tokenizer.decode(span) if dataset.tokenizer else None,
        "offset": offset,
    }


class CopyBlocker:
    """Which ids follow, anywhere in train.bin, the last `length` tokens of what has been written.

    Every stride-th run of `width` tokens is indexed, so that any `length` tokens hold exactly one of these, and what an
    index entry promises is compared with train.bin itself, which stays on disk. An entry takes 8 bytes and stride is
    half of `length`: 1.3 bytes a token for 12, 133 MB for 100 million tokens."""

    def __init__(self, dataset, length):
        self.length, self.stride = length, max(1, length // 2)
        self.width = length - self.stride + 1
        self.tokens = np.memmap(dataset.bin("train"), dtype="<u2", mode="r")
        count = max(0, (len(self.tokens) - self.width) // self.stride + 1)
        assert count < 1 << 32
        self.entries = np.empty(count, np.uint64)  # the upper half of each is a hash, the lower the number of the run
        for first in range(0, count, CHUNK):
            last = min(first + CHUNK, count)
            part = np.asarray(self.tokens[first * self.stride : (last - 1) * self.stride + self.width])
            self.entries[first:last] = self._hashes(part, self.stride) | np.arange(first, last, dtype=np.uint64)
        self.entries.sort()

    def __call__(self, ids):
        """The ids (sorted, distinct) that would make a span of `length` + 1 tokens out of a sample's `ids` so far."""
        if len(ids) < self.length:
            return np.empty(0, np.uint16)
        end = np.asarray(ids[-self.length :], dtype=np.uint16)
        hashes = self._hashes(end, 1)  # one of its first `stride` runs is indexed, wherever it stands
        low, high = (
            np.searchsorted(self.entries, hashes),
            np.searchsorted(self.entries, hashes | np.uint64(0xFFFFFFFF), side="right"),
        )
        found = []
        for before, (a, b) in enumerate(zip(low.tolist(), high.tolist())):
            for part in range(a, b, VERIFIED):
                numbers = (self.entries[part : min(b, part + VERIFIED)] & np.uint64(0xFFFFFFFF)).astype(np.int64)
                starts = numbers * self.stride - before
                starts = starts[(starts >= 0) & (starts + self.length < len(self.tokens))]
                same = (self.tokens[starts[:, None] + np.arange(self.length)] == end).all(1)
                found.append(np.unique(self.tokens[starts[same] + self.length]))
        return np.unique(np.concatenate(found)) if found else np.empty(0, np.uint16)

    def _hashes(self, tokens, stride):
        """In the upper 32 bits of each, a hash of every stride-th run of `width` tokens."""
        runs = np.lib.stride_tricks.sliding_window_view(tokens, self.width)[::stride]
        total = np.zeros(len(runs), np.uint64)
        for column in runs.T:
            total += column
            total += np.uint64(1)
            total *= np.uint64(ODD)
        return total & np.uint64(0xFFFFFFFF00000000)


class Hashing:
    """Hashes of all runs of n tokens at a time, for any n, from sums over what is before them: sum of (t_k + 1) ODD^(k
    + 1), k < n."""

    def __init__(self, most):
        self.powers = np.full(most, ODD, np.uint64).cumprod(dtype=np.uint64)
        self.inverse = np.full(most + 1, pow(ODD, -1, 1 << 64), np.uint64)
        self.inverse[0] = 1
        self.inverse = self.inverse.cumprod(dtype=np.uint64)

    def prefix(self, tokens):
        total = np.zeros(len(tokens) + 1, np.uint64)
        np.cumsum((tokens + np.uint64(1)) * self.powers[: len(tokens)], dtype=np.uint64, out=total[1:])
        return total

    def runs(self, prefix, begins, n):
        """The hashes of the runs of n tokens at these places."""
        return (prefix[begins + n] - prefix[begins]) * self.inverse[begins]


class NGramIndex:
    """The runs of n tokens in samples, to be found by their hashes (sorted, distinct)."""

    def __init__(self, samples, n, hashing):
        self.n, self.hashing = n, hashing
        self.tokens = np.concatenate([np.empty(0, np.uint16), *samples])
        self.left = np.concatenate(
            [np.empty(0, np.int64), *(np.arange(len(sample), 0, -1) for sample in samples)]
        )  # to the end of the sample
        places = np.flatnonzero(self.left >= n)
        self.hashes, first, self.of_place = np.unique(
            hashing.runs(hashing.prefix(self.tokens), places, n), return_index=True, return_inverse=True
        )
        self.first = places[first]  # a place where each of them stands
        self.shift = np.uint64(64 - min(24, max(16, 4 + len(self.hashes).bit_length())))
        self.sieve = np.zeros(1 << (64 - int(self.shift)), bool)  # so that only few hashes are searched for
        self.sieve[self.hashes >> self.shift] = True

    def find(self, prefix, begins):
        """Those of the places `begins` of other tokens where such a run seems to stand, and which one each is."""
        begins = begins[begins + self.n < len(prefix)]
        hashes = self.hashing.runs(prefix, begins, self.n)
        maybe = np.flatnonzero(self.sieve[hashes >> self.shift])
        if not len(maybe):
            return maybe, maybe
        near = np.searchsorted(self.hashes, hashes[maybe]).clip(max=len(self.hashes) - 1)
        true = self.hashes[near] == hashes[maybe]
        return begins[maybe[true]], near[true]

    def agreement(self, place, tokens):
        """With how many tokens from `place` on `tokens` begins, within one sample."""
        end = min(int(self.left[place]), len(tokens))
        differ = self.tokens[place : place + end] != tokens[:end]
        return int(differ.argmax()) if differ.any() else end


def _mark(copied, grams, chunk, at, known):
    """Set `copied` of the Grams that do stand where they seem to."""
    if len(at):
        new = ~copied[known]
        at, known = at[new], known[new]
    for part in range(0, len(at), VERIFIED):
        i, gram = at[part : part + VERIFIED], known[part : part + VERIFIED]
        each = np.arange(grams.n)
        same = (chunk[i[:, None] + each] == grams.tokens[grams.first[gram][:, None] + each]).all(1)
        copied[gram[same]] = True


def _chunks(path, size, overlap):
    """(offset, tokens) of a bin: `size` tokens from each offset on, and `overlap` more that belong to the next."""
    tokens = path.stat().st_size // 2
    with open(path, "rb") as file:
        for first in range(0, tokens, size):
            file.seek(2 * first)
            yield first, np.fromfile(file, dtype="<u2", count=size + overlap)
