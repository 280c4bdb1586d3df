"""What a tokenizer does not keep of a text: letters that its normalizer changes, and what it has no token for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from finetune.common.errors import UsageError
from finetune.data.base_tokenizer import without_surrogates
from finetune.data.split import Stream
from finetune.data.tokenizer import HFTokenizer, Tokenizer

FIRST, EACH, MOST = 20, 997, 50  # chunks that are sampled: the first ones, then one of so many
CHARACTERS, SHOWN = 2000, 20  # of a chunk, and of a difference


def sampled(stream: Stream, sample: list[str]) -> Stream:
    """The stream, some of whose texts go into `sample`."""
    for number, (split, chunk) in enumerate(stream):
        if (number < FIRST or number % EACH == 0) and len(sample) < MOST:
            sample.append(chunk.text[:CHARACTERS])
        yield split, chunk


def remarks(
    tokenizer: Tokenizer, sample: list[str], directory: Path, splits: dict[str, dict[str, Any]]
) -> Iterator[str]:
    """A line for each way in which the prepared tokens are not the text. Raises UsageError if nothing of it is left."""
    if not isinstance(tokenizer, HFTokenizer):
        return
    name, unknown = _unknown(tokenizer)
    bins = [np.memmap(directory / f"{split}.bin", tokenizer.dtype, "r") for split in splits]
    total = sum(map(len, bins))
    if unknown is not None and (count := sum(int(np.count_nonzero(ids == unknown)) for ids in bins)):
        ends = sum(int(np.count_nonzero(ids == tokenizer.eot)) for ids in bins) if tokenizer.eot is not None else 0
        if count + ends == total:
            raise UsageError(f"tokenizer: each token of the text is {name}, so nothing of it would be learned")
        yield f"warning: {count:,} of {total:,} tokens ({count / total:.1%}) are {name}, for what the vocabulary lacks"
    model = tokenizer.pipeline["model"]
    if model["type"] == "BPE" and not (name or tokenizer.is_byte_level or model.get("byte_fallback")):
        yield "warning: the tokenizer leaves out characters that its vocabulary lacks"
    for text in map(without_surrogates, sample):
        for part in (text, *text.split()):  # a word where the text has something unknown
            ids = tokenizer.encode(part, special=True)
            kept, part = tokenizer.decode(ids).strip(" "), part.strip(" ")
            if unknown not in ids and kept != part:
                yield f"warning: the tokenizer does not keep a text as it is: {_difference(part, kept)}"
                return


def _unknown(tokenizer: HFTokenizer) -> tuple[str | None, int | None]:
    """The token of what the vocabulary lacks, and its id."""
    model = tokenizer.pipeline["model"]
    i = model.get("unk_id")
    name = model.get("unk_token") if i is None else tokenizer.backend.id_to_token(i)
    return name, None if name is None else tokenizer.backend.token_to_id(name)


def _difference(text: str, kept: str) -> str:
    """`'The king' becomes 'the king'`, from the first difference on."""
    first = next((i for i, (one, other) in enumerate(zip(text, kept)) if one != other), min(len(text), len(kept)))
    first = max(text.rfind(" ", 0, first) + 1, first - SHOWN)
    return f"{text[first : first + SHOWN]!r} becomes {kept[first : first + SHOWN]!r}"
