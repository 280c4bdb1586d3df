"""Chunks of documents to token ids."""

from __future__ import annotations

import numpy as np

from finetune.data.documents import Chunk, Encoded
from finetune.data.tokenizer import Tokenizer


def encode_chunks(chunks: list[Chunk], tokenizer: Tokenizer, eot: int | None) -> list[Encoded]:
    """The chunks with their ids, an end-of-text included after each document and each turn of an assistant.

    A chunk with spans becomes a chunk for each run of learned or other tokens, the first with the text. Its template
    wrote the end-of-text tokens."""
    end = np.array([] if eot is None else [eot], dtype=tokenizer.dtype)
    encoded: list[Encoded] = []
    plain = [chunk.text for chunk in chunks if chunk.spans is None and not chunk.special]
    ids_of_plain = iter(tokenizer.encode_many(plain))
    for chunk in chunks:
        if chunk.spans is not None:
            encoded += _encode_conversation(chunk, tokenizer)
            continue
        ids = tokenizer.encode(chunk.text, special=True) if chunk.special else next(ids_of_plain)
        if chunk.is_last or chunk.eot_after:
            ids = np.concatenate([ids, end])
        encoded.append((chunk, ids))
    return encoded


def _encode_conversation(chunk: Chunk, tokenizer: Tokenizer) -> list[Encoded]:
    ids, is_target = tokenizer.encode_marked(chunk.text, chunk.spans or ())
    borders = [0, *(np.flatnonzero(np.diff(is_target)) + 1).tolist(), len(ids)]
    runs = [(first, last) for first, last in zip(borders, borders[1:]) if last > first]
    encoded = []
    for number, (first, last) in enumerate(runs, 1):
        text, is_last = (chunk.text if number == 1 else ""), chunk.is_last and number == len(runs)
        run = Chunk(text, is_last, is_target=bool(is_target[first]))
        encoded.append((run, ids[first:last]))
    return encoded
