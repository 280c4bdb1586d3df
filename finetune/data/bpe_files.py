"""Reading and writing the tokenizer files of Hugging Face models."""

from pathlib import Path

from finetune.common.files import write_json

FILES = (
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)


def merge_rules(vocabulary):
    """The merge list behind a ranked vocabulary: each longer token, in order, as the two parts that BPE makes of it
    just before."""
    for token, rank in sorted(vocabulary.items(), key=lambda item: item[1]):
        if len(token) > 1:
            parts = [token[i : i + 1] for i in range(len(token))]
            while len(parts) > 2:
                ranks = [vocabulary.get(left + right, rank) for left, right in zip(parts, parts[1:])]
                best = min(range(len(ranks)), key=ranks.__getitem__)
                parts[best : best + 2] = [parts[best] + parts[best + 1]]
            yield tuple(parts)


def bytes_to_unicode():
    """GPT-2's printable letter for each byte: itself where it is printable, else the next unused code point from 256
    on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {**{byte: chr(byte) for byte in printable}, **{byte: chr(256 + n) for n, byte in enumerate(others)}}


def write_tokenizer_config(directory, config, block_size):
    config |= {"model_max_length": block_size} if block_size else {}
    write_json(Path(directory) / "tokenizer_config.json", config, ensure_ascii=False)
