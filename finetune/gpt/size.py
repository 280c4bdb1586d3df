"""Parameters and FLOPs of a configuration."""

import math


def shapes(config):
    """{name: shape} of all weights of a configuration, without padding."""
    C, inner = config.n_embd, config.n_inner or 4 * config.n_embd
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
    layers = {f"h.{i}.{name}": shape for i in range(config.n_layer) for name, shape in block.items()}
    return {
        "wte.weight": (config.vocab_size, C),
        "wpe.weight": (config.block_size, C),
        **layers,
        "ln_f.weight": (C,),
        "ln_f.bias": (C,),
    }


def num_parameters(config):
    """Weights of a configuration, the tied head once, without padding."""
    return sum(math.prod(shape) for shape in shapes(config).values())


def flops_per_token(config, adapters=0):
    """Useful floating point operations of training on one token, forward and backward: 6 for each weight of a matrix
    product (the tied head included, embedding look-ups not), and causal attention counted once: 6 L C (T + 1). Where
    only so many parameters of `adapters` are trained, the weights have no gradients, and count 4."""
    C, L = config.n_embd, config.n_layer
    inner = config.n_inner or 4 * C
    matrices = L * (4 * C * C + 2 * C * inner) + config.vocab_size * C
    return (4 * matrices + 6 * adapters if adapters else 6 * matrices) + 6 * L * C * (config.block_size + 1)
