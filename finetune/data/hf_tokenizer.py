"""Any tokenizer.json, through the tokenizers library. transformers reads the files: the ids are AutoTokenizer's."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, SupportsInt

import numpy as np

from finetune.common.errors import UsageError, first_line
from finetune.data import bpe_files
from finetune.data.base_tokenizer import SAFE_CUT, SPACE_CUT, BaseTokenizer, touches, without_surrogates
from finetune.data.bpe_files import END_OF_TEXT
from finetune.data.bpe_tokenizer import BPETokenizer
from finetune.data.token_splitter import MOST, TokenSplitter

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend
    from transformers import PreTrainedTokenizerFast

# the fingerprint holds the ids of this text: case, accents, spaces, digits, scripts, characters of several bytes
PROBE = (
    "The king's  2024 PLAN, naïve Ünïcode a\u0301 ﬁ Ⅳ\r\n\t東京は日本 \U0001f600 def f(x):\n    return x**12 <|a|>"
    " don't\u00a0stop "
)
SAMPLE = "The old king said it, and 12 men\nwent. Home:they were not there"
HIDDEN = "\U0010fffe"  # around the name of a token that is not to be found in a text


class HFTokenizer(BaseTokenizer):
    """What transformers loaded from `files`, those of a model directory, {name: content}; `save` writes them."""

    kind: Literal["hf"] = "hf"

    def __init__(self, auto: PreTrainedTokenizerFast, files: dict[str, bytes]) -> None:
        self.auto, self.files = auto, files
        self.backend: Backend = auto.backend_tokenizer
        self.backend.no_truncation()
        self.backend.no_padding()
        ids = self.backend.get_vocab(with_added_tokens=True)
        if "" in ids:
            raise ValueError("it has a token without text, which a search finds everywhere")
        self.vocab_size = max(ids.values()) + 1
        if self.vocab_size > bpe_files.MAX_IDS:
            raise ValueError(f"it has ids above {bpe_files.MAX_IDS:,}")
        self.named = {name: token for name, token in auto.special_tokens_map.items() if isinstance(token, str)}
        self.eot_text = self._find_end(ids)
        self.eot = ids[self.eot_text] if self.eot_text else None
        self.pipeline: dict[str, Any] = json.loads(self.backend.to_str())  # as in tokenizer.json
        self.base_ids = self.backend.get_vocab(with_added_tokens=False)
        self.is_byte_level = _has(self.pipeline["decoder"], "ByteLevel")

    def _find_end(self, ids: dict[str, int]) -> str | None:
        """The name of the token that ends a document: its own, <|endoftext|>, else the only kind of end that it has."""
        chosen = [self.named.get("eos_token"), END_OF_TEXT, *map(self.named.get, ("sep_token", "bos_token"))]
        return next((name for name in [*chosen, *bpe_files.ENDS] if name in ids), None)

    @cached_property
    def _gpt2_like(self) -> bpe_files.Vocabulary | None:
        """The base vocabulary if texts without added tokens are encoded as `BPETokenizer` does."""
        try:
            base = {**self.pipeline, "added_tokens": []}
            vocabulary, special = bpe_files.from_tokenizer_json(base)
        except (ValueError, KeyError):
            return None
        end = self.backend.token_to_id(END_OF_TEXT)
        return vocabulary, special | ({} if end is None else {END_OF_TEXT: end})

    @cached_property
    def added(self) -> dict[str, int]:
        tokens = self.backend.get_added_tokens_decoder()
        known = {*self.base_ids, END_OF_TEXT} if self._gpt2_like else self.base_ids
        return {token.content: i for i, token in tokens.items() if token.content not in known}

    @property
    def chat_template(self) -> str | None:
        return bpe_files.chat_template(self.files)

    @cached_property
    def _bpe(self) -> BPETokenizer | None:
        """What encodes the text between added tokens ten times as fast, with the same ids, if it is GPT-2's kind."""
        tokens = self.backend.get_added_tokens_decoder().values()
        has_flags = any(token.lstrip or token.rstrip or token.single_word for token in tokens)
        if not self._gpt2_like or has_flags or self.backend.encode_special_tokens:
            return None
        return BPETokenizer(*self._gpt2_like)

    @cached_property
    def needs_whole(self) -> bool:
        """False if a text can be cut where GPT-2's pre-tokenizer cuts, because no added token lies across a cut."""
        for token in self.backend.get_added_tokens_decoder().values():
            matches = SAFE_CUT.finditer(f"a{token.content}a")
            if any(1 < match.start() <= len(token.content) for match in matches):
                return True
        return self._bpe is None

    @cached_property
    def cut_pattern(self) -> re.Pattern[str] | None:
        """As in `BaseTokenizer`, according to a sample."""
        try:
            whole = self.encode(SAMPLE)
        except UsageError:  # no token for its unknown words
            return None
        for pattern in (SAFE_CUT, SPACE_CUT):
            places = [0, *(match.start() for match in pattern.finditer(SAMPLE)), len(SAMPLE)]
            parts = [self.encode(SAMPLE[first:last]) for first, last in zip(places, places[1:])]
            if np.array_equal(np.concatenate(parts), whole):
                return pattern
        return None

    @cached_property
    def _unspecial(self) -> set[str | None]:
        """The tokens whose names, in a text that is not `special`, are text."""
        texts = {self.eot_text, *(self.named.get(f"{name}_token") for name in ("eos", "bos", "pad", "unk"))}
        # somebody added tokens to GPT-2's kind so that texts spell them
        return texts - self.added.keys() if self._gpt2_like else texts

    @cached_property
    def _splitters(self) -> list[TokenSplitter]:
        """For texts that are not `special`, and for those that are."""
        tokens = self.backend.get_added_tokens_decoder()
        plain = {i: token for i, token in tokens.items() if token.content not in self._unspecial}
        return [TokenSplitter(plain), TokenSplitter(tokens)]

    @cached_property
    def _plain(self) -> Backend:
        """The backend that reads the names of end-of-text and other such tokens as text."""
        from tokenizers import Tokenizer

        texts = self._unspecial
        added = self.pipeline["added_tokens"]
        added = [{**token, "content": _hide(token["content"], texts)} for token in added]
        model = dict(self.pipeline["model"])
        if isinstance(model["vocab"], dict):
            results = {"".join(merge) for merge in model.get("merges", [])}  # the library insists on these
            hidden = texts - results
            model["vocab"] = {_hide(token, hidden): i for token, i in model["vocab"].items()}
            if model.get("unk_token"):
                model["unk_token"] = _hide(model["unk_token"], hidden)
        else:
            model["vocab"] = [[_hide(token, texts), score] for token, score in model["vocab"]]
        pipeline = {**self.pipeline, "post_processor": None, "added_tokens": added, "model": model}
        plain = Tokenizer.from_str(json.dumps(pipeline))
        plain.encode_special_tokens = self.backend.encode_special_tokens
        return plain

    def encode(self, text: str, special: bool = False) -> np.ndarray:
        """As in `BaseTokenizer`."""
        text = without_surrogates(text)
        if self._bpe and len(self.added) <= MOST:
            parts = self._splitters[special].split(text)
            pieces = [[part] if isinstance(part, int) else self._bpe.encode(part) for part in parts]
            return np.concatenate([*pieces, np.zeros(0, self.dtype)]).astype(self.dtype)
        backend = self.backend if special else self._plain
        try:  # the call for batches lets other threads run
            [encoding] = backend.encode_batch_fast([text], add_special_tokens=False)
        except BaseException as error:  # the library has no class of its own, and a panic of it is no Exception
            raise self._failure(text, error) from None
        return np.array(encoding.ids, dtype=self.dtype)

    def encode_marked(self, text: str, spans: Sequence[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
        """As in `BaseTokenizer`."""
        text = without_surrogates(text)
        try:
            encoding = self.backend.encode(text, add_special_tokens=False)
        except BaseException as error:
            raise self._failure(text, error) from None
        first, end = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2).T
        return np.array(encoding.ids, dtype=self.dtype), touches(first, end, spans)

    def _failure(self, text: str, error: BaseException) -> BaseException:
        """What to raise when the library cannot encode a text: the words or characters that fail alone."""
        if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
            return error
        has_words = self.pipeline["model"]["type"] == "WordLevel" and any(len(token) > 1 for token in self.base_ids)
        failing = [part for part in dict.fromkeys(text.split() if has_words else text) if not self._is_known(part)]
        if not failing or not isinstance(error, Exception):
            return UsageError(f"the tokenizer cannot encode this text: {first_line(error)}")
        examples = ", ".join(map(repr, failing[:5]))
        return UsageError(
            f"{examples} not in this vocabulary of {self.vocab_size:,} ids, which has no token for unknown"
        )

    def _is_known(self, text: str) -> bool:
        try:
            self._plain.encode(text, add_special_tokens=False)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
                raise
            return False
        return True

    def decode(self, ids: Iterable[SupportsInt]) -> str:
        """The text of `ids`, as AutoTokenizer gives it; unknown ids are skipped."""
        text = self.auto.decode([int(i) for i in ids])
        assert isinstance(text, str)
        return text

    def decode_bytes(self, ids: Iterable[SupportsInt]) -> bytes:
        known = (int(i) for i in ids)
        return b"".join(self.all_bytes[i] for i in known if i < self.vocab_size)

    @cached_property
    def token_bytes(self) -> list[bytes]:
        special = {i for i, token in self.backend.get_added_tokens_decoder().items() if token.special}
        special |= {self.backend.token_to_id(token) for token in self.named.values()}
        return [b"" if i in special else text for i, text in enumerate(self.all_bytes)]

    @cached_property
    def all_bytes(self) -> list[bytes]:
        """As in `BaseTokenizer`."""
        texts = [b""] * self.vocab_size
        if self.is_byte_level:
            byte_of = {letter: byte for byte, letter in bpe_files.bytes_to_unicode().items()}
            for token, i in self.base_ids.items():
                is_spelled = all(letter in byte_of for letter in token)
                texts[i] = bytes(byte_of[letter] for letter in token) if is_spelled else token.encode()
        else:
            self._fill_by_decoding(texts)
            return texts
        for i, token in self.backend.get_added_tokens_decoder().items():
            texts[i] = token.content.encode()
        return texts

    def _fill_by_decoding(self, texts: list[bytes]) -> None:
        """The text that each id adds behind a word, since decoders may strip the space of a first token."""
        anchor = next((i for token, i in self.base_ids.items() if token.strip("▁").isalpha()), 0)
        ids = sorted(self.backend.get_vocab(with_added_tokens=True).values())
        before = self.backend.decode([anchor], skip_special_tokens=False)
        pairs = self.backend.decode_batch([[anchor, i] for i in ids], skip_special_tokens=False)
        has_bytes = _has(self.pipeline["decoder"], "ByteFallback")
        for i, text in zip(ids, pairs):
            byte = re.fullmatch("<0x([0-9A-F]{2})>", self.backend.id_to_token(i) or "") if has_bytes else None
            texts[i] = bytes.fromhex(byte[1]) if byte else text.removeprefix(before).encode()

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the vocabulary with the added tokens, the merges or scores, the end of documents, and the ids of a
        text that shows what the other steps do."""
        return self._digest(self.backend.get_vocab(with_added_tokens=True), self.eot)

    @cached_property
    def base_fingerprint(self) -> str:
        """As `fingerprint`, of the base vocabulary; for GPT-2's and its like as that of `BPETokenizer`."""
        if self._gpt2_like:
            return bpe_files.byte_level_fingerprint(*self._gpt2_like)
        return self._digest(self.base_ids, None)

    def _digest(self, ids: dict[str, int], end: int | None) -> str:
        model = self.pipeline["model"]
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model.get("merges", [])]
        scores = model["vocab"] if isinstance(model["vocab"], list) else []
        try:
            probe = self.backend.encode(PROBE, add_special_tokens=False).ids
        except Exception:  # it has no token for unknown characters
            probe = []
        return hashlib.sha256(json.dumps([sorted(ids.items()), merges, scores, probe, end]).encode()).hexdigest()

    def describe(self) -> dict[str, str]:
        """The entry of meta.json. The name says which token ends documents if it is not the tokenizer's eos_token."""
        model = self.pipeline["model"].get("type", "BPE")
        name = "GPT-2 BPE" if self._gpt2_like and bpe_files.is_gpt2(*self._gpt2_like) else ""
        name = name or f"{model} of {len(self.base_ids):,} ids"
        name += f" with {len(self.added)} added" if self.added else ""
        if self.eot_text and self.eot_text != self.named.get("eos_token", END_OF_TEXT):
            name += f", {self.eot_text} ends documents"
        return {"kind": "hf", "name": name, "sha256": self.fingerprint}

    def save(self, directory: str | Path, block_size: int | None = None) -> None:
        """Write the files that it came from. tokenizer_config.json gets `block_size` as model_max_length, a token that
        fills a batch, and a class if it named none: AutoTokenizer would choose one by config.json, which may read the
        files in another way."""
        bpe_files.write_files(directory, self.files)
        config = bpe_files.read_object(self.files, "tokenizer_config.json")
        if block_size or "tokenizer_class" not in config:
            name = type(self.auto).__name__
            generic = ("TokenizersBackend", "PreTrainedTokenizerFast")
            config.setdefault("tokenizer_class", "PreTrainedTokenizerFast" if name in generic else name)
            if self.eot_text and not self.named.get("pad_token"):
                config["pad_token"] = self.eot_text
            bpe_files.write_tokenizer_config(directory, config, block_size)


def _hide(token: str, names: set[str | None]) -> str:
    return f"{HIDDEN}{token}{HIDDEN}" if token in names else token


def _has(step: dict[str, Any] | None, kind: str) -> bool:
    """Whether a step of the pipeline, or one of its sequence, is of a kind."""
    steps = [step, *step.get("decoders", [])] if step else []
    return any(each["type"] == kind for each in steps)
