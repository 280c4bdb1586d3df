"""How much data a plan is for: that of prepared datasets, or of --tokens."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from finetune.common.errors import UsageError
from finetune.config.recipe import Recipe
from finetune.data import arrow_cache
from finetune.data import dataset as data_dataset
from finetune.data.dataset import Dataset
from finetune.runs.datasets import is_isolated
from finetune.runs.inputs import ASSUMED_CHAR_VOCAB_SIZE
from finetune.runs.model_ref import ModelRef


@dataclass
class DataSize:
    """Tokens and blocks of each split."""

    name: str
    tokens: dict[str, int]
    rows: dict[str, int]
    tokenizer: str
    isolated: bool
    val_fraction: float | None  # None if unknown
    document: int | None = None  # mean tokens of a document, if documents are isolated
    exists: bool = True  # False for --tokens


def measured(recipe: Recipe, datasets: list[Dataset], model: ModelRef) -> DataSize:
    """The size of prepared datasets, checked as training checks them. Raises UsageError."""
    config, tokenizer, block_size = model.config, model.tokenizer, model.config.block_size
    isolated = is_isolated(recipe, datasets)
    tokens, rows, document_sizes = {}, {}, []
    for split in ("train", "val"):
        tokens[split] = rows[split] = 0
        for dataset in datasets:
            contents = data_dataset.scan(dataset, split)
            data_dataset.check_ids(dataset, split, contents, config.vocab_size, model.name)
            tokens[split] += contents.tokens
            if isolated:
                rows[split] += arrow_cache.num_packed_rows(dataset, split, block_size)
                document_sizes.append(contents.tokens / len(dataset.document_ends(split)))
            else:
                arrow_cache.check_length(dataset, split, block_size, contents.tokens)
                rows[split] += arrow_cache.num_rows(contents.tokens, block_size)
    return DataSize(
        ", ".join(str(dataset.directory) for dataset in datasets),
        tokens,
        rows,
        tokenizer.describe()["name"] if tokenizer else "an unknown tokenizer",
        isolated,
        datasets[0].meta.get("val_fraction"),
        max(2, round(statistics.mean(document_sizes))) if isolated else None,
    )


def imagined(recipe: Recipe, tokens: int, block_size: int) -> DataSize:
    """The size of --tokens. Raises UsageError."""
    val_fraction = recipe.val_fraction or 0.1
    val = max(1, round(tokens * val_fraction))
    counts = {"train": tokens - val, "val": val}
    for split, count in counts.items():
        if count < block_size + 1:
            needed = f"a block of {block_size:,} needs {block_size + 1:,}"
            raise UsageError(f"--tokens: {count:,} of {tokens:,} tokens would be {split}, and {needed}")
    rows = {split: arrow_cache.num_rows(count, block_size) for split, count in counts.items()}
    kinds = {"char": f"{ASSUMED_CHAR_VOCAB_SIZE} different characters", "auto": "gpt2"}
    tokenizer, isolated = kinds.get(recipe.tokenizer, recipe.tokenizer), recipe.isolate_documents == "true"
    return DataSize(f"{tokens:,} tokens (--tokens)", counts, rows, tokenizer, isolated, val_fraction, exists=False)
