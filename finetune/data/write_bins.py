"""Encoded documents to train.bin and val.bin."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path

from finetune.common.errors import UsageError
from finetune.data.bin_writer import BinWriter
from finetune.data.documents import Encoded
from finetune.data.split import OverflowFilter
from finetune.data.tokenizer import Tokenizer


def write_bins(
    encoded: Iterable[tuple[str, list[Encoded]]],
    tokenizer: Tokenizer,
    eot: int | None,
    overflow: OverflowFilter,
    directory: Path,
) -> dict[str, dict]:
    """Write what passes the `overflow`; return the entry `splits` of meta.json. Raises UsageError for an empty split,
    and for answers without an end-of-text."""
    with contextlib.ExitStack() as stack:
        writers = {}
        for split in ("train", "val"):
            writers[split] = stack.enter_context(BinWriter(directory / f"{split}.bin", eot, tokenizer.dtype))
        for split, group in encoded:
            if kept := overflow.filter(split, group):
                writers[split].add(kept)
        for split, group in overflow.flush():
            writers[split].add(group)
        splits = {split: writer.close() for split, writer in writers.items()}
    for split, facts in splits.items():
        if not facts["tokens"]:
            problem = f"each of its documents has more than {overflow.max_tokens:,} tokens; --overflow=split keeps them"
            if overflow.policy == "split" or facts["documents"]:  # those that were dropped are not counted
                name = tokenizer.describe()["name"]
                problem = f"the tokenizer {name} has no token for its text; give another, such as --tokenizer=gpt2"
            raise UsageError(f"{split}.bin would be empty: {problem}")
        if tokenizer.eot is None and "targets" in facts:
            problem = "have no end-of-text, so nobody could learn where an answer ends"
            advice = "instruction data needs gpt2 or the tokenizer of a model directory"
            raise UsageError(f"tokenizer: {tokenizer.describe()['name']} {problem}; {advice}")
    return splits
