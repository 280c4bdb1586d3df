"""The documents of sources and of bins, as Pieces."""

import itertools

import numpy as np

from finetune.data.pieces import Piece, cut

PIECE_TOKENS = 1 << 18  # about a megabyte; a longer document comes in pieces


def of_sources(sources):
    """The documents of some `sources.find`, in their order."""
    return cut(itertools.chain.from_iterable(source.pieces() for source in sources), 4 * PIECE_TOKENS)


def of_bin(dataset, split, tokenizer):
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
        while chunk := file.read(2 * PIECE_TOKENS):
            ids = np.concatenate([rest, np.frombuffer(chunk, "<u2")])
            here = ends[slice(*np.searchsorted(ends, [first, first + len(ids)], side="right"))]
            *whole, rest = np.split(ids, here - first)
            first += len(ids) - len(rest)
            for document in whole:
                document = document[: len(document) - (document[-1] == tokenizer.eot)]
                yield Piece(tokenizer.decode(document), ends=True, tokens=len(document))
            cuts = np.flatnonzero(space[rest]) if space[rest].any() else np.flatnonzero(character[rest])
            if len(rest) >= PIECE_TOKENS and len(cuts) and cuts[-1]:
                yield Piece(tokenizer.decode(rest[: cuts[-1]]), tokens=int(cuts[-1]))
                rest, first = rest[cuts[-1] :], first + int(cuts[-1])
