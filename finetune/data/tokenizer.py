"""Text to token ids and back: GPT-2's byte-level BPE through tiktoken, or one id a character.

Both kinds have `encode(text) -> uint16 array`, `decode(ids) -> str`, `decode_bytes(ids)`, which may end within a
character, `vocab_size`, `eot` (the id that ends a document, or None), `beginnings(id)`, the ids of shorter texts that
the text of `id` begins with, `fingerprint` (equal vocabularies have equal fingerprints), `describe()` for meta.json and
`save(directory, block_size)`, which writes the files that transformers loads with AutoTokenizer."""

import hashlib
import json
import os
import tempfile
from functools import cached_property
from pathlib import Path

import numpy as np

from finetune.common.errors import UsageError
from finetune.common.network import hub_file, reach
from finetune.data.bpe_files import FILES, bytes_to_unicode, merge_rules, write_tokenizer_config

MAX_VOCABULARY = 65536  # ids are stored as uint16
END_OF_TEXT = "<|endoftext|>"


class BPETokenizer:
    """Byte-level BPE as GPT-2 has it. `vocabulary` maps the bytes of each ordinary token to its id, `special` names to
    ids.

    `files` are those of the model directory it came from, {name: content}; they are handed on as they are.
    """

    kind = "bpe"

    def __init__(self, vocabulary, special, files=None):
        import tiktoken
        from tiktoken_ext.openai_public import r50k_pat_str

        self.vocabulary, self.special, self.files = vocabulary, special, files or {}
        self.vocab_size = max([*vocabulary.values(), *special.values()]) + 1
        self.eot = special.get(END_OF_TEXT)
        self._known = {*vocabulary.values(), *special.values()}
        self._encoding = tiktoken.Encoding(
            "gpt2-like", pat_str=r50k_pat_str, mergeable_ranks=vocabulary, special_tokens=special
        )

    def encode(self, text, special=False):
        """Ids of `text` as plain text: a literal <|endoftext|> in it is spelled out, and only with `special` the token
        of that name."""
        allowed = set(self.special) if special else set()
        try:
            ids = self._encoding.encode_to_numpy(text, allowed_special=allowed, disallowed_special=())
        except UnicodeEncodeError:  # lone surrogates, which no UTF-8 has
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            ids = self._encoding.encode_to_numpy(text, allowed_special=allowed, disallowed_special=())
        return ids.astype(np.uint16)

    def decode(self, ids):
        """The text of `ids`; bytes that are not UTF-8 become U+FFFD, and ids that mean nothing are left out."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def decode_bytes(self, ids):
        return self._encoding.decode_bytes([int(i) for i in ids if int(i) in self._known])

    def beginnings(self, token):
        text = self.decode_bytes([token])
        return [self.vocabulary[text[:end]] for end in range(1, len(text)) if text[:end] in self.vocabulary]

    @cached_property
    def fingerprint(self):
        """Of what text is turned into: the ordinary tokens and end-of-text. Other special tokens never appear in
        data."""
        tokens = sorted((i, token.hex()) for token, i in self.vocabulary.items())
        return _sha256(repr((tokens, self.eot)).encode())

    def describe(self):
        gpt2 = len(self.vocabulary) == 50256 and self.eot == 50256
        return {
            "kind": "bpe",
            "name": "GPT-2 BPE" if gpt2 else f"BPE of {self.vocab_size:,} ids",
            "sha256": self.fingerprint,
        }

    def save(self, directory, block_size=None):
        directory = Path(directory)
        spelled = {"tokenizer.json", "vocab.json", "merges.txt"}
        if not spelled <= self.files.keys():
            self._spell_out(directory)  # takes seconds for GPT-2's vocabulary, so once is enough
            self.files |= {name: (directory / name).read_bytes() for name in spelled - self.files.keys()}
        for name, content in self.files.items():
            (directory / name).write_bytes(content)
        config = (
            json.loads(self.files["tokenizer_config.json"]) if "tokenizer_config.json" in self.files else self._config()
        )
        write_tokenizer_config(directory, config, block_size)

    def _config(self):
        names = {} if self.eot is None else dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT)
        return {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False, **names}

    def _spell_out(self, directory):
        """Write those of tokenizer.json, vocab.json and merges.txt that did not come with the tokenizer."""
        from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

        letters = bytes_to_unicode()
        vocab = {"".join(letters[byte] for byte in token): i for token, i in self.vocabulary.items()}
        merges = [
            tuple("".join(letters[byte] for byte in part) for part in parts) for parts in merge_rules(self.vocabulary)
        ]
        tokenizer = Tokenizer(models.BPE({**vocab, **self.special}, merges))
        tokenizer.add_special_tokens(
            [AddedToken(name, normalized=True) for name in sorted(self.special, key=self.special.get)]
        )
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
        if "tokenizer.json" not in self.files:
            tokenizer.save(str(directory / "tokenizer.json"))
        if not {"vocab.json", "merges.txt"} <= self.files.keys():  # older tools read these
            tokenizer.model.save(str(directory))


class CharTokenizer:
    """One id a character, in code point order, as nanoGPT's character-level preparation numbers them."""

    kind = "char"
    eot = None

    def __init__(self, chars):
        if len(chars) > MAX_VOCABULARY:
            raise UsageError(f"{len(chars):,} different characters do not fit into 16-bit ids; use a BPE tokenizer")
        self.chars = list(chars)
        self.vocab_size = len(self.chars)
        self._points = np.array([ord(char) for char in self.chars], dtype=np.uint32)
        self._order = np.argsort(self._points)  # a vocabulary from elsewhere need not be sorted

    def encode(self, text, special=False):
        """Ids of `text`; there are no `special` ones. Raises UsageError naming characters outside the vocabulary."""
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        found = np.searchsorted(self._points, points, sorter=self._order).clip(max=self.vocab_size - 1)
        ids = self._order[found]
        unknown = self._points[ids] != points
        if unknown.any():
            examples = ", ".join(repr(chr(point)) for point in np.unique(points[unknown])[:5])
            raise UsageError(f"{examples} not among the {self.vocab_size} characters of this vocabulary")
        return ids.astype(np.uint16)

    def decode(self, ids):
        return "".join(self.chars[int(i)] for i in ids)

    def decode_bytes(self, ids):
        return self.decode(ids).encode("utf-8", "surrogatepass")

    def beginnings(self, token):
        return []

    @cached_property
    def fingerprint(self):
        return _sha256("".join(self.chars).encode("utf-8", "surrogatepass"))

    def describe(self):
        name = f"{self.vocab_size} characters"
        return {"kind": "char", "name": name, "sha256": self.fingerprint, "chars": "".join(self.chars)}

    def save(self, directory, block_size=None):
        from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

        # an unknown character must become some id without adding one; a space is the least surprising
        unknown = " " if " " in self.chars else self.chars[0]
        tokenizer = Tokenizer(models.WordLevel({char: i for i, char in enumerate(self.chars)}, unk_token=unknown))
        tokenizer.pre_tokenizer = pre_tokenizers.Split(
            Regex("(?m:.)"), behavior="isolated"
        )  # Oniguruma's m: . matches newlines
        tokenizer.decoder = decoders.Fuse()
        tokenizer.save(str(Path(directory) / "tokenizer.json"))
        # this class name is the one that transformers 4 and 5 both load
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        write_tokenizer_config(directory, config, block_size)


Tokenizer = BPETokenizer | CharTokenizer


def gpt2():
    """GPT-2's own tokenizer, from tiktoken or from the model gpt2 of the Hub: downloaded once, and from then on in the
    cache of either.

    Raises UsageError, within seconds, when it can neither be found nor reached.
    """
    failures = []
    for find in (_gpt2_of_tiktoken, _gpt2_of_the_hub):
        try:
            return find()
        except Exception as error:  # every way in which a network fails has its own class
            failures.append(type(error).__name__)
    raise UsageError(
        "tokenizer gpt2: not in tiktoken's cache or that of the Hub, and neither server can be reached"
        f" ({', '.join(failures)}). Give --tokenizer=DIR with the directory of any downloaded GPT-2, set"
        " TIKTOKEN_CACHE_DIR, or use --tokenizer=char"
    )


def _gpt2_of_tiktoken():
    import tiktoken

    if not _tiktoken_has_gpt2():
        reach(f"https://{TIKTOKEN_HOST}")  # tiktoken itself would wait without end
    encoding = tiktoken.get_encoding("gpt2")
    return BPETokenizer(dict(encoding._mergeable_ranks), dict(encoding._special_tokens))


def _gpt2_of_the_hub():
    return from_directory(Path(hub_file("gpt2", "tokenizer.json")).parent)


TIKTOKEN_HOST = "openaipublic.blob.core.windows.net"


def _tiktoken_has_gpt2():
    """Whether tiktoken's cache holds both files of GPT-2's vocabulary, so that it will not ask the network."""
    cache = (
        os.environ.get("TIKTOKEN_CACHE_DIR")
        or os.environ.get("DATA_GYM_CACHE_DIR")
        or os.path.join(tempfile.gettempdir(), "data-gym-cache")
    )
    urls = [f"https://{TIKTOKEN_HOST}/gpt-2/encodings/main/{name}" for name in ("vocab.bpe", "encoder.json")]
    return all(os.path.isfile(os.path.join(cache, hashlib.sha1(url.encode()).hexdigest())) for url in urls)


def from_directory(directory):
    """The tokenizer of a model directory, or None when it has none. Raises UsageError when it is of a kind we do not
    have."""
    directory = Path(directory)
    files = {name: (directory / name).read_bytes() for name in FILES if (directory / name).is_file()}
    try:
        if "tokenizer.json" in files:
            return _from_tokenizer_json(json.loads(files["tokenizer.json"]), files)
        if {"vocab.json", "merges.txt"} <= files.keys():
            vocab = {**json.loads(files["vocab.json"]), **json.loads(files.get("added_tokens.json", b"{}"))}
            lines = files["merges.txt"].decode("utf-8").splitlines()
            merges = [line.split(" ") for line in lines if line and not line.startswith("#version")]
            return _byte_level(vocab, merges, files)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{directory}: its tokenizer cannot be used: {error}") from None
    return None


def from_description(description, directory):
    """The tokenizer that a meta.json describes; BPE files lie beside it. Raises UsageError when it is not there or
    another one."""
    tokenizer = CharTokenizer(description["chars"]) if description["kind"] == "char" else from_directory(directory)
    if tokenizer is None:
        raise UsageError(
            f"{directory}: the tokenizer that meta.json speaks of, tokenizer.json, is not there; run prepare again"
        )
    if tokenizer.fingerprint != description.get("sha256"):
        raise UsageError(
            f"{directory}: the tokenizer here is not the one these tokens were made with; run prepare again"
        )
    return tokenizer


def _from_tokenizer_json(saved, files):
    model = saved["model"]
    if model.get("type") == "WordLevel":
        return CharTokenizer(sorted(model["vocab"], key=model["vocab"].get))
    if model.get("type", "BPE") != "BPE":
        raise ValueError(f"its model is {model.get('type')}; byte-level BPE like GPT-2's is needed")
    steps, normalizer = saved.get("pre_tokenizer") or {}, saved.get("normalizer")
    if steps.get("type") != "ByteLevel" or steps.get("add_prefix_space") or not steps.get("use_regex", True):
        raise ValueError(
            f"its pre_tokenizer is {json.dumps(steps)}; GPT-2's is ByteLevel without a prefix space, with its regex"
        )
    if normalizer:
        raise ValueError(f"it has a normalizer ({normalizer.get('type')}), and GPT-2 has none")
    vocab = {**model["vocab"], **{token["content"]: token["id"] for token in saved.get("added_tokens", [])}}
    return _byte_level(
        vocab, [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]], files
    )


def _byte_level(vocab, merges, files):
    """A BPETokenizer from a vocabulary in GPT-2's printable letters. What is neither a byte nor made by a merge is
    special."""
    numbers = {letter: byte for byte, letter in bytes_to_unicode().items()}
    merged = ["".join(merge) for merge in merges]
    ids = [vocab[token] for token in merged]
    if ids != sorted(ids):
        raise ValueError("its merges are not in the order of their ids")
    missing = [letter for letter in numbers if letter not in vocab]
    if missing:
        raise ValueError(f"{len(missing)} of the 256 bytes have no token")
    if max(vocab.values()) >= MAX_VOCABULARY:
        raise ValueError("its ids do not fit into 16 bits")
    ordinary = dict.fromkeys([*numbers, *merged])
    vocabulary = {bytes(numbers[letter] for letter in token): vocab[token] for token in ordinary}
    special = {token: i for token, i in vocab.items() if token not in ordinary}
    return BPETokenizer(vocabulary, special, files)


def prompt_ids(tokenizer, start):
    """The ids of a prompt, an int64 array: of the text itself, or of a file when it is FILE:path. Raises UsageError."""
    if start.startswith("FILE:"):
        path = start.removeprefix("FILE:")
        try:
            start = Path(path).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UsageError(f"{path}: byte at offset {error.start:,} is not UTF-8") from None
        except OSError as error:
            raise UsageError(f"{path}: cannot be read: {error.strerror}") from None
    if not start:
        raise UsageError("start: the prompt is empty; a model needs at least one token to go on from")
    return encode_prompt(tokenizer, start, "start")


def encode_prompt(tokenizer, text, place):
    """The ids of a prompt, an int64 array; <|endoftext|> in it is the token, so that a prompt can begin a document.
    Raises UsageError naming the `place` the prompt is from."""
    try:
        return tokenizer.encode(text, special=True).astype(np.int64)
    except UsageError as error:
        raise UsageError(f"{place}: {error}") from None


def _sha256(data):
    return hashlib.sha256(data).hexdigest()
