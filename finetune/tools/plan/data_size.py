"""How much data a plan is for: that of prepared datasets, or of --tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from finetune.common.errors import UsageError
from finetune.config.recipe import Recipe
from finetune.data import arrow_cache, packing
from finetune.data import dataset as data_dataset
from finetune.data.dataset import Dataset
from finetune.gpt import GPTConfig
from finetune.runs import inputs
from finetune.runs.inputs import PLANNED_CHARACTERS


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


def measured(recipe: Recipe, datasets: list[Dataset], config: GPTConfig, block_size: int, tokenizer: Any) -> DataSize:
    """Of prepared directories, checked as training checks them."""
    isolated, tokens, rows, documents = inputs.is_isolated(recipe, datasets), {}, {}, []
    for split in ("train", "val"):
        tokens[split] = rows[split] = 0
        for dataset in datasets:
            contents = data_dataset.scan(dataset, split)
            data_dataset.check_ids(dataset, split, contents, config.vocab_size, recipe.init_from)
            tokens[split] += contents.tokens
            if isolated:
                ends = dataset.document_ends(split)
                packed = packing.pack(ends, block_size + 1)[2]
                rows[split] += int(packed[-1]) + 1 if len(packed) else 0
                documents.append(contents.tokens / len(ends))
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
        max(2, round(sum(documents) / len(documents))) if isolated else None,
    )


def imagined(recipe: Recipe, tokens: int, block_size: int) -> DataSize:
    """Of --tokens."""
    val_fraction = recipe.val_fraction or 0.1
    val = max(1, round(tokens * val_fraction))
    counts = {"train": tokens - val, "val": val}
    for split, count in counts.items():
        if count < block_size + 1:
            needed = f"a block of {block_size:,} needs {block_size + 1:,}"
            raise UsageError(f"--tokens: {count:,} of {tokens:,} tokens would be {split}, and {needed}")
    rows = {split: arrow_cache.num_rows(count, block_size) for split, count in counts.items()}
    kinds = {"char": f"{PLANNED_CHARACTERS} different characters", "auto": "gpt2"}
    kind, isolated = kinds.get(recipe.tokenizer, recipe.tokenizer), recipe.isolate_documents == "true"
    return DataSize(f"{tokens:,} tokens (--tokens)", counts, rows, kind, isolated, val_fraction, exists=False)
