"""Tokenizers that did not exist before: trained on a text, or another one with more tokens."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from finetune.common.errors import UsageError, disk_errors
from finetune.data import bpe_files
from finetune.data.base_tokenizer import without_surrogates
from finetune.data.tokenizer import BPETokenizer, CharTokenizer, HFTokenizer, Tokenizer, from_directory

TRAIN = "train:"  # --tokenizer=train:8000
SMALLEST, LARGEST = 257, 1 << 20  # ids: the bytes and end-of-text; more would take hours


def size_to_train(choice: object) -> int | None:
    """8000 of "train:8000"; None of another choice. Raises UsageError."""
    if not isinstance(choice, str) or not choice.startswith(TRAIN):
        return None
    number = choice.removeprefix(TRAIN).replace("_", "")
    if not number.isdecimal() or not SMALLEST <= int(number) <= LARGEST:
        limits = f"from {SMALLEST:,} (the bytes and end-of-text) to {LARGEST:,}"
        raise UsageError(f"tokenizer {choice}: write train:SIZE, with a vocabulary size {limits}")
    return int(number)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> BPETokenizer:
    """A byte-level BPE with GPT-2's pre-tokenizer, <|endoftext|> as its last id, the same each time. It has fewer than
    `vocab_size` ids if the texts have fewer pairs that occur twice."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(map(without_surrogates, texts), trainer)
    byte_of = {letter: byte for byte, letter in bpe_files.bytes_to_unicode().items()}
    ids = backend.get_vocab(with_added_tokens=False)
    vocabulary = {bytes(byte_of[letter] for letter in token): i for token, i in ids.items()}
    return BPETokenizer(vocabulary, {bpe_files.END_OF_TEXT: len(vocabulary)})


def with_added_tokens(tokenizer: Tokenizer, names: Sequence[str]) -> Tokenizer:
    """The tokenizer with more special tokens, behind its last id; one that it has keeps its id. Raises UsageError."""
    from tokenizers import AddedToken
    from tokenizers import Tokenizer as Backend

    if not names:
        return tokenizer
    if isinstance(tokenizer, CharTokenizer):
        raise UsageError("add_tokens: a vocabulary of characters has no room for them; use gpt2 or a model directory")
    for name in names:
        if not name or name != name.strip() or len(name) == 1:
            raise UsageError(f"add_tokens: {name!r} is no name for a token; give two characters or more, as <|user|>")
    with tempfile.TemporaryDirectory() as work:
        tokenizer.save(work)
        path = Path(work) / "tokenizer.json"
        if isinstance(tokenizer, HFTokenizer):
            backend = Backend.from_str(tokenizer.backend.to_str())
        else:
            backend = Backend.from_file(str(path))
        backend.add_special_tokens([AddedToken(name, normalized=False) for name in names])
        with disk_errors():
            backend.save(str(path))
        found = from_directory(work)
    assert found
    return found


def names_of(option: str) -> list[str]:
    """The names in --add_tokens=NAME,NAME."""
    return [name.strip() for name in option.split(",")] if option else []
