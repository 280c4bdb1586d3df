"""How many samples are drawn together. The number follows from the model and the lengths alone where memory allows it:
in a batch of another size a row is rounded in another way, which may change what is drawn.
"""

from __future__ import annotations

import torch

from finetune.common.free_memory import available_bytes
from finetune.gpt import size
from finetune.gpt.model import GPTConfig, Transformer

FIRST, MOST = 16, 64  # rows of the first piece; with more than MOST a token hardly becomes cheaper on a CPU
USUAL_BYTES = 2 << 30  # of a piece, or as much as the weights take
MAX_FILL = 0.8  # of the free memory


def rows_of_piece(begin: int, most: int) -> int:
    """Rows of the piece that begins with sample number `begin`: as many as there were before, within bounds."""
    return min(max(begin, FIRST), most)


def most_rows(model: Transformer, prompt_length: int, new_tokens: int) -> int:
    """The most rows of a piece, a power of two."""
    weight = model.wte.weight
    itemsize = 4 if weight.device.type == "cpu" else weight.dtype.itemsize
    row = bytes_of_row(model.config, prompt_length, new_tokens, itemsize)
    prompt = bytes_of_pass(model.config, min(prompt_length, model.config.block_size), itemsize)  # once for all rows
    usual = max(USUAL_BYTES, weight.dtype.itemsize * size.num_parameters(model.config))
    rows, allowed = MOST, min(usual, int(MAX_FILL * available_bytes(weight.device.type)))
    while rows > 1 and prompt + rows * row > allowed:
        rows //= 2
    return rows


def bytes_of_row(config: GPTConfig, prompt_length: int, new_tokens: int, itemsize: int) -> int:
    """Bytes that a sample needs while it is drawn: keys and values, ids with their random keys, numbers for each id of
    the vocabulary, and beyond block_size a pass over the whole window."""
    length = prompt_length + new_tokens
    cache = 2 * itemsize * config.n_layer * config.n_embd * min(length, config.block_size)
    window = bytes_of_pass(config, config.block_size, itemsize) if length > config.block_size else 0
    return cache + 40 * length + 140 * config.vocab_size + window  # 140 where all ids or those of top_p are drawn from


def bytes_of_pass(config: GPTConfig, tokens: int, itemsize: int) -> int:
    """Bytes of activations at the widest point of a pass over so many tokens, as measured."""
    return itemsize * tokens * (14 * config.n_embd + 3 * config.mlp_width)


def is_lone(model: Transformer, num_samples: int) -> bool:
    """Whether a sample is drawn in a batch of one row, which in float32 on a CPU takes less time than FIRST
    and rounds alike but for the last bits."""
    weight = model.wte.weight
    return num_samples == 1 and weight.device.type == "cpu" and weight.dtype == torch.float32
