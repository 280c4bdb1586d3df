"""The first documents of a corpus as the model sees them: what is context, and what is learned."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from finetune.data.documents import Chunk

DOCUMENTS, CHARACTERS, LINES = 3, 400, 8  # shown: documents, characters of each, lines of each
UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")  # steers a terminal, or is not UTF-8

Piece = list  # [text, is_target]


def sample_documents(chunks: Iterable[Chunk], eot: str | None = None) -> list[list[Piece]]:
    """The first documents as pieces [text, is_target], each document cut after some characters.

    `eot` is the end-of-text that follows documents, None if there is none."""
    documents: list[list[Piece]] = [[]]
    for chunk in chunks:
        document = documents[-1]
        end = (eot or "") if (chunk.is_last or chunk.eot_after) and chunk.spans is None else ""
        for text, is_target in _pieces(chunk, end):
            room = CHARACTERS - sum(len(text) for text, _ in document)
            if text and room > 0:
                document.append([text if len(text) <= room else f"{text[:room]}…", is_target])
        is_full = sum(len(text) for text, _ in document) >= CHARACTERS
        if chunk.is_last or (is_full and len(documents) == DOCUMENTS):
            if len(documents) == DOCUMENTS:
                break
            documents.append([])
    return [document for document in documents if document]


class Sampler:
    """Passes chunks on and keeps what `sample_documents` needs of them."""

    def __init__(self) -> None:
        self.kept: list[Chunk] = []

    def pass_on(self, chunks: Iterable[Chunk]) -> Iterator[Chunk]:
        documents = size = 0
        for chunk in chunks:
            if documents < DOCUMENTS:
                if size <= CHARACTERS or chunk.is_last:
                    spans = chunk.spans and tuple(span for span in chunk.spans if span[0] <= CHARACTERS)
                    self.kept.append(chunk._replace(text=chunk.text[: CHARACTERS + 1], spans=spans))
                size = 0 if chunk.is_last else size + len(chunk.text)
                documents += chunk.is_last
            yield chunk


def _pieces(chunk: Chunk, end: str) -> Iterator[tuple[str, bool]]:
    if chunk.spans is None:
        yield chunk.text + end, chunk.is_target
        return
    place = 0
    for start, stop in chunk.spans:
        yield chunk.text[place:start], False
        yield chunk.text[start:stop], True
        place = stop
    yield chunk.text[place:], False


def show_sample(sample: list[list[Piece]]) -> str:
    """The documents as text: lines behind > are learned, lines behind | are context."""
    lines = []
    for number, document in enumerate(sample, 1):
        shown = []
        for text, is_target in document:
            gutter = ">" if is_target else "|"
            text = UNPRINTABLE.sub(lambda found: repr(found[0])[1:-1], text.removesuffix("\n"))
            shown += [f"  {gutter} {line}" for line in text.split("\n")]
        more = [f"  … {len(shown) - LINES:,} lines more"] if len(shown) > LINES else []
        lines += [f"document {number} (> is learned):", *shown[:LINES], *more]
    return "\n".join(lines)
