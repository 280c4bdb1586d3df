"""Text to token ids and back: GPT-2's byte-level BPE through tiktoken, or one id a character.

Both kinds have `encode(text) -> uint16 array`, `decode(ids) -> str`, `vocab_size`, `eot` (the id that ends a document, or None),
`fingerprint` (equal vocabularies have equal fingerprints), `describe()` for meta.json and `save(directory, block_size)`, which writes
the files that transformers loads with AutoTokenizer.
"""

import hashlib
import json
import os
import socket
from functools import cached_property
from pathlib import Path

import numpy as np

from finetune.cli import UsageError

MAX_VOCABULARY = 65536  # ids are stored as uint16
END_OF_TEXT = "<|endoftext|>"


class BPETokenizer:
    """Byte-level BPE as GPT-2 has it. `vocabulary` maps the bytes of each ordinary token to its id, `special` names to ids."""

    kind = "bpe"

    def __init__(self, vocabulary, special):
        import tiktoken
        from tiktoken_ext.openai_public import r50k_pat_str

        self.vocabulary, self.special = vocabulary, special
        self.vocab_size = max([*vocabulary.values(), *special.values()]) + 1
        self.eot = special.get(END_OF_TEXT)
        self._encoding = tiktoken.Encoding("gpt2-like", pat_str=r50k_pat_str, mergeable_ranks=vocabulary, special_tokens=special)

    def encode(self, text):
        """Ids of `text` as plain text: a literal <|endoftext|> in it is spelled out, never the special token."""
        # lone surrogates cannot be UTF-8 and are replaced, as tiktoken does
        return self._encoding.encode_to_numpy(text, disallowed_special=()).astype(np.uint16)

    def decode(self, ids):
        """The text of `ids`; bytes that are not UTF-8 become U+FFFD."""
        return self._encoding.decode([int(i) for i in ids])

    @cached_property
    def fingerprint(self):
        tokens = sorted([(i, token) for token, i in self.vocabulary.items()] + [(i, name.encode()) for name, i in self.special.items()])
        return _sha256(b"".join(b"%d %s\n" % (i, token.hex().encode()) for i, token in tokens))

    def describe(self):
        gpt2 = self.vocab_size == 50257 and self.eot == 50256
        return {"kind": "bpe", "name": "GPT-2 BPE" if gpt2 else f"BPE of {self.vocab_size:,} ids", "sha256": self.fingerprint}

    def save(self, directory, block_size=None):
        from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

        letters = _bytes_to_unicode()
        spell = lambda token: "".join(letters[byte] for byte in token)  # noqa: E731
        vocab = {spell(token): i for token, i in self.vocabulary.items()}
        merges = [(spell(left), spell(right)) for left, right in _merges(self.vocabulary)]
        tokenizer = Tokenizer(models.BPE({**vocab, **self.special}, merges))
        tokenizer.add_special_tokens([AddedToken(name, normalized=True) for name in sorted(self.special, key=self.special.get)])
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
        tokenizer.save(str(Path(directory) / "tokenizer.json"))
        tokenizer.model.save(str(directory))  # vocab.json and merges.txt, for older tools
        end = END_OF_TEXT if self.eot is not None else None
        config = {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False}
        _write_tokenizer_config(directory, config, block_size, bos_token=end, eos_token=end, unk_token=end)


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

    def encode(self, text):
        """Ids of `text`. Raises UsageError naming characters outside the vocabulary."""
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        found = np.searchsorted(self._points, points, sorter=self._order).clip(max=self.vocab_size - 1)
        ids = self._order[found]
        unknown = self._points[ids] != points
        if unknown.any():
            examples = ", ".join(repr(chr(point)) for point in np.unique(points[unknown])[:5])
            raise UsageError(f"characters outside this model's {self.vocab_size} characters: {examples}")
        return ids.astype(np.uint16)

    def decode(self, ids):
        return "".join(self.chars[int(i)] for i in ids)

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
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("(?m:.)"), behavior="isolated")  # Oniguruma's m: . matches newlines
        tokenizer.decoder = decoders.Fuse()
        tokenizer.save(str(Path(directory) / "tokenizer.json"))
        # this class name is the one that transformers 4 and 5 both load
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        _write_tokenizer_config(directory, config, block_size)


def gpt2():
    """GPT-2's own tokenizer from tiktoken, which downloads it once. Raises UsageError when it can neither be found nor reached."""
    import tiktoken

    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(5)  # tiktoken sets no time limit of its own
    try:
        encoding = tiktoken.get_encoding("gpt2")
    except Exception as error:
        raise UsageError(
            f"tokenizer gpt2: not in tiktoken's cache, and its server cannot be reached ({type(error).__name__}). Give "
            "--tokenizer=DIR with the directory of any downloaded GPT-2, set TIKTOKEN_CACHE_DIR, or use --tokenizer=char"
        ) from None
    finally:
        socket.setdefaulttimeout(patience)
    vocabulary = dict(encoding._mergeable_ranks)
    return BPETokenizer(vocabulary, dict(encoding._special_tokens))


def from_directory(directory):
    """The tokenizer of a model directory, or None when it has none. Raises UsageError when it is of a kind we do not have."""
    directory = Path(directory)
    try:
        if (directory / "tokenizer.json").is_file():
            return _from_tokenizer_json(_read_json(directory / "tokenizer.json"))
        if (directory / "vocab.json").is_file() and (directory / "merges.txt").is_file():
            vocab = _read_json(directory / "vocab.json")
            return _byte_level({token: i for token, i in vocab.items() if token != END_OF_TEXT}, _only_end_of_text(vocab))
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{directory}: its tokenizer cannot be used: {error}") from None
    return None


def from_description(description, directory):
    """The tokenizer that a meta.json describes; BPE files lie beside it. None when it only says what it was."""
    if description.get("kind") == "char":
        tokenizer = CharTokenizer(description["chars"])
    else:
        tokenizer = from_directory(directory)
    if tokenizer is not None and tokenizer.fingerprint != description.get("sha256"):
        raise UsageError(f"{directory}: the tokenizer here is not the one these tokens were made with; run prepare again")
    return tokenizer


def _from_tokenizer_json(saved):
    model = saved["model"]
    if model.get("type") == "WordLevel":
        return CharTokenizer(sorted(model["vocab"], key=model["vocab"].get))
    steps = saved.get("pre_tokenizer") or {}
    if model.get("type", "BPE") != "BPE" or steps.get("type") != "ByteLevel" or steps.get("add_prefix_space") or saved.get("normalizer"):
        raise ValueError(
            f"it is {model.get('type', 'of no kind')} with {steps.get('type', 'no')} pre-tokenizer; byte-level BPE like GPT-2's is needed"
        )
    special = {token["content"]: token["id"] for token in saved.get("added_tokens", [])}
    return _byte_level({token: i for token, i in model["vocab"].items() if token not in special}, special)


def _byte_level(vocab, special):
    numbers = {letter: byte for byte, letter in _bytes_to_unicode().items()}
    vocabulary = {bytes(numbers[letter] for letter in token): i for token, i in vocab.items()}
    missing = 256 - sum(bytes([byte]) in vocabulary for byte in range(256))
    if missing:
        raise ValueError(f"{missing} of the 256 bytes have no token")
    if max([*vocabulary.values(), *special.values()]) >= MAX_VOCABULARY:
        raise ValueError("its ids do not fit into 16 bits")
    return BPETokenizer(vocabulary, special)


def _only_end_of_text(vocab):
    return {END_OF_TEXT: vocab[END_OF_TEXT]} if END_OF_TEXT in vocab else {}


def _merges(vocabulary):
    """The merge list behind a ranked vocabulary: each longer token, in order, as the two parts that BPE makes of it just before."""
    for token, rank in sorted(vocabulary.items(), key=lambda item: item[1]):
        if len(token) > 1:
            parts = [token[i : i + 1] for i in range(len(token))]
            while len(parts) > 2:
                ranks = [vocabulary.get(left + right, rank) for left, right in zip(parts, parts[1:])]
                best = min(range(len(ranks)), key=ranks.__getitem__)
                parts[best : best + 2] = [parts[best] + parts[best + 1]]
            yield tuple(parts)


def _bytes_to_unicode():
    """GPT-2's printable letter for each byte: itself where it is printable, else the next unused code point from 256 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {**{byte: chr(byte) for byte in printable}, **{byte: chr(256 + n) for n, byte in enumerate(others)}}


def _write_tokenizer_config(directory, config, block_size, **special):
    config |= {"model_max_length": block_size} if block_size else {}
    config |= {name: token for name, token in special.items() if token is not None}
    with open(os.path.join(directory, "tokenizer_config.json"), "w", encoding="utf-8") as file:
        json.dump(config, file, indent=2, ensure_ascii=False)
        file.write("\n")


def _read_json(path):
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def _sha256(data):
    return hashlib.sha256(data).hexdigest()
