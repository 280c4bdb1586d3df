"""The keys of a foreign config.json under GPT-2's own names.

A key that may describe the network and that nothing reads is refused: the number of heads, the scale of the scores and
the activation leave no trace in the shapes of the tensors, so that a guess would compute something else."""

from __future__ import annotations

import re
from typing import Any

from finetune.common.formatting import shown

# transformers' names (GPT2Config.attribute_map) and that of its other models for the width of the MLP
OTHER_NAMES = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
    "intermediate_size": "n_inner",
}
ACTIVATIONS = {
    **dict.fromkeys(("gelu_new", "gelu_pytorch_tanh", "gelu_python_tanh", "gelu_fast", "gelu_accurate"), "gelu_new"),
    **dict.fromkeys(("gelu", "gelu_python"), "gelu"),
}
# words of a key that describes a network
SHAPE = re.compile(
    r"n?(heads?|layers?|embd|embed|ctx)|d|dim|dims|embeddings?|hidden|depth|width|size|inner|intermediate|ffn?|mlp"
    r"|positions?|context|seq|sequence|block|window|vocab|eps|epsilon|norm|act|activation|rope|rotary|alibi|kv|query"
    r"|experts?|scale|scaling|softcapping|parallel|residual"
)
# keys of transformers' configurations with such words, of which the network of a GPT-2 knows nothing or which are read
KNOWN = {
    *("vocab_size", "n_ctx", "n_embd", "n_head", "n_inner", "n_layer", "n_positions"),
    *("activation_function", "layer_norm_epsilon", "scale_attn_weights", "scale_attn_by_inverse_layer_idx"),
    *("summary_activation", "output_hidden_states", "chunk_size_feed_forward", "cross_attention_hidden_size"),
    *("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "epsilon_cutoff", "sequence_bias", "dola_layers"),
    *("max_matching_ngram_size", "pruned_heads", "tie_word_embeddings", "experts_implementation"),
}


def own_names(hf: dict[str, Any]) -> dict[str, Any]:
    """`hf`, the contents of a config.json, with GPT-2's own names. Raises ValueError for two names of a size with two
    values, for a key that is not understood, and without a number of heads."""
    found = {key: value for key, value in hf.items() if key not in OTHER_NAMES}
    for other, name in OTHER_NAMES.items():
        value = hf.get(other)
        if value is None:
            continue
        if found.get(name) not in (None, value):
            raise ValueError(f"{name}={shown(found[name])} and {other}={shown(value)} are two names of the same size")
        found[name] = value
    refuse_unknown(found, KNOWN)
    if found.get("n_head") is None:
        raise ValueError("n_head is missing, and no tensor tells how many heads there are; add it (GPT-2 small has 12)")
    return found


def refuse_unknown(found: dict[str, Any], known: set[str]) -> None:
    """Raise ValueError naming the keys, other than `known` ones, that may describe the network."""
    unknown = [key for key, value in found.items() if value and key not in known and _describes_network(key)]
    if unknown:
        named = ", ".join(f"{shown(key)}={shown(found[key])}" for key in sorted(unknown)[:3])
        raise ValueError(
            f"{named}: not a key of GPT-2, and may describe another network; remove it if it has no meaning"
        )


def _describes_network(key: str) -> bool:
    words = key.lower().split("_")
    return "drop" not in key.lower() and any(SHAPE.fullmatch(word) for word in words)
