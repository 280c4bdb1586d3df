"""Parameters and FLOPs of a configuration."""

from __future__ import annotations

import torch

from finetune.gpt.model import GPTConfig, Transformer


def shapes(config: GPTConfig) -> dict[str, tuple[int, ...]]:
    """{name: shape} of all weights, without padding."""
    with torch.device("meta"):
        parameters = dict(Transformer(config).named_parameters())
    found = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    return found | {"wte.weight": (config.vocab_size, config.n_embd)}


def num_parameters(config: GPTConfig) -> int:
    """Number of weights without padding; the tied head counts once."""
    C, L = config.n_embd, config.n_layer
    embeddings = (config.vocab_size + config.block_size) * C
    biases_and_norms = L * (9 * C + config.mlp_width) + 2 * C
    return embeddings + num_matrix_weights(config) + biases_and_norms


def num_matrix_weights(config: GPTConfig) -> int:
    """Number of weights in the matrices of the blocks: c_attn, both c_proj and c_fc."""
    return config.n_layer * (4 * config.n_embd**2 + 2 * config.n_embd * config.mlp_width)


def flops_per_token(config: GPTConfig, adapters: int = 0) -> int:
    """FLOPs of training on one token, forward and backward, without recomputation.

    6 per weight in a matrix product (the head counts, embedding look-ups do not), plus 6 L C (T + 1) for causal
    attention. With `adapters`, a number of parameters, only these have gradients: the frozen weights count 4."""
    matrices = num_matrix_weights(config) + config.vocab_size * config.n_embd
    products = 4 * matrices + 6 * adapters if adapters else 6 * matrices
    return products + 6 * config.n_layer * config.n_embd * (config.block_size + 1)
