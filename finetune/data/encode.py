"""Chunks of documents to token ids."""

from __future__ import annotations

import numpy as np

from finetune.data.documents import Chunk, Encoded
from finetune.data.tokenizer import Tokenizer


def encode_chunks(chunks: list[Chunk], tokenizer: Tokenizer, eot: int | None) -> list[Encoded]:
    """The chunks with their ids, an end-of-text included after each document and each turn of an assistant.

    A chunk with spans becomes a chunk for each run of learned or other tokens, the first with the text; no end-of-text
    follows if its template wrote one."""
    end = np.array([] if eot is None else [eot], dtype=tokenizer.dtype)
    encoded: list[Encoded] = []
    for chunk in chunks:
        if chunk.spans is not None:
            encoded += _encode_conversation(chunk, tokenizer, end)
            continue
        ids = tokenizer.encode(chunk.text, special=chunk.special)
        if chunk.is_last or chunk.eot_after:
            ids = np.concatenate([ids, end])
        encoded.append((chunk, ids))
    return encoded


def _encode_conversation(chunk: Chunk, tokenizer: Tokenizer, end: np.ndarray) -> list[Encoded]:
    ids, is_target = tokenizer.encode_marked(chunk.text, chunk.spans or ())
    if chunk.is_last and len(end) and (not len(ids) or ids[-1] != end[0]):
        ids, is_target = np.concatenate([ids, end]), np.append(is_target, is_target[-1:] if len(ids) else False)
    borders = [0, *(np.flatnonzero(np.diff(is_target)) + 1).tolist(), len(ids)]
    runs = [(first, last) for first, last in zip(borders, borders[1:]) if last > first]
    encoded = []
    for number, (first, last) in enumerate(runs, 1):
        text, is_last = (chunk.text if number == 1 else ""), chunk.is_last and number == len(runs)
        run = chunk._replace(text=text, is_last=is_last, is_target=bool(is_target[first]), spans=None)
        encoded.append((run, ids[first:last]))
    return encoded
