"""Reading and writing the tokenizer files of Hugging Face models."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from finetune.common.errors import UsageError, disk_errors
from finetune.common.files import MAX_JSON, write_json
from finetune.common.json_text import parse_json
from finetune.common.opened import refuse_links_out

END_OF_TEXT = "<|endoftext|>"
GPT2_VOCAB, GPT2_PADDED_VOCAB, GPT2_EOT = 50257, 50304, 50256  # nanoGPT pads the vocabulary
ENDS = (
    END_OF_TEXT,
    "</s>",
    "<eos>",
    "<|eos|>",
    "[EOS]",
    "[SEP]",
    "<|bos|>",
)  # what may end a document, if nothing says
SENTENCEPIECE = ("spiece.model", "tokenizer.model", "sentencepiece.bpe.model")
FILES = (
    """
    tokenizer.json vocab.json merges.txt tokenizer_config.json special_tokens_map.json added_tokens.json vocab.txt
    chat_template.jinja
""".split()
    + list(SENTENCEPIECE)
)
MAX_IDS = 1 << 24  # of a vocabulary; the largest of the Hub have 260,000
OPENAI_FILES = {"encoder.json": "vocab.json", "vocab.bpe": "merges.txt"}
EACH_CHARACTER = "(?m:.)"  # with Oniguruma's option m, . also matches a newline
NAMED_TOKENS = [f"{name}_token" for name in "bos eos unk sep pad cls mask".split()]

Vocabulary = tuple[dict[bytes, int], dict[str, int]]  # the bytes of each ordinary token, the name of each special one


def read_files(directory: Path) -> dict[str, bytes]:
    """The tokenizer's files in a model directory, {name: content}; OpenAI's own under their usual names. Names of code
    that transformers would run are left out. Raises UsageError or ValueError."""
    names = {**{name: name for name in FILES}, **OPENAI_FILES}
    found = {usual: directory / name for name, usual in names.items() if (directory / name).is_file()}
    for path in sorted(directory.glob("additional_chat_templates/*.jinja")):
        found[f"additional_chat_templates/{path.name}"] = path
    refuse_links_out(directory, found.values())
    if large := [path.name for path in found.values() if path.stat().st_size > MAX_JSON]:
        raise ValueError(f"{large[0]} has more than {MAX_JSON:,} bytes")
    files = {name: path.read_bytes() for name, path in found.items()}
    if b"auto_map" in files.get("tokenizer_config.json", b""):
        config = read_object(files, "tokenizer_config.json")
        config.pop("auto_map", None)
        files["tokenizer_config.json"] = json.dumps(config, indent=2).encode()
    return files


def write_files(directory: str | Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        path = Path(directory) / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)


def read_object(files: dict[str, bytes], name: str) -> dict[str, Any]:
    """The object in a json file, {} without the file. Raises ValueError."""
    try:
        found = parse_json(files.get(name, b"{}"))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{name} holds no object")
    return found


def chat_template(files: dict[str, bytes]) -> str | None:
    """The chat template in some files, None without one that is text; of several named ones, the one named default.
    Raises UsageError for a file that is not UTF-8, which transformers does not read either."""
    if "chat_template.jinja" in files:
        try:
            return files["chat_template.jinja"].decode("utf-8")
        except UnicodeDecodeError as error:
            raise UsageError(f"chat_template.jinja of the tokenizer: byte {error.start} is not UTF-8") from None
    try:
        found = read_object(files, "tokenizer_config.json").get("chat_template")
        found = {each["name"]: each["template"] for each in found}.get("default") if isinstance(found, list) else found
        return found if isinstance(found, str) and found.encode() else None
    except (ValueError, TypeError, KeyError):  # also of half a surrogate pair
        return None


def tokens_of_config(files: dict[str, bytes]) -> set[str]:
    """All tokens that the files beside tokenizer.json name."""
    config, added = read_object(files, "tokenizer_config.json"), read_object(files, "added_tokens.json")
    if not all(type(i) is int for i in added.values()):
        raise ValueError("added_tokens.json: the ids of its tokens are no whole numbers")
    names: list[Any] = [*added, *config.get("added_tokens_decoder", {}).values()]
    for place in (config, read_object(files, "special_tokens_map.json")):
        names += [place.get(name) for name in NAMED_TOKENS]
        for key in ("additional_special_tokens", "extra_special_tokens"):
            listed = place.get(key) or []
            names += listed.values() if isinstance(listed, dict) else listed
    return {content(name) for name in names if name}


def content(token: Any) -> str:
    """The text of a token in a configuration, where it is a text or a description; "" for None."""
    return (token.get("content") if isinstance(token, dict) else token) or ""


def from_tokenizer_json(saved: dict[str, Any]) -> Vocabulary:
    """The vocabulary in a parsed tokenizer.json. Raises ValueError if it is not byte-level BPE as in GPT-2."""
    model, steps = saved["model"], saved.get("pre_tokenizer") or {}
    is_plain = not any(model.get(name) for name in ("dropout", "ignore_merges", "continuing_subword_prefix"))
    if model.get("type", "BPE") != "BPE" or not is_plain or model.get("end_of_word_suffix"):
        raise ValueError(f"its model is {model.get('type')}; byte-level BPE like GPT-2's is needed")
    if steps.get("type") != "ByteLevel" or steps.get("add_prefix_space") or not steps.get("use_regex", True):
        expected = "ByteLevel without a prefix space, with its regex"
        raise ValueError(f"its pre_tokenizer is {json.dumps(steps)}; GPT-2's is {expected}")
    if saved.get("normalizer"):
        raise ValueError(f"it has a normalizer ({saved['normalizer'].get('type')}), and GPT-2 has none")
    added = {token["content"]: token["id"] for token in saved.get("added_tokens", [])}
    return _byte_level({**model["vocab"], **added}, merges_of(saved))


def merges_of(saved: dict[str, Any]) -> list[list[str]]:
    """The merges in a parsed tokenizer.json, each as its two parts."""
    return [merge.split(" ") if isinstance(merge, str) else merge for merge in saved["model"]["merges"]]


def from_vocab_and_merges(files: dict[str, bytes]) -> Vocabulary:
    """The vocabulary in vocab.json, merges.txt and, if there, added_tokens.json. Raises ValueError."""
    ids = {**read_object(files, "vocab.json"), **read_object(files, "added_tokens.json")}
    lines = files["merges.txt"].decode("utf-8").splitlines()
    return _byte_level(ids, [line.split(" ") for line in lines if line and not line.startswith("#version")])


def _byte_level(ids: dict[str, int], merges: list[list[str]]) -> Vocabulary:
    """The bytes of each token, from ids in GPT-2's printable letters. A token that is neither a byte nor the result of
    a merge is special."""
    if not all(type(i) is int and 0 <= i < MAX_IDS for i in ids.values()) or len({*ids.values()}) < len(ids):
        raise ValueError(f"the ids of its tokens are not different numbers below {MAX_IDS:,}")
    byte_of = {letter: byte for byte, letter in bytes_to_unicode().items()}
    merged = ["".join(merge) for merge in merges]
    merged_ids = [ids[token] for token in merged]
    if merged_ids != sorted(merged_ids):
        raise ValueError("its merges are not in the order of their ids")
    if len(set(merged)) < len(merged):
        raise ValueError("two of its merges give the same token")
    if missing := [letter for letter in byte_of if letter not in ids]:
        raise ValueError(f"{len(missing)} of the 256 bytes have no token")
    ordinary = dict.fromkeys([*byte_of, *merged])
    special = {token: i for token, i in ids.items() if token not in ordinary}
    return {bytes(byte_of[letter] for letter in token): ids[token] for token in ordinary}, special


def byte_level_fingerprint(vocabulary: dict[bytes, int], special: dict[str, int]) -> str:
    """SHA-256 of the ordinary tokens and <|endoftext|>."""
    tokens = sorted((i, token.hex()) for token, i in vocabulary.items())
    return hashlib.sha256(repr((tokens, special.get(END_OF_TEXT))).encode()).hexdigest()


def is_gpt2(vocabulary: dict[bytes, int], special: dict[str, int]) -> bool:
    return len(vocabulary) == GPT2_EOT == special.get(END_OF_TEXT)


def make_bpe_files(
    vocabulary: dict[bytes, int], special: dict[str, int], end: str | None, merges: list[list[str]] | None = None
) -> dict[str, bytes]:
    """The content of tokenizer.json, in which `end` is a token when a text spells it, and, for older tools, of
    vocab.json and merges.txt. Takes half a second for GPT-2 without its `merges`, as `merges_of` gives them."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    letters = bytes_to_unicode()

    def spell(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    ids = {spell(token): i for token, i in vocabulary.items()}
    pairs = merges or ((spell(left), spell(right)) for left, right in merge_rules(vocabulary))
    tokenizer = Tokenizer(models.BPE({**ids, **special}, [(left, right) for left, right in pairs]))
    tokenizer.add_special_tokens([AddedToken(end, normalized=True)] if end else [])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    with tempfile.TemporaryDirectory() as directory, disk_errors():
        tokenizer.save(f"{directory}/tokenizer.json")
        tokenizer.model.save(directory)
        return {path.name: path.read_bytes() for path in Path(directory).iterdir()}


def characters(saved: dict[str, Any]) -> list[str] | None:
    """The characters in id order if a parsed tokenizer.json is one of characters, as `write_characters` writes it."""
    model, steps = saved.get("model", {}), saved.get("pre_tokenizer") or {}
    if model.get("type") != "WordLevel" or saved.get("normalizer") or saved.get("added_tokens"):
        return None
    if steps.get("pattern") != {"Regex": EACH_CHARACTER} or steps.get("behavior") != "Isolated":
        return None
    chars = sorted(model["vocab"], key=model["vocab"].get)
    is_numbered = sorted(model["vocab"].values()) == list(range(len(chars)))
    return chars if is_numbered and all(len(char) == 1 for char in chars) else None


def write_characters(directory: str | Path, chars: list[str], block_size: int | None = None) -> None:
    """Write a character vocabulary, in id order, as files that AutoTokenizer of transformers loads."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    # the library needs an id for unknown characters; a space surprises least
    unknown = " " if " " in chars else chars[0]
    tokenizer = Tokenizer(models.WordLevel({char: i for i, char in enumerate(chars)}, unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(EACH_CHARACTER), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    with disk_errors():
        tokenizer.save(str(Path(directory) / "tokenizer.json"))
    # both transformers 4 and 5 load this class
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    write_tokenizer_config(directory, config, block_size)


def write_tokenizer_config(directory: str | Path, config: dict[str, Any], block_size: int | None = None) -> None:
    """Write tokenizer_config.json, with `block_size` as model_max_length if given. A batch is padded on the left, where
    the source says nothing: behind padding on the right, a model would write something else."""
    config = {"padding_side": "left"} | config | ({"model_max_length": block_size} if block_size else {})
    write_json(Path(directory) / "tokenizer_config.json", config, ensure_ascii=False)


def merge_rules(vocabulary: dict[bytes, int]) -> Iterator[tuple[bytes, bytes]]:
    """The merge list of a ranked vocabulary: for each longer token, in order, the two parts that BPE merges last."""
    for token, rank in sorted(vocabulary.items(), key=lambda item: item[1]):
        if len(token) > 1:
            parts = [token[i : i + 1] for i in range(len(token))]
            while len(parts) > 2:
                ranks = [vocabulary.get(left + right, rank) for left, right in zip(parts, parts[1:])]
                best = min(range(len(ranks)), key=ranks.__getitem__)
                parts[best : best + 2] = [parts[best] + parts[best + 1]]
            left, right = parts
            yield left, right


def bytes_to_unicode() -> dict[int, str]:
    """GPT-2's printable letter for each byte: the byte itself if printable, else the next unused code point from 256
    on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {**{byte: chr(byte) for byte in printable}, **{byte: chr(256 + n) for n, byte in enumerate(others)}}
