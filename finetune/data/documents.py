"""The documents of text files and of bins."""

from typing import NamedTuple

import numpy as np

from finetune.data import sources

PIECE_TOKENS = 1 << 18  # about a megabyte; a longer document comes in pieces


class Piece(NamedTuple):
    """A document, or a part of a long one: then `last` is False on all parts but the last. `tokens` is None when nobody counted."""

    text: str
    tokens: int | None = None
    last: bool = True


def of_texts(names):
    """The documents of text files: each file is one. Raises UsageError."""
    return ("".join(source.texts()) for source in sources.find(names))


def of_bin(dataset, split, tokenizer):
    """The documents of a bin, as Pieces: end-of-text ends each. A long one is cut before white space, else before a character."""
    space, character = np.zeros(1 << 16, bool), np.zeros(1 << 16, bool)
    tokens = tokenizer.vocabulary if tokenizer.kind == "bpe" else {char.encode("utf-8", "surrogatepass"): i for i, char in enumerate(tokenizer.chars)}
    for token, i in tokens.items():
        space[i] = token[:1].isspace()
        character[i] = token[0] < 0x80 or token[0] >= 0xC0  # not in the middle of one in UTF-8
    rest = np.zeros(0, np.uint16)
    with open(dataset.bin(split), "rb") as file:
        while chunk := file.read(2 * PIECE_TOKENS):
            ids = np.concatenate([rest, np.frombuffer(chunk, "<u2")])
            *whole, rest = np.split(ids, np.flatnonzero(ids == tokenizer.eot) + 1) if tokenizer.eot is not None else [ids]
            for document in whole:
                yield Piece(tokenizer.decode(document[:-1]), len(document) - 1)
            cuts = np.flatnonzero(space[rest]) if space[rest].any() else np.flatnonzero(character[rest])
            if len(rest) >= PIECE_TOKENS and len(cuts) and cuts[-1]:
                yield Piece(tokenizer.decode(rest[: cuts[-1]]), int(cuts[-1]), last=False)
                rest = rest[cuts[-1] :]
    if len(rest):
        yield Piece(tokenizer.decode(rest), len(rest))
