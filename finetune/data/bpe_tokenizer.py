"""Byte-level BPE as in GPT-2, through tiktoken."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal, SupportsInt

import numpy as np

from finetune.data import bpe_files
from finetune.data.base_tokenizer import BaseTokenizer, touches, without_surrogates
from finetune.data.fast_bpe import FastEncoder

FAST_CHARACTERS = 10_000  # of a call
FAST_FROM = 1 << 22  # characters that are encoded before; to learn the pieces takes as long


class BPETokenizer(BaseTokenizer):
    """Byte-level BPE as in GPT-2. `vocabulary` maps the bytes of each ordinary token to its id, `special` names to ids.

    `files` are those of the model directory it came from, {name: content}; `save` writes them unchanged. `end` is the
    name of the special token that ends a document, <|endoftext|> if there is one."""

    kind: Literal["bpe"] = "bpe"

    def __init__(
        self,
        vocabulary: dict[bytes, int],
        special: dict[str, int],
        files: dict[str, bytes] | None = None,
        end: str | None = None,
    ) -> None:
        import tiktoken
        from tiktoken_ext.openai_public import r50k_pat_str

        self.vocabulary, self.special, self.files = vocabulary, special, files or {}
        self.vocab_size = max([*vocabulary.values(), *special.values()]) + 1
        self.eot_text = next((name for name in (end, *bpe_files.ENDS) if name in special), None)
        self.eot = special[self.eot_text] if self.eot_text else None  # the id that ends a document
        self._num_encoded = 0  # characters of `encode_many`
        self._known = {*vocabulary.values(), *special.values()}
        self._encoding = tiktoken.Encoding(
            "gpt2-like", pat_str=r50k_pat_str, mergeable_ranks=vocabulary, special_tokens=special
        )

    @property
    def chat_template(self) -> str | None:
        return bpe_files.chat_template(self.files)

    def encode(self, text: str, special: bool = False) -> np.ndarray:
        """Ids of `text`. A literal <|endoftext|> becomes the token of that name only with `special`."""
        allowed = {self.eot_text} if special and self.eot_text else set()
        try:
            ids = self._encoding.encode_to_numpy(text, allowed_special=allowed, disallowed_special=())
        except UnicodeEncodeError:  # lone surrogates, which UTF-8 cannot hold
            text = without_surrogates(text)
            ids = self._encoding.encode_to_numpy(text, allowed_special=allowed, disallowed_special=())
        return ids.astype(self.dtype, copy=False)

    def encode_many(self, texts: Sequence[str]) -> list[np.ndarray]:
        """What `encode` gives for each text, faster once many were encoded."""
        characters, encoded = sum(map(len, texts)), self._num_encoded
        self._num_encoded = encoded + characters  # threads may lose some of them
        is_long = characters >= FAST_CHARACTERS and encoded >= FAST_FROM
        found = self._fast.encode_many(texts) if is_long and self._fast else None
        return super().encode_many(texts) if found is None else found

    @cached_property
    def _fast(self) -> FastEncoder | None:
        """None if it does not encode as tiktoken does, which a sample shows."""
        encoder = FastEncoder(self._encoding.encode_ordinary, self.dtype)
        return encoder if encoder.is_exact() else None

    def encode_marked(self, text: str, spans: Sequence[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
        """As in `BaseTokenizer`."""
        text = without_surrogates(text)
        ids = self.encode(text, special=True)
        points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
        sizes = 1 + (points >= 0x80) + (points >= 0x800) + (points >= 0x10000)  # bytes in UTF-8
        byte_of = np.concatenate([[0], np.cumsum(sizes)])
        ends = np.cumsum([len(self._encoding.decode_single_token_bytes(int(i))) for i in ids], dtype=np.int64)
        starts = np.concatenate([np.zeros(1, np.int64), ends])[: len(ids)]
        # as in the tokenizers library, a token with a part of a character touches all of it
        first = np.searchsorted(byte_of, starts, side="right") - 1
        return ids, touches(first, np.searchsorted(byte_of, ends), spans)

    def decode(self, ids: Iterable[SupportsInt]) -> str:
        """The text of `ids`. Bytes that are not UTF-8 become U+FFFD; unknown ids are skipped."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def decode_bytes(self, ids: Iterable[SupportsInt]) -> bytes:
        """The bytes of `ids`, which may end within a character."""
        return self._encoding.decode_bytes([int(i) for i in ids if int(i) in self._known])

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """The bytes of each id; special tokens and unused ids have none."""
        texts = [b""] * self.vocab_size
        for text, i in self.vocabulary.items():
            texts[i] = text
        return texts

    @cached_property
    def all_bytes(self) -> list[bytes]:
        texts = list(self.token_bytes)
        for name, i in self.special.items():
            texts[i] = name.encode()
        return texts

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the ordinary tokens and end-of-text; other special tokens never appear in data."""
        return bpe_files.byte_level_fingerprint(self.vocabulary, self.special)

    def describe(self) -> dict[str, str]:
        """The entry of meta.json."""
        is_gpt2 = bpe_files.is_gpt2(self.vocabulary, self.special)
        name = "GPT-2 BPE" if is_gpt2 else f"BPE of {self.vocab_size:,} ids"
        return {"kind": "bpe", "name": name, "sha256": self.fingerprint}

    def save(self, directory: str | Path, block_size: int | None = None) -> None:
        """Write the files that AutoTokenizer of transformers loads."""
        if not {"tokenizer.json", "vocab.json", "merges.txt"} <= self.files.keys():
            saved = bpe_files.read_object(self.files, "tokenizer.json")
            merges = bpe_files.merges_of(saved) if saved else None
            self.files = bpe_files.make_bpe_files(self.vocabulary, self.special, self.eot_text, merges) | self.files
        bpe_files.write_files(directory, self.files)
        if "tokenizer_config.json" in self.files:
            config = bpe_files.read_object(self.files, "tokenizer_config.json")
        else:
            names = dict.fromkeys(("bos_token", "eos_token", "unk_token"), self.eot_text) if self.eot_text else {}
            config = {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False, **names}
        if self.eot_text and not config.get("pad_token"):
            config["pad_token"] = self.eot_text  # without one, pipeline() takes no batches
        bpe_files.write_tokenizer_config(directory, config, block_size)
