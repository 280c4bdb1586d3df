"""How large a split is, and which model that is enough for."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np

from finetune.data.documents import Chunk
from finetune.data.tokenizer import Tokenizer
from finetune.tools.doctor.batches import Batch

BLOCK_SIZE = 1024  # GPT-2's positions
MIN_TOKENS = 100_000  # fewer may overfit (docs/guide.md)
# train tokens up to which docs/guide.md recommends a model, and the recipe for it
SIZES = [
    (1_000_000, "GPT-2 small (124M)", "recipes/small.yaml"),
    (10_000_000, "GPT-2 medium (355M)", "recipes/medium.yaml"),
    (float("inf"), "GPT-2 large (774M)", "recipes/large.yaml"),
]
FOR_CHARACTERS = "a small GPT from scratch, as pretrained ones have no characters", "recipes/shakespeare_char.yaml"
FOR_INSTRUCTIONS = "recipes/instruction.yaml"
BYTES_PER_TOKEN = 4  # of English in GPT-2's BPE, roughly


class Size:
    """Sums up the batches of a split. With `estimates`, tokens that were not counted are estimated from those that
    were; without, lengths are then in characters."""

    def __init__(self, estimates: bool) -> None:
        self.estimates, self.is_estimated, self.in_tokens = estimates, False, True
        self.characters = self.bytes = 0
        self.total = self.learned = 0.0  # tokens or characters, also of the lengths
        self.counted_tokens = self.counted_bytes = 0
        self.has_prompts = False
        self.lengths = array("Q")  # of the documents
        self.unfinished = 0.0  # length so far of a document that goes on

    @property
    def documents(self) -> int:
        return len(self.lengths)

    def add(self, batch: Batch) -> None:
        self.characters += int(batch.lengths.sum())
        self.bytes += int(batch.sizes.sum())
        lengths = self._lengths(batch)
        self.total += float(lengths.sum())
        learned = learned_shares(batch.chunks)
        self.has_prompts |= bool((learned < 1).any())
        self.learned += float((lengths * learned).sum())
        if not batch.is_part:
            sums = np.add.reduceat(lengths, batch.chunk_ends[:-1])
            self.lengths.frombytes(np.rint(sums).astype(np.uint64).tobytes())
            return
        self.unfinished += float(lengths.sum())
        if batch.chunks[-1].is_last:
            self.lengths.append(round(self.unfinished))
            self.unfinished = 0.0

    def _lengths(self, batch: Batch) -> np.ndarray:
        """The length of each chunk."""
        if batch.tokens is not None:
            self.counted_tokens += int(batch.tokens.sum())
            self.counted_bytes += int(batch.sizes.sum())
            return batch.tokens
        if self.estimates:
            self.is_estimated = True
            return batch.sizes * (self.counted_tokens / max(1, self.counted_bytes))
        self.in_tokens = False
        return batch.lengths

    def facts(self) -> dict:
        """Totals, quantiles of document lengths, and what a cut at BLOCK_SIZE would lose."""
        lengths = np.frombuffer(self.lengths, np.uint64).astype(np.int64)
        quantiles = [0] * 4
        if len(lengths):
            quantiles = np.quantile(lengths, [0.5, 0.9, 0.99, 1], method="inverted_cdf").tolist()
        unit = "tokens" if self.in_tokens else "characters"
        tokens = round(self.total) if self.in_tokens else None
        size: dict = {
            "documents": len(lengths),
            "characters": self.characters,
            "bytes": self.bytes,
            "tokens": tokens,
            "lengths": {"unit": unit, **dict(zip(("p50", "p90", "p99", "max"), quantiles))},
        }
        if tokens is not None:
            lost = np.maximum(lengths - BLOCK_SIZE, 0)
            size["tokens_per_byte"] = tokens / max(1, self.bytes)
            size["truncation"] = {
                "at": BLOCK_SIZE,
                "documents": int((lost > 0).sum()) / max(1, len(lost)),
                "tokens": int(lost.sum()) / max(1, tokens),
            }
        if self.is_estimated:
            size["estimated"] = True
        if self.has_prompts:
            size["learned"] = self.learned / max(1.0, self.total)
        return size


def learned_shares(chunks: Sequence[Chunk]) -> np.ndarray:
    """The part of each chunk that the model learns, 0 to 1."""
    shares = np.fromiter((chunk.is_target for chunk in chunks), np.float64, len(chunks))
    for i, chunk in enumerate(chunks):
        if chunk.spans is not None:
            shares[i] = sum(end - start for start, end in chunk.spans) / max(1, len(chunk.text))
    return shares


def recommend(train: dict, tokenizer: Tokenizer | None) -> dict:
    """The model and recipe for so many tokens; without a tokenizer their number is estimated from the bytes. Of
    instruction data only the learned tokens count, and their recipe is another."""
    tokens = train["bytes"] // BYTES_PER_TOKEN if train["tokens"] is None else train["tokens"]
    is_estimated = train["tokens"] is None or "estimated" in train
    model, recipe = next((model, recipe) for limit, model, recipe in SIZES if tokens < limit)
    if tokenizer and tokenizer.kind == "char":
        model, recipe = FOR_CHARACTERS
    size = {"tokens": tokens, "estimated": is_estimated, "may_overfit": tokens < MIN_TOKENS}
    if "learned" in train:
        recipe = FOR_INSTRUCTIONS
        size["learned_tokens"] = round(tokens * train["learned"])
    return {**size, "model": model, "recipe": recipe}
