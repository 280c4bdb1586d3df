"""The corpus that the doctor's arguments name."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from finetune.common.errors import UsageError
from finetune.data import dataset as datasets
from finetune.data import sources
from finetune.data.documents import Chunk
from finetune.data.prepare import find_texts, find_tokenizer
from finetune.data.tables import ReadOptions
from finetune.data.tokenizer import Tokenizer
from finetune.tools.doctor.bin_reader import documents_of_bin

Reader = Callable[[], dict[str, Iterator[Chunk]]]  # reads the documents of each split anew


def open_corpus(names: list[str], val: str, read_options: ReadOptions, choice: str) -> tuple[Reader, Tokenizer | None]:
    """The corpus of some `names`, a prepared directory or sources, and the tokenizer for texts that are not tokenized,
    None if GPT-2's cannot be found. `choice` is --tokenizer, "" by default. Raises UsageError."""
    if prepared := [name for name in names if datasets.is_prepared(name)]:
        if len(names) > 1 or val or read_options.columns():
            raise UsageError(f"{prepared[0]}: a prepared directory has its own val, and is examined by itself")
        return _open_prepared(prepared[0], choice)
    try:
        tokenizer = find_tokenizer(choice or "gpt2")
    except UsageError:
        if choice:
            raise
        tokenizer = None  # the size is then estimated from the bytes
    texts = find_texts(names, val.split(",") if val else [], tokenizer, read_options=read_options)
    found = {split: texts[split] for split in ("train", "val") if texts[split]}
    return lambda: {split: sources.documents_of(found[split]) for split in found}, tokenizer


def _open_prepared(directory: str, choice: str) -> tuple[Reader, Tokenizer]:
    dataset = datasets.load(directory)
    if dataset.is_assumed and choice:
        dataset.forget_tokenizer()
    if dataset.tokenizer and choice:
        raise UsageError(f"--tokenizer: has no effect, because {directory} says which tokenizer it was made with")
    if dataset.tokenizer is None and dataset.note and not choice:
        raise UsageError(f"{dataset.note}; --tokenizer=DIR names it")
    # nanoGPT's bins are GPT-2's without a meta.pkl
    tokenizer = dataset.tokenizer or find_tokenizer(choice or "gpt2")
    owner = f"the tokenizer ({tokenizer.describe()['name']})"
    for split in ("train", "val"):
        datasets.check_ids(dataset, split, datasets.scan(dataset, split), tokenizer.vocab_size, owner)
    return lambda: {split: documents_of_bin(dataset, split, tokenizer) for split in ("train", "val")}, tokenizer
