"""Text to token ids and back: GPT-2's byte-level BPE through tiktoken, one id per character, or any tokenizer.json.

`Tokenizer` is one of three classes with the same methods."""

from __future__ import annotations

import copy
import functools
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from finetune.common import network
from finetune.common.errors import UsageError, describe_error
from finetune.common.files import read_text, sha256_of, write_file
from finetune.common.formatting import shown
from finetune.common.hub_client import hub_file
from finetune.common.network import reach
from finetune.data import bpe_files, hf_files, nanogpt_meta
from finetune.data.bpe_files import END_OF_TEXT
from finetune.data.bpe_tokenizer import BPETokenizer
from finetune.data.char_tokenizer import CharTokenizer
from finetune.data.hf_tokenizer import HFTokenizer

MAX_PROMPT = 1 << 20  # bytes of a file that is one prompt
TIKTOKEN_URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main"
TIKTOKEN_FILES = {  # of GPT-2's vocabulary, with their sha256
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
}
PLAIN_CLASSES = (None, "GPT2Tokenizer", "GPT2TokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend")

Tokenizer = BPETokenizer | CharTokenizer | HFTokenizer


def gpt2() -> BPETokenizer:
    """GPT-2's own tokenizer, from the cache of tiktoken or of the Hub, else downloaded to it. Raises UsageError within
    seconds if neither works."""
    failures = []
    for find in (_gpt2_of_tiktoken, _gpt2_of_the_hub):
        try:
            return find()
        except Exception as error:  # each library has its own classes of network errors
            failures.append(network.explain(error))
    raise UsageError(
        "tokenizer gpt2: not in tiktoken's cache or that of the Hub, and neither server gives it"
        f" (tiktoken: {failures[0]}; the Hub: {failures[1]}). Give --tokenizer=DIR with the directory of any"
        " downloaded GPT-2, set"
        " TIKTOKEN_CACHE_DIR, or use --tokenizer=char"
    )


def gpt2_if_here() -> BPETokenizer | None:
    """GPT-2's own tokenizer if a cache holds it; nothing is downloaded."""
    from huggingface_hub import try_to_load_from_cache

    if _tiktoken_has_gpt2():
        return _gpt2_of_tiktoken()
    return _gpt2_of_the_hub() if isinstance(try_to_load_from_cache("gpt2", "tokenizer.json"), str) else None


def _gpt2_of_tiktoken() -> BPETokenizer:
    import tiktoken

    for path, url, sha256 in _tiktoken_files():
        if not _is_whole(path, sha256):  # tiktoken would download it, and wait for ever
            reach(url)  # within seconds
            content = network.download(url, most=1 << 22)
            if hashlib.sha256(content).hexdigest() != sha256:
                raise network.Unreachable(f"{url} is not GPT-2's vocabulary")
            path.parent.mkdir(parents=True, exist_ok=True)
            write_file(path, content)
    encoding = tiktoken.get_encoding("gpt2")
    return BPETokenizer(dict(encoding._mergeable_ranks), dict(encoding._special_tokens))


def _gpt2_of_the_hub() -> BPETokenizer:
    found = from_directory(Path(hub_file("gpt2", "tokenizer.json")).parent)
    if not isinstance(found, BPETokenizer):
        raise ValueError("the model gpt2 of the Hub has no BPE tokenizer")
    return found


def _tiktoken_has_gpt2() -> bool:
    """Whether tiktoken's cache holds both files of GPT-2's vocabulary, so that it needs no network."""
    return all(_is_whole(path, sha256) for path, _, sha256 in _tiktoken_files())


def _tiktoken_files() -> Iterator[tuple[Path, str, str]]:
    """(path in tiktoken's cache, URL, sha256) of each file of GPT-2's vocabulary."""
    default = os.path.join(tempfile.gettempdir(), "data-gym-cache")
    cache = os.environ.get("TIKTOKEN_CACHE_DIR") or os.environ.get("DATA_GYM_CACHE_DIR") or default
    for name, sha256 in TIKTOKEN_FILES.items():
        url = f"{TIKTOKEN_URL}/{name}"
        yield Path(cache, hashlib.sha1(url.encode()).hexdigest()), url, sha256


def _is_whole(path: Path, sha256: str) -> bool:
    return path.is_file() and sha256_of(path) == sha256


def from_directory(directory: str | Path) -> Tokenizer | None:
    """The tokenizer of a model directory, or None if it has none. Raises UsageError if it cannot be used."""
    directory, has_sentencepiece, files = Path(directory), False, {}
    try:
        files = bpe_files.read_files(directory)
        has_sentencepiece = any(name in files for name in bpe_files.SENTENCEPIECE)
        if "tokenizer.json" in files or {"vocab.json", "merges.txt"} <= files.keys():
            plain = _plain_tokenizer(tuple(sorted(files.items())))
            return plain or HFTokenizer(hf_files.load(directory, files), files)
        if "vocab.txt" in files or has_sentencepiece:
            return HFTokenizer(hf_files.load(directory, files), files)
    except UsageError:
        raise
    except BaseException as error:  # a panic of the tokenizers library is no Exception
        if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
            raise
        reason = shown(error, 300) if isinstance(error, ValueError) else describe_error(error)
        problem = f"{directory}: its tokenizer cannot be used: {reason}"
        if has_sentencepiece and "tokenizer.json" not in files:
            problem += (
                "; a SentencePiece model alone needs `pip install sentencepiece protobuf`, or a tokenizer.json, which"
                " AutoTokenizer.from_pretrained(MODEL).save_pretrained(DIR) writes where that is installed"
            )
        raise UsageError(problem) from None
    meta = directory / "meta.pkl"  # beside a ckpt.pt of nanoGPT
    chars = nanogpt_meta.read_file(meta).chars if meta.is_file() else None
    return CharTokenizer(chars) if chars else None


@functools.lru_cache(maxsize=2)  # a run asks for its tokenizer four times, and to make GPT-2's takes 0.2 s
def _plain_tokenizer(named_files: tuple[tuple[str, bytes], ...]) -> BPETokenizer | CharTokenizer | None:
    """The tokenizer if it is GPT-2's kind without added tokens, or one of characters; else None. Raises ValueError."""
    files = dict(named_files)
    config = bpe_files.read_object(files, "tokenizer_config.json")
    saved = bpe_files.read_object(files, "tokenizer.json")
    if config.get("tokenizer_class") not in PLAIN_CLASSES:
        return None
    if config.get("add_prefix_space") or config.get("split_special_tokens"):
        return None
    if chars := bpe_files.characters(saved):
        return CharTokenizer(chars)
    end = bpe_files.content(config.get("eos_token")) or END_OF_TEXT
    added = saved.get("added_tokens", [])
    named = bpe_files.tokens_of_config(files) | {token["content"] for token in added}
    has_flags = any(token.get(name) for token in added for name in ("lstrip", "rstrip", "single_word"))
    if not named <= {end} or has_flags:
        return None
    if not saved:
        tokenizer = BPETokenizer(*bpe_files.from_vocab_and_merges(files), files, end)
    else:
        try:
            tokenizer = BPETokenizer(*bpe_files.from_tokenizer_json(saved), files, end)
        except ValueError:
            return None
    return tokenizer if tokenizer.eot_text == end or not named else None


def with_template(tokenizer: Tokenizer, template: str | None) -> Tokenizer:
    """The tokenizer, saved with this chat template; itself if there is none."""
    if tokenizer.kind == "char" or template == tokenizer.chat_template or template is None:
        return tokenizer
    tokenizer = copy.copy(tokenizer)
    tokenizer.files = {**tokenizer.files, "chat_template.jinja": template.encode()}
    return tokenizer


def from_description(description: dict[str, str], directory: str | Path) -> Tokenizer:
    """The tokenizer of a meta.json entry; its files lie beside meta.json. Raises UsageError if missing or changed."""
    is_char = description["kind"] == "char"
    tokenizer = CharTokenizer(description["chars"]) if is_char else from_directory(directory)
    if tokenizer is None:
        raise UsageError(f"{directory}: tokenizer.json, named in meta.json, is missing; prepare the data again")
    if tokenizer.fingerprint != description.get("sha256"):
        raise UsageError(f"{directory}: these tokens were made with another tokenizer; prepare the data again")
    return tokenizer


def prompt_ids(tokenizer: Tokenizer, start: str) -> np.ndarray:
    """The int64 ids of a prompt: of the text itself, or of a file if it is FILE:path. Raises UsageError."""
    return encode_prompt(tokenizer, prompt_text(start), "start")


def prompt_text(start: str) -> str:
    """The text of a prompt, read from its file if it is FILE:path. Raises UsageError."""
    if not start.startswith("FILE:"):
        return start
    return read_text(os.path.expanduser(start.removeprefix("FILE:")), MAX_PROMPT)


def encode_prompt(tokenizer: Tokenizer, text: str, place: str) -> np.ndarray:
    """The int64 ids of a prompt, in which <|endoftext|> is the special token. Raises UsageError naming `place`."""
    try:
        ids = tokenizer.encode(text, special=True).astype(np.int64)
    except UsageError as error:
        raise UsageError(f"{place}: {error}") from None
    if not len(ids):
        raise UsageError(f"{place}: the prompt is empty; the model needs at least one token")
    return ids
