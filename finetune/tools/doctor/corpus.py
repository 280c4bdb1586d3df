"""The corpus that the doctor's arguments name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from finetune.common.errors import UsageError
from finetune.config.paths import split_paths
from finetune.data import chat, sources
from finetune.data import dataset as datasets
from finetune.data.dataset import Dataset
from finetune.data.documents import Chunk
from finetune.data.prepare import find_texts, find_tokenizer, use_tokenizer
from finetune.data.sources import Source
from finetune.data.tables import ReadOptions
from finetune.data.tokenizer import Tokenizer
from finetune.tools.doctor.bin_reader import documents_of_bin
from finetune.tools.doctor.rows import Recorder


@dataclass
class Corpus:
    """Sources by split, or a prepared directory. `tokenizer` is None if GPT-2's cannot be found."""

    tokenizer: Tokenizer | None
    sources: dict[str, list[Source]] = field(default_factory=dict)
    dataset: Dataset | None = None
    recorders: dict[str, Recorder] = field(default_factory=dict)  # of conversations, for sources that are read again

    def read(self) -> dict[str, Iterator[Chunk]]:
        """The documents of each split."""
        if self.dataset:
            assert self.tokenizer
            return {split: documents_of_bin(self.dataset, split, self.tokenizer) for split in ("train", "val")}
        return {split: sources.documents_of(found) for split, found in self.sources.items()}

    def read_with_rows(self) -> dict[str, Iterator[Chunk]]:
        """The same with the conversations of rows in `recorders`. Raises UsageError if they cannot be had."""
        if self.dataset and self.dataset.meta.get("chat_template") not in (None, chat.TEMPLATE):
            problem = "holds conversations rendered by a chat template of the tokenizer's own"
            raise UsageError(f"{self.dataset.directory}: {problem}; --fix needs the sources of the data instead")
        for split, found in self.sources.items():
            self.recorders[split] = Recorder("")
            for source in found:
                source.template = self.recorders[split]
        return self.read()

    def has_messages(self, split: str) -> bool:
        """Whether a table that was read holds lists of messages, not prompts and completions."""
        taken = [taken for source in self.sources.get(split, []) for taken in source.taken]
        return any(table.shape is not None and table.shape.kind == "messages" for table in taken)


def open_corpus(names: list[str], val: str, read_options: ReadOptions, choice: str) -> Corpus:
    """The corpus of some `names`, a prepared directory or sources. `choice` is --tokenizer, "" by default. Raises
    UsageError."""
    if prepared := [name for name in names if datasets.is_prepared(name)]:
        if len(names) > 1 or val or read_options.columns():
            raise UsageError(f"{prepared[0]}: a prepared directory has its own val, and is examined by itself")
        return _open_prepared(prepared[0], choice)
    texts = find_texts(names, split_paths(val), read_options=read_options)
    try:
        tokenizer = find_tokenizer(choice or "gpt2")
    except UsageError:
        if choice:
            raise
        tokenizer = None  # the size is then estimated from the bytes
    use_tokenizer(texts, tokenizer)
    return Corpus(tokenizer, {split: texts[split] for split in ("train", "val") if texts[split]})


def _open_prepared(directory: str, choice: str) -> Corpus:
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
    return Corpus(tokenizer, dataset=dataset)
