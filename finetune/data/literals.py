"""An end-of-text token that is spelled out in a text, such as <|endoftext|>: counted, or the end of a document."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from finetune.data.documents import Chunk


class LiteralCounter:
    """Passes chunks on and counts a literal in them, also across the border of two chunks of a document."""

    def __init__(self, literal: str) -> None:
        self.literal, self.count = literal, 0

    def pass_on(self, chunks: Iterable[Chunk]) -> Iterator[Chunk]:
        tail = ""
        for chunk in chunks:
            if chunk.spans is None:
                text = tail + chunk.text
                self.count += text.count(self.literal)
                tail = "" if chunk.is_last or chunk.eot_after else text[max(0, len(text) - len(self.literal) + 1) :]
            yield chunk


def cut_at(chunks: Iterable[Chunk], literal: str) -> Iterator[Chunk]:
    """The documents cut where the literal stands. It is left out, with a line end behind it."""
    rest, is_behind = "", False  # text that may end within the literal; whether the literal stands before it
    for chunk in chunks:
        if chunk.spans is not None or not chunk.is_target or chunk.eot_after:
            yield chunk
            continue
        *complete, last = (rest + chunk.text).split(literal)
        for part in complete:
            yield chunk._replace(text=part.removeprefix("\n") if is_behind else part, is_last=True)
            is_behind = True
        if chunk.is_last:
            if last.strip() or not is_behind:
                yield chunk._replace(text=last.removeprefix("\n") if is_behind else last)
            rest, is_behind = "", False
            continue
        kept = max(0, len(last) - len(literal))
        if kept:
            yield chunk._replace(text=last[:kept].removeprefix("\n") if is_behind else last[:kept])
            is_behind = False
        rest = last[kept:]


def end_lines(chunks: Iterable[Chunk]) -> Iterator[Chunk]:
    """The documents, each with a line end."""
    text = ""
    for chunk in chunks:
        text = chunk.text or text
        if chunk.is_last and text and not text.endswith("\n"):
            chunk = chunk._replace(text=chunk.text + "\n")
        if chunk.is_last:
            text = ""
        yield chunk
