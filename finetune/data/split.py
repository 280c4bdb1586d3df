"""Which documents are kept for validation, and documents that are too long."""

import hashlib
import itertools
from pathlib import Path

import numpy as np

from finetune.common.errors import UsageError
from finetune.data.documents import cut

PIECE_CHARACTERS = 1 << 18  # of a task for a thread


def survey_documents(texts, collect_alphabet):
    """`(facts, alphabet)`: sources as {name, bytes, sha256}, characters and documents in all; and their characters when
    asked for."""
    facts, alphabet = {"sources": [], "characters": 0, "documents": 0}, set()
    for source in texts:
        digest, characters, documents, empty = hashlib.sha256(), 0, 0, True
        for piece in source.pieces(digest):
            characters += len(piece.text)
            empty = empty and not piece.text
            if piece.ends:
                documents, empty = documents + (not empty), True
            if collect_alphabet:
                alphabet.update(piece.text)
        described = {
            "name": Path(source.name).name if source.files else source.name,
            "bytes": source.size(),
            "sha256": digest.hexdigest(),
        }
        facts["sources"].append(described if source.is_one_text else {**described, "documents": documents})
        facts["characters"] += characters
        facts["documents"] += documents
    return facts, alphabet


def split_documents(texts, facts, held_out, val_fraction, seed, anywhere):
    """`(stream, by)`: (split, Piece) of all documents that are not empty, cut for tokenization; and what was split:
    "text", "documents", "characters" of documents, or "sources"."""
    pieces = _not_empty(piece for source in texts for piece in source.pieces())
    one_text = len(texts) == 1 and texts[0].is_one_text
    if held_out:
        rest = _not_empty(piece for source in held_out for piece in source.pieces())
        runs = [("train", pieces), ("val", rest)]
        one_text = one_text and len(held_out) == 1 and held_out[0].is_one_text
        return ((split, piece) for split, run in runs for piece in cut(run, PIECE_CHARACTERS, anywhere)), (
            "text" if one_text else "sources"
        )
    kept = round(facts["documents"] * val_fraction)
    if kept and not one_text:
        chosen = set(np.random.default_rng(seed).choice(facts["documents"], kept, replace=False).tolist())
        return _by_documents(cut(pieces, PIECE_CHARACTERS, anywhere), chosen), "documents"
    num_train = int(facts["characters"] * (1 - val_fraction))
    if num_train in (0, facts["characters"]):
        raise UsageError(
            f"{facts['characters']:,} characters are too few to keep val_fraction={val_fraction} of them for validation"
        )
    runs = itertools.groupby(_by_characters(pieces, num_train), key=lambda item: item[0])
    stream = (
        (split, piece) for split, run in runs for piece in cut((piece for _, piece in run), PIECE_CHARACTERS, anywhere)
    )
    return stream, "text" if one_text else "characters"


def _not_empty(pieces):
    """The documents that have any text."""
    begun = False
    for piece in pieces:
        if piece.text or begun:
            begun = not piece.ends
            yield piece


def _by_characters(pieces, num_train):
    left = num_train
    for piece in pieces:
        if 0 < left < len(piece.text):
            yield "train", piece._replace(text=piece.text[:left], ends=False, stops=False)
            piece, left = piece._replace(text=piece.text[left:]), 0
        yield ("train" if left else "val"), piece
        left = max(0, left - len(piece.text))


def _by_documents(pieces, chosen):
    number = 0
    for piece in pieces:
        yield ("val" if number in chosen else "train"), piece
        number += piece.ends


class Overflow:
    """What becomes of documents with more than `max_tokens` tokens, and how many there were."""

    def __init__(self, answer, max_tokens):
        self.answer, self.max_tokens, self.count = answer, max_tokens, 0
        self.lengths, self.begun = {}, {}  # of the document that has not ended yet, by split: tokens; (pieces, ids)

    def kept(self, split, pieces, ids):
        """`(pieces, ids)` of those documents that stay. One that has not ended waits here, unless all of them stay
        anyway."""
        staying, waiting = ([], []), self.begun.pop(split, ([], []))
        for piece, part in zip(pieces, ids):
            self.lengths[split] = self.lengths.get(split, 0) + len(part)
            pieces_there, ids_there = staying if self.answer == "split" else waiting
            pieces_there.append(piece)
            ids_there.append(part)
            if self._is_too_long(split, waiting):
                waiting = ([], [])
            if piece.ends:
                self.count += self.lengths.pop(split) > self.max_tokens
                staying[0].extend(waiting[0])
                staying[1].extend(waiting[1])
                waiting = ([], [])
        self.begun[split] = waiting
        return staying

    def rest(self):
        """(split, pieces, ids) of what has no end, because val begins within it, and stays."""
        for split, (pieces, ids) in self.begun.items():
            self.count += self.lengths.get(split, 0) > self.max_tokens
            if pieces:
                yield split, pieces, ids

    def _is_too_long(self, split, waiting):
        """Whether the document that has begun need not wait any longer, being too long. Raises UsageError where that is
        an error."""
        if self.answer == "split" or self.lengths[split] <= self.max_tokens:
            return False
        if self.answer == "error":
            raise UsageError(
                f"a document has more than {self.max_tokens:,} tokens; --overflow=split keeps such, --overflow=drop"
                f" leaves them out. It begins {waiting[0][0].text[:60]!r}"
            )
        return True
