"""What a tokenizer does not keep of a text: letters that its normalizer changes, and what it has no token for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from finetune.common.errors import UsageError
from finetune.data.base_tokenizer import without_surrogates
from finetune.data.bpe_files import bytes_to_unicode
from finetune.data.split import Stream
from finetune.data.tokenizer import HFTokenizer, Tokenizer

FIRST, EACH, MOST = 20, 997, 50  # chunks that are sampled: the first ones, then one of so many
CHARACTERS, SHOWN = 2000, 20  # of a chunk, and of a difference
SLICE = 1 << 24  # tokens that are counted at a time

Sample = list[tuple[str, bool]]  # (text, whether tokens spelled in it are tokens)


def sampled(stream: Stream, sample: Sample) -> Stream:
    """The stream, some of whose texts go into `sample`."""
    for number, (split, chunk) in enumerate(stream):
        if (number < FIRST or number % EACH == 0) and len(sample) < MOST:
            sample.append((chunk.text[:CHARACTERS], chunk.special or chunk.spans is not None))
        yield split, chunk


def remarks(
    tokenizer: Tokenizer, eot: int | None, sample: Sample, directory: Path, splits: dict[str, dict[str, Any]]
) -> Iterator[str]:
    """A line for each way in which the prepared tokens, with `eot` after documents, are not the text. Raises UsageError
    if nothing of it is left."""
    if not isinstance(tokenizer, HFTokenizer):
        return
    name, unknown = _unknown(tokenizer)
    model = tokenizer.pipeline["model"]
    is_byte_bpe = model["type"] == "BPE" and tokenizer.is_byte_level
    has_all_bytes = is_byte_bpe and tokenizer.base_ids.keys() >= {*bytes_to_unicode().values()}
    is_end = unknown == eot and any("targets" in facts for facts in splits.values())  # of some of the turns
    if unknown is not None and not (has_all_bytes or is_end):
        bins = [np.memmap(directory / f"{split}.bin", tokenizer.dtype, "r") for split in splits]
        count, total = _count(bins, unknown), sum(map(len, bins))
        if unknown == eot:
            ends = sum(facts["documents"] for facts in splits.values())
            count -= ends
        else:
            ends = 0 if tokenizer.eot is None or tokenizer.eot == unknown else _count(bins, tokenizer.eot)
        if count > 0 and count + ends == total:
            raise UsageError(f"tokenizer: each token of the text is {name}, so nothing of it would be learned")
        if count > 0:
            share = f"{count:,} of {total:,} tokens ({count / total:.1%})"
            yield f"warning: {share} are {name}, for what the vocabulary lacks"
    if model["type"] == "BPE" and not (name or has_all_bytes or model.get("byte_fallback")):
        yield "warning: the tokenizer leaves out characters that its vocabulary lacks"
    if difference := _first_loss(tokenizer, unknown, sample):
        yield f"warning: the tokenizer does not keep a text as it is: {difference}"


def _count(bins: list[np.memmap], token: int) -> int:
    slices = (ids[first : first + SLICE] for ids in bins for first in range(0, len(ids), SLICE))
    return sum(int(np.count_nonzero(part == token)) for part in slices)


def _first_loss(tokenizer: HFTokenizer, unknown: int | None, sample: Sample) -> str | None:
    """The first difference of a text from what its tokens spell."""
    decoder = tokenizer.pipeline["decoder"] or {}
    # then decoding moves the spaces beside punctuation
    moves_spaces = decoder.get("type") == "WordPiece" or tokenizer.auto.clean_up_tokenization_spaces
    for text, special in sample:
        text = without_surrogates(text)
        for part in (text, *text.split()):  # a word where the text has something unknown
            ids = tokenizer.encode(part, special=special)
            kept, part = tokenizer.decode(ids).strip(" "), part.strip(" ")
            is_kept = kept.replace(" ", "") == part.replace(" ", "") if moves_spaces else kept == part
            if unknown not in ids and not is_kept:
                return _difference(part, kept)
    return None


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
