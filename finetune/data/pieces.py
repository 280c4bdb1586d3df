"""Documents as streams of pieces: what sources give, tokenizers take, and nothing ever holds whole."""

import re
from typing import NamedTuple


class Piece(NamedTuple):
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
            yield Piece(rest, False, target)
            rest, searched = "", 0
        target = piece.target
        rest = rest + piece.text if rest else piece.text
        while len(rest) > size:
            place = size if anywhere else _last_cut(rest, size) or _first_cut(rest, max(size, searched))
            if not place:
                searched = len(rest) - 2
                break
            yield Piece(rest[:place], False, target)
            rest, searched = rest[place:], 0
        if piece.ends or piece.stops:
            yield piece._replace(text=rest)
            rest, searched = "", 0
    if rest:
        yield Piece(rest, False, target)


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
