"""Parameters and FLOPs of a configuration."""

from __future__ import annotations

import math

from finetune.gpt.model import GPTConfig


def shapes(config: GPTConfig) -> dict[str, tuple[int, ...]]:
    """{name: shape} of all weights, without padding."""
    C, inner = config.n_embd, config.mlp_width
    block = {
        "ln_1.weight": (C,),
        "ln_1.bias": (C,),
        "attn.c_attn.weight": (3 * C, C),
        "attn.c_attn.bias": (3 * C,),
        "attn.c_proj.weight": (C, C),
        "attn.c_proj.bias": (C,),
        "ln_2.weight": (C,),
        "ln_2.bias": (C,),
        "mlp.c_fc.weight": (inner, C),
        "mlp.c_fc.bias": (inner,),
        "mlp.c_proj.weight": (C, inner),
        "mlp.c_proj.bias": (C,),
    }
    return {
        "wte.weight": (config.vocab_size, C),
        "wpe.weight": (config.block_size, C),
        **{f"h.{i}.{name}": shape for i in range(config.n_layer) for name, shape in block.items()},
        "ln_f.weight": (C,),
        "ln_f.bias": (C,),
    }


def num_parameters(config: GPTConfig) -> int:
    """Number of weights without padding; the tied head counts once."""
    return sum(math.prod(shape) for shape in shapes(config).values())


def flops_per_token(config: GPTConfig, adapters: int = 0) -> int:
    """FLOPs of training on one token, forward and backward, without recomputation.

    6 per weight in a matrix product (the head counts, embedding look-ups do not), plus 6 L C (T + 1) for causal
    attention. With `adapters`, a number of parameters, only these have gradients: the frozen weights count 4."""
    C, L = config.n_embd, config.n_layer
    matrices = L * (4 * C * C + 2 * C * config.mlp_width) + config.vocab_size * C
    return (4 * matrices + 6 * adapters if adapters else 6 * matrices) + 6 * L * C * (config.block_size + 1)
