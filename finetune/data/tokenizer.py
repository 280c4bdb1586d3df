"""Text to token ids and back: GPT-2's byte-level BPE through tiktoken, or one id per character.

`Tokenizer` is either of the two classes, which have the same methods."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Literal, SupportsInt

import numpy as np

from finetune.common.errors import UsageError
from finetune.common.files import read_text
from finetune.common.network import hub_file, reach
from finetune.data import bpe_files
from finetune.data.bpe_files import MAX_VOCABULARY

END_OF_TEXT = "<|endoftext|>"
TIKTOKEN_HOST = "openaipublic.blob.core.windows.net"


class BPETokenizer:
    """Byte-level BPE as in GPT-2. `vocabulary` maps the bytes of each ordinary token to its id, `special` names to ids.

    `files` are those of the model directory it came from, {name: content}; `save` writes them unchanged."""

    kind: Literal["bpe"] = "bpe"

    def __init__(
        self, vocabulary: dict[bytes, int], special: dict[str, int], files: dict[str, bytes] | None = None
    ) -> None:
        import tiktoken
        from tiktoken_ext.openai_public import r50k_pat_str

        self.vocabulary, self.special, self.files = vocabulary, special, files or {}
        self.vocab_size = max([*vocabulary.values(), *special.values()]) + 1
        self.eot = special.get(END_OF_TEXT)  # the id that ends a document
        self.eot_text = END_OF_TEXT if self.eot is not None else None
        self.chat_template = None
        self._known = {*vocabulary.values(), *special.values()}
        self._encoding = tiktoken.Encoding(
            "gpt2-like", pat_str=r50k_pat_str, mergeable_ranks=vocabulary, special_tokens=special
        )

    def encode(self, text: str, special: bool = False) -> np.ndarray:
        """Ids of `text`, uint16. A literal <|endoftext|> becomes the token of that name only with `special`."""
        allowed = set(self.special) if special else set()
        try:
            ids = self._encoding.encode_to_numpy(text, allowed_special=allowed, disallowed_special=())
        except UnicodeEncodeError:  # lone surrogates, which UTF-8 cannot hold
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            ids = self._encoding.encode_to_numpy(text, allowed_special=allowed, disallowed_special=())
        return ids.astype(np.uint16)

    def decode(self, ids: Iterable[SupportsInt]) -> str:
        """The text of `ids`. Bytes that are not UTF-8 become U+FFFD; unknown ids are skipped."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def decode_bytes(self, ids: Iterable[SupportsInt]) -> bytes:
        """The bytes of `ids`, which may end within a character."""
        return self._encoding.decode_bytes([int(i) for i in ids if int(i) in self._known])

    def beginnings(self, token: int) -> list[int]:
        """The ids of tokens that are a proper prefix of `token`."""
        text = self.decode_bytes([token])
        return [self.vocabulary[text[:end]] for end in range(1, len(text)) if text[:end] in self.vocabulary]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the ordinary tokens and end-of-text; other special tokens never appear in data."""
        tokens = sorted((i, token.hex()) for token, i in self.vocabulary.items())
        return hashlib.sha256(repr((tokens, self.eot)).encode()).hexdigest()

    def describe(self) -> dict[str, str]:
        """The entry of meta.json."""
        is_gpt2 = len(self.vocabulary) == 50256 and self.eot == 50256
        name = "GPT-2 BPE" if is_gpt2 else f"BPE of {self.vocab_size:,} ids"
        return {"kind": "bpe", "name": name, "sha256": self.fingerprint}

    def save(self, directory: str | Path, block_size: int | None = None) -> None:
        """Write the files that AutoTokenizer of transformers loads."""
        if not {"tokenizer.json", "vocab.json", "merges.txt"} <= self.files.keys():
            self.files = bpe_files.make_bpe_files(self.vocabulary, self.special) | self.files
        for name, content in self.files.items():
            (Path(directory) / name).write_bytes(content)
        if "tokenizer_config.json" in self.files:
            config = json.loads(self.files["tokenizer_config.json"])
        else:
            names = {} if self.eot is None else dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT)
            config = {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False, **names}
        bpe_files.write_tokenizer_config(directory, config, block_size)


class CharTokenizer:
    """One id per character, in code point order, as nanoGPT's character-level preparation numbers them."""

    kind: Literal["char"] = "char"
    eot: int | None = None
    eot_text: str | None = None
    chat_template: str | None = None

    def __init__(self, chars: Iterable[str]) -> None:
        self.chars = list(chars)
        self.vocab_size = len(self.chars)
        if self.vocab_size > MAX_VOCABULARY:
            raise UsageError(f"{self.vocab_size:,} different characters do not fit into 16-bit ids; use BPE")
        self._points = np.array([ord(char) for char in self.chars], dtype=np.uint32)
        self._order = np.argsort(self._points)  # a vocabulary from elsewhere may be unsorted

    def encode(self, text: str, special: bool = False) -> np.ndarray:
        """Ids of `text`, uint16; there are no `special` ones. Raises UsageError naming unknown characters."""
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        found = np.searchsorted(self._points, points, sorter=self._order).clip(max=self.vocab_size - 1)
        ids = self._order[found]
        unknown = self._points[ids] != points
        if unknown.any():
            examples = ", ".join(repr(chr(point)) for point in np.unique(points[unknown])[:5])
            raise UsageError(f"{examples} not among the {self.vocab_size} characters of this vocabulary")
        return ids.astype(np.uint16)

    def decode(self, ids: Iterable[SupportsInt]) -> str:
        return "".join(self.chars[int(i)] for i in ids)

    def decode_bytes(self, ids: Iterable[SupportsInt]) -> bytes:
        return self.decode(ids).encode("utf-8", "surrogatepass")

    def beginnings(self, token: int) -> list[int]:
        return []

    @cached_property
    def fingerprint(self) -> str:
        return hashlib.sha256("".join(self.chars).encode("utf-8", "surrogatepass")).hexdigest()

    def describe(self) -> dict[str, str]:
        name = f"{self.vocab_size} characters"
        return {"kind": "char", "name": name, "sha256": self.fingerprint, "chars": "".join(self.chars)}

    def save(self, directory: str | Path, block_size: int | None = None) -> None:
        bpe_files.write_characters(directory, self.chars, block_size)


Tokenizer = BPETokenizer | CharTokenizer


def gpt2() -> BPETokenizer:
    """GPT-2's own tokenizer, from the cache of tiktoken or of the Hub, else downloaded to it. Raises UsageError within
    seconds if neither works."""
    failures = []
    for find in (_gpt2_of_tiktoken, _gpt2_of_the_hub):
        try:
            return find()
        except Exception as error:  # each library has its own classes of network errors
            failures.append(type(error).__name__)
    raise UsageError(
        "tokenizer gpt2: not in tiktoken's cache or that of the Hub, and neither server can be reached"
        f" ({', '.join(failures)}). Give --tokenizer=DIR with the directory of any downloaded GPT-2, set"
        " TIKTOKEN_CACHE_DIR, or use --tokenizer=char"
    )


def _gpt2_of_tiktoken() -> BPETokenizer:
    import tiktoken

    if not _tiktoken_has_gpt2():
        reach(f"https://{TIKTOKEN_HOST}")  # tiktoken has no timeout
    encoding = tiktoken.get_encoding("gpt2")
    return BPETokenizer(dict(encoding._mergeable_ranks), dict(encoding._special_tokens))


def _gpt2_of_the_hub() -> BPETokenizer:
    found = from_directory(Path(hub_file("gpt2", "tokenizer.json")).parent)
    if not isinstance(found, BPETokenizer):
        raise ValueError("the model gpt2 of the Hub has no BPE tokenizer")
    return found


def _tiktoken_has_gpt2() -> bool:
    """Whether tiktoken's cache holds both files of GPT-2's vocabulary, so that it needs no network."""
    default = os.path.join(tempfile.gettempdir(), "data-gym-cache")
    cache = os.environ.get("TIKTOKEN_CACHE_DIR") or os.environ.get("DATA_GYM_CACHE_DIR") or default
    urls = [f"https://{TIKTOKEN_HOST}/gpt-2/encodings/main/{name}" for name in ("vocab.bpe", "encoder.json")]
    return all(os.path.isfile(os.path.join(cache, hashlib.sha1(url.encode()).hexdigest())) for url in urls)


def from_directory(directory: str | Path) -> Tokenizer | None:
    """The tokenizer of a model directory, or None if it has none. Raises UsageError for an unsupported kind."""
    directory = Path(directory)
    files = {name: (directory / name).read_bytes() for name in bpe_files.FILES if (directory / name).is_file()}
    try:
        if "tokenizer.json" in files:
            saved = json.loads(files["tokenizer.json"])
            if saved["model"].get("type") == "WordLevel":
                ids = saved["model"]["vocab"]
                return CharTokenizer(sorted(ids, key=ids.get))
            return BPETokenizer(*bpe_files.from_tokenizer_json(saved), files)
        if {"vocab.json", "merges.txt"} <= files.keys():
            return BPETokenizer(*bpe_files.from_vocab_and_merges(files), files)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{directory}: its tokenizer cannot be used: {error}") from None
    return None


def from_description(description: dict[str, str], directory: str | Path) -> Tokenizer:
    """The tokenizer of a meta.json entry; BPE files lie beside meta.json. Raises UsageError if missing or changed."""
    is_char = description["kind"] == "char"
    tokenizer = CharTokenizer(description["chars"]) if is_char else from_directory(directory)
    if tokenizer is None:
        raise UsageError(f"{directory}: tokenizer.json, named in meta.json, is missing; prepare the data again")
    if tokenizer.fingerprint != description.get("sha256"):
        raise UsageError(f"{directory}: these tokens were made with another tokenizer; prepare the data again")
    return tokenizer


def prompt_ids(tokenizer: Tokenizer, start: str) -> np.ndarray:
    """The int64 ids of a prompt: of the text itself, or of a file if it is FILE:path. Raises UsageError."""
    if start.startswith("FILE:"):
        start = read_text(start.removeprefix("FILE:"))
    if not start:
        raise UsageError("start: the prompt is empty; the model needs at least one token")
    return encode_prompt(tokenizer, start, "start")


def encode_prompt(tokenizer: Tokenizer, text: str, place: str) -> np.ndarray:
    """The int64 ids of a prompt, in which <|endoftext|> is the special token. Raises UsageError naming `place`."""
    try:
        return tokenizer.encode(text, special=True).astype(np.int64)
    except UsageError as error:
        raise UsageError(f"{place}: {error}") from None
