"""Documents as streams of pieces: what sources give, tokenizers take, and nothing ever holds whole."""

import itertools
import re
from typing import NamedTuple

import numpy as np

CHUNK_TOKENS = 1 << 18  # about a megabyte; a longer document comes in pieces


def documents_of_sources(sources):
    """The documents of some `sources.find`, in their order."""
    return cut(itertools.chain.from_iterable(source.pieces() for source in sources), 4 * CHUNK_TOKENS)


def documents_of_bin(dataset, split, tokenizer):
    """The documents of a bin, as Pieces without their end-of-text. A long one is cut before white space, else before a
    character."""
    space, character = np.zeros(1 << 16, bool), np.zeros(1 << 16, bool)
    tokens = (
        tokenizer.vocabulary
        if tokenizer.kind == "bpe"
        else {char.encode("utf-8", "surrogatepass"): i for i, char in enumerate(tokenizer.chars)}
    )
    for token, i in tokens.items():
        space[i] = token[:1].isspace()
        character[i] = token[0] < 0x80 or token[0] >= 0xC0  # not in the middle of one in UTF-8
    rest, first, ends = np.zeros(0, np.uint16), 0, dataset.document_ends(split)
    with open(dataset.bin(split), "rb") as file:
        while chunk := file.read(2 * CHUNK_TOKENS):
            ids = np.concatenate([rest, np.frombuffer(chunk, "<u2")])
            here = ends[slice(*np.searchsorted(ends, [first, first + len(ids)], side="right"))]
            *whole, rest = np.split(ids, here - first)
            first += len(ids) - len(rest)
            for document in whole:
                document = document[: len(document) - (document[-1] == tokenizer.eot)]
                yield Chunk(tokenizer.decode(document), ends=True, tokens=len(document))
            cuts = np.flatnonzero(space[rest]) if space[rest].any() else np.flatnonzero(character[rest])
            if len(rest) >= CHUNK_TOKENS and len(cuts) and cuts[-1]:
                yield Chunk(tokenizer.decode(rest[: cuts[-1]]), tokens=int(cuts[-1]))
                rest, first = rest[cuts[-1] :], first + int(cuts[-1])


class Chunk(NamedTuple):
    """A part of a document. `ends` with the last one; `target` where a model is to learn it, which prompts are not;
    `stops` where an end-of-text follows although the document goes on, after an assistant's turn; `tokens` are how many
    it is, where that is known."""

    text: str
    ends: bool = False
    target: bool = True
    stops: bool = False
    tokens: int | None = None


def cut(stream, size, anywhere=False):
    """The same documents in pieces of about `size` characters at most, cut only where GPT-2's pre-tokenizer cuts
    whatever follows, or `anywhere`. So encoding them one by one gives the ids of the whole. A text without any such
    place stays in one piece."""
    rest, searched, target = "", 0, True
    for piece in stream:
        if piece.target != target and rest:  # prompt and completion are encoded by themselves
            yield Chunk(rest, False, target)
            rest, searched = "", 0
        target = piece.target
        rest = rest + piece.text if rest else piece.text
        while len(rest) > size:
            place = size if anywhere else _last_cut(rest, size) or _first_cut(rest, max(size, searched))
            if not place:
                searched = len(rest) - 2
                break
            yield Chunk(rest[:place], False, target)
            rest, searched = rest[place:], 0
        if piece.ends or piece.stops:
            yield piece._replace(text=rest)
            rest, searched = "", 0
    if rest:
        yield Chunk(rest, False, target)


# a word before a single space and a word; a line end between words; a punctuation mark before a letter or digit
SAFE_CUT = re.compile(r"(?<=\w)(?= \w)|(?<=\w\n)(?=\w)|(?<=[.,;:!?。，；：！？、])(?=[^\W_])")
WINDOW = 4096


def _last_cut(text, size):
    """The last safe place in the WINDOW characters before `size`."""
    start = max(0, size - WINDOW)
    cuts = [match.start() for match in SAFE_CUT.finditer(text, start, size + 2) if start < match.start() <= size]
    return cuts[-1] if cuts else None


def _first_cut(text, start):
    match = SAFE_CUT.search(text, start)
    return match.start() if match and match.start() < len(text) - 2 else None  # what follows the end is not known yet
