"""A model as one GGUF file, for llama.cpp and Ollama, read back and compared."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from finetune.common.errors import Failure, UsageError
from finetune.data import bpe_files
from finetune.data.bpe_tokenizer import BPETokenizer
from finetune.data.char_tokenizer import CharTokenizer
from finetune.data.hf_tokenizer import HFTokenizer
from finetune.data.tokenizer import Tokenizer
from finetune.gpt import GPT, GPTConfig
from finetune.publishing import llama_cpp, verify
from finetune.runs.chat_session import turn_ends

NAMES = {
    "wte": "token_embd",
    "wpe": "position_embd",
    "ln_f": "output_norm",
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # llama.cpp's types of tokens
END_KEYS = ("eos", "eot", "eom")  # the ids at which llama.cpp ends a text
Q8_BLOCK = 32  # values that share a scale


def write(
    path: Path, config: GPTConfig, weights: dict[str, torch.Tensor], tokenizer: Tokenizer, kind: str
) -> dict[str, Any]:
    """Write the float32 `weights` as `kind`, f32, f16 or q8_0, read the file back, and compare. Returns what was
    compared. Raises UsageError for a model that the format cannot hold, and Failure when tensors differ."""
    from gguf import GGUFWriter

    if config.has_own_scale:
        problem = "llama.cpp's GPT-2 has no scale_attn_weights and no scale_attn_by_inverse_layer_idx"
        raise UsageError(f"format: gguf cannot hold this model: {problem}")
    writer = GGUFWriter(path, "gpt2")
    writer.add_name(path.stem)
    writer.add_context_length(config.block_size)
    writer.add_embedding_length(config.n_embd)
    writer.add_feed_forward_length(config.mlp_width)
    writer.add_block_count(config.n_layer)
    writer.add_head_count(config.n_head)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)
    _add_tokenizer(writer, tokenizer, config)
    for name, tensor in weights.items():
        values, stored = _quantized(name, tensor.float().numpy(), kind)
        writer.add_tensor(_tensor_name(name), values, raw_dtype=stored)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    except OSError as error:  # numpy says of a full disk only how much it wrote
        raise error if error.errno else OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from None
    return _verify(path, config, weights, tokenizer, kind)


def end_ids(config: GPTConfig, tokenizer: Tokenizer) -> list[int]:
    """The ids that end a text, those of the model first; also what ends a turn of the chat template."""
    own = [] if tokenizer.eot is None else [tokenizer.eot]
    own += sorted(turn_ends(tokenizer.chat_template, tokenizer)) if tokenizer.chat_template else []
    return [i for i in dict.fromkeys([*config.end_ids, *own]) if 0 <= i < config.vocab_size]


def _tensor_name(name: str) -> str:
    stem, kind = name.rsplit(".", 1)
    if not stem.startswith("h."):
        return f"{NAMES[stem]}.{kind}"
    _, layer, rest = stem.split(".", 2)
    return f"blk.{layer}.{NAMES[rest]}.{kind}"


def _quantized(name: str, values: np.ndarray, kind: str) -> tuple[np.ndarray, Any]:
    """`(values, type)` of a tensor in the file. As in llama.cpp's own files, biases, norms and positions stay float32,
    and rows that do not fill blocks of q8_0 become f16."""
    from gguf import GGMLQuantizationType, quants

    stored = GGMLQuantizationType[kind.upper()]
    if values.ndim == 1 or name == "wpe.weight":
        stored = GGMLQuantizationType.F32
    elif kind == "q8_0" and values.shape[1] % Q8_BLOCK:
        stored = GGMLQuantizationType.F16
    largest = float(np.abs(values).max()) / (127 if stored == GGMLQuantizationType.Q8_0 else 1)
    if stored != GGMLQuantizationType.F32 and largest > float(np.finfo(np.float16).max):
        raise UsageError(f"gguf_type: some weights of {name} are too large for {kind}; use f32")
    return quants.quantize(values, stored), stored


def _add_tokenizer(writer: Any, tokenizer: Tokenizer, config: GPTConfig) -> None:
    """Add vocabulary, special ids and chat template. Raises UsageError for a tokenizer that llama.cpp does not have."""
    ends = end_ids(config, tokenizer)
    if isinstance(tokenizer, CharTokenizer):
        _add_characters(writer, tokenizer, config.vocab_size)
    else:
        if not ends:  # llama.cpp would then end a text at id 11
            raise UsageError("format: gguf needs a token that ends a text, and this tokenizer has none")
        _add_bpe(writer, _tokenizer_json(tokenizer), config.vocab_size)
        begin = config.bos_token_id
        writer.add_bos_token_id(begin if begin is not None and 0 <= begin < config.vocab_size else ends[0])
    if len(ends) > len(END_KEYS):
        raise UsageError(
            f"format: gguf holds at most {len(END_KEYS)} ids that end a text, and this model has {len(ends)}"
        )
    for key, i in zip(END_KEYS, ends):
        getattr(writer, f"add_{key}_token_id")(i)
    if config.pad_id is not None and 0 <= config.pad_id < config.vocab_size:
        writer.add_pad_token_id(config.pad_id)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def _add_characters(writer: Any, tokenizer: CharTokenizer, vocab_size: int) -> None:
    """Characters as the kind "rwkv", which looks for the longest token in UTF-8, escaped as in Python. The kind "gpt2"
    will not do: without an end-of-text token, llama.cpp ends a text there at id 11, which here is a character."""
    if lone := [char for char in tokenizer.chars if "\ud800" <= char <= "\udfff"]:
        raise UsageError(f"format: gguf holds UTF-8, and {lone[0]!r} of this vocabulary has none")
    tokens = ["".join(map(_escaped, char.encode())) for char in tokenizer.chars]
    unused = [f"\\xff{i}" for i in range(len(tokens), vocab_size)]  # no text in UTF-8 has such a byte
    writer.add_tokenizer_model("rwkv")
    writer.add_token_list(tokens + unused)
    writer.add_token_types([NORMAL] * len(tokens) + [UNUSED] * len(unused))
    writer.add_unk_token_id(tokenizer.chars.index(" ") if " " in tokenizer.chars else 0)  # as in tokenizer.json


def _escaped(byte: int) -> str:
    return chr(byte) if 32 <= byte < 127 and byte != ord("\\") else f"\\x{byte:02x}"


def _add_bpe(writer: Any, saved: dict[str, Any], vocab_size: int) -> None:
    """A tokenizer.json of GPT-2's kind. Raises UsageError for another."""
    try:
        vocabulary, special = bpe_files.from_tokenizer_json(saved)
    except (ValueError, KeyError) as error:
        raise UsageError(f"format: gguf holds GPT-2's kind of BPE and characters: {error}") from None
    added = saved.get("added_tokens", [])
    for token in added:
        if any(token.get(flag) for flag in ("lstrip", "rstrip", "single_word")):
            raise UsageError(f"format: gguf: the added token {token['content']!r} has flags that llama.cpp ignores")
    tokens, types = [f"[unused{i}]" for i in range(vocab_size)], [UNUSED] * vocab_size
    letters = bpe_files.bytes_to_unicode()
    for text, i in vocabulary.items():
        tokens[i], types[i] = "".join(letters[byte] for byte in text), NORMAL
    for text, i in special.items():
        tokens[i], types[i] = text, NORMAL
    for token in added:
        types[token["id"]] = CONTROL if token.get("special") else USER_DEFINED
    if len(set(tokens)) < len(tokens):
        raise UsageError(
            "format: gguf needs a different name for each token, and padding would repeat one, such as [unused7]"
        )
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in saved["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)


def _tokenizer_json(tokenizer: BPETokenizer | HFTokenizer) -> dict[str, Any]:
    if isinstance(tokenizer, HFTokenizer):
        return tokenizer.pipeline
    made = tokenizer.files
    if "tokenizer.json" not in made:
        made = bpe_files.make_bpe_files(tokenizer.vocabulary, tokenizer.special, tokenizer.eot_text)
    return json.loads(made["tokenizer.json"])


@torch.no_grad()
def _verify(
    path: Path, config: GPTConfig, weights: dict[str, torch.Tensor], tokenizer: Tokenizer, kind: str
) -> dict[str, Any]:
    """Read a GGUF file back and compare each tensor, exactly or within the rounding of its type. Returns the counts,
    how far a logit moves, and what an installed llama.cpp says. Raises Failure."""
    from gguf import GGUFReader, quants

    found = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
    if found.keys() != {*map(_tensor_name, weights)}:
        raise Failure(f"{path.name}: holds other tensors than were written; nothing was exported", 1)
    read = {}
    for name, tensor in weights.items():
        held = found[_tensor_name(name)]
        values = np.array(quants.dequantize(held.data, held.tensor_type), np.float32)
        wanted = tensor.float().numpy()
        if values.shape != wanted.shape or not (np.abs(values - wanted) <= _bound(wanted, held.tensor_type.name)).all():
            raise Failure(f"{path.name}: {held.name} is not what was written; nothing was exported", 1)
        read[name] = torch.from_numpy(values)
    ours = GPT.from_state(config, weights).eval()
    theirs = GPT.from_state(dataclasses.replace(config, activation_function="gelu_new"), read).eval()  # llama.cpp's
    difference, largest = verify.compare(ours, theirs, [verify.every_position(config)])
    compared = {"tensors_compared": len(read), "max_difference": difference, "largest_logit": largest}
    return {**compared, "llama_cpp": llama_cpp.check(path, theirs, tokenizer, kind)}


def _bound(values: np.ndarray, kind: str) -> np.ndarray | float:
    """How far each value may be from what was written: nothing, half a unit of the last place of f16, or half a step of
    a block's scale, which is itself rounded to f16."""
    if kind == "F32":
        return 0.0
    if kind == "F16":
        return np.abs(values) * 2.0**-11 + 2.0**-25
    largest = np.abs(values).reshape(-1, Q8_BLOCK).max(axis=1)
    return np.repeat(largest * (0.5 / 127 + 2.0**-11) * 1.01 + 127 * 2.0**-25, Q8_BLOCK).reshape(values.shape)
