"""One set of weights, several spellings: ours, Hugging Face's GPT2LMHeadModel and nanoGPT's checkpoints.

Pure functions on dictionaries of tensors and on configurations. The one rule between Hugging Face and us: its four
Conv1D matrices a layer are stored (in, out), ours (out, in); everything else is equal, so both directions are exact.
"""

import dataclasses

import torch

from finetune.gpt.model import GPTConfig
from finetune.gpt.size import shapes

CONV1D = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")


def from_hf(state, config):
    """Our weights from a GPT2LMHeadModel or GPT2Model state dict, or from a Hub file with or without `transformer.`
    prefixes.

    Old attention-mask buffers are dropped. Raises ValueError when the head is not tied to the embedding, when tensors
    are missing, unknown or of another shape than `config` says."""
    state = {name.removeprefix("transformer."): tensor for name, tensor in state.items()}
    state = {name: tensor for name, tensor in state.items() if not name.endswith((".attn.bias", ".attn.masked_bias"))}
    head = state.pop("lm_head.weight", None)
    if head is not None and "wte.weight" in state and not torch.equal(head, state["wte.weight"]):
        raise ValueError(
            "lm_head.weight differs from wte.weight; GPT-2 ties them, and an untied head cannot be represented"
        )
    return _checked(
        {name: tensor.t().contiguous() if name.endswith(CONV1D) else tensor for name, tensor in state.items()}, config
    )


def to_hf(state, config):
    """The state dict that `GPT2LMHeadModel.save_pretrained` writes: `transformer.` prefixes, Conv1D matrices, no copy
    of the head."""
    state = without_padding(state, config)
    return {
        f"transformer.{name}": (tensor.t() if name.endswith(CONV1D) else tensor).contiguous()
        for name, tensor in state.items()
    }


def from_nanogpt(checkpoint):
    """`(config, weights)` from the dictionary in a nanoGPT ckpt.pt.

    torch.compile's prefixes are stripped, a vocabulary padded to 50304 is cut back to GPT-2's 50257, and missing biases
    (`bias=False`) become zeros, which compute the same. nanoGPT uses the exact GELU, so the configuration says so,
    unless the checkpoint is one of `to_nanogpt`, which remembers what the weights were trained with."""
    args, kept = checkpoint["model_args"], checkpoint.get("config")
    kept = kept if isinstance(kept, dict) else {}
    vocab_size = 50257 if args["vocab_size"] == 50304 else args["vocab_size"]
    end = 50256 if vocab_size == 50257 else None
    config = GPTConfig(
        block_size=args["block_size"],
        vocab_size=vocab_size,
        n_layer=args["n_layer"],
        n_head=args["n_head"],
        n_embd=args["n_embd"],
        dropout=args.get("dropout", 0.0),
        activation_function=kept.get("activation_function", "gelu"),
        bos_token_id=kept.get("bos_token_id", end),
        eos_token_id=kept.get("eos_token_id", end),
    )
    state = {name.removeprefix("_orig_mod.").removeprefix("transformer."): t for name, t in checkpoint["model"].items()}
    state = {name: t for name, t in state.items() if name != "lm_head.weight" and not name.endswith(".attn.bias")}
    state["wte.weight"] = state["wte.weight"][:vocab_size]
    for name, shape in shapes(config).items():
        if name.endswith("bias") and name not in state:
            state[name] = torch.zeros(shape)
    return config, _checked(state, config)


def to_nanogpt(state, config):
    """The `model`, `model_args` and `config` of a nanoGPT ckpt.pt with these weights. Raises ValueError for what
    nanoGPT cannot be.

    The vocabulary is not padded: a padding row of zeros would give its id a logit of 0, and GPT-2's logits lie far
    below that."""
    if config.n_inner not in (None, 4 * config.n_embd):
        raise ValueError(f"n_inner={config.n_inner}: nanoGPT's is four times n_embd={config.n_embd}")
    if config.layer_norm_epsilon != 1e-5:
        raise ValueError(f"layer_norm_epsilon={config.layer_norm_epsilon:g}: nanoGPT's is 1e-05")
    model = {f"transformer.{name}": tensor.contiguous() for name, tensor in without_padding(state, config).items()}
    model["lm_head.weight"] = model["transformer.wte.weight"]  # one tensor, which is saved once
    shape = {name: getattr(config, name) for name in ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")}
    kept = {name: getattr(config, name) for name in ("activation_function", "bos_token_id", "eos_token_id")}
    return {"model": model, "model_args": {**shape, "bias": True, "dropout": 0.0}, "config": kept}


def without_padding(state, config):
    """The same weights with the embedding cut to the true vocabulary."""
    return {name: tensor[: config.vocab_size] if name == "wte.weight" else tensor for name, tensor in state.items()}


def with_padding(state, config):
    """The same weights with zero rows appended to the embedding, as the network holds it."""
    wte = state["wte.weight"]
    padding = wte.new_zeros(config.padded_vocab_size - wte.size(0), wte.size(1))
    return {**state, "wte.weight": torch.cat([wte, padding])}


def config_from_hf(hf):
    """A GPTConfig from the dictionary of a Hugging Face config.json. Raises ValueError naming what cannot be
    represented."""
    if hf.get("model_type") != "gpt2":
        raise ValueError(f"model_type is {hf.get('model_type')!r}, not 'gpt2'")
    wanted = {
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "reorder_and_upcast_attn": False,
        "add_cross_attention": False,
        "tie_word_embeddings": True,
    }
    refused = [f"{name}={hf[name]}" for name, value in wanted.items() if hf.get(name, value) != value]
    activation = hf.get("activation_function", "gelu_new")
    if activation not in ("gelu_new", "gelu_pytorch_tanh", "gelu"):
        refused.append(f"activation_function={activation}")
    if refused:
        raise ValueError(f"a GPT-2 with {', '.join(refused)} cannot be represented")
    try:
        return GPTConfig(
            block_size=hf.get("n_positions", 1024),
            vocab_size=hf.get("vocab_size", 50257),
            n_layer=hf.get("n_layer", 12),
            n_head=hf.get("n_head", 12),
            n_embd=hf.get("n_embd", 768),
            n_inner=hf.get("n_inner"),
            activation_function="gelu" if activation == "gelu" else "gelu_new",
            layer_norm_epsilon=hf.get("layer_norm_epsilon", 1e-5),
            bos_token_id=hf.get("bos_token_id", 50256),
            eos_token_id=hf.get("eos_token_id", 50256),
        )
    except TypeError as error:
        raise ValueError(f"not a GPT-2 configuration: {error}") from None


def config_to_hf(config, dtype="float32"):
    """The dictionary of the config.json of `config` beside weights of that dtype. Dropout is left at what was trained
    with, so it is 0 unless asked for."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_positions": config.block_size,
        "n_ctx": config.block_size,
        "vocab_size": config.vocab_size,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_embd": config.n_embd,
        "n_inner": config.n_inner,
        "activation_function": config.activation_function,
        "layer_norm_epsilon": config.layer_norm_epsilon,
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.dropout,
        "initializer_range": 0.02,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "reorder_and_upcast_attn": False,
        "tie_word_embeddings": True,
        "use_cache": True,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
        "dtype": dtype,
        "torch_dtype": dtype,
    }


def _checked(state, config):
    """`state` in the order of `shapes(config)`, if it is exactly that."""
    wanted = shapes(config)
    missing, unknown = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    if missing or unknown:
        parts = [
            f"{len(names)} {word}, such as {names[0]}"
            for names, word in ((missing, "missing"), (unknown, "unknown"))
            if names
        ]
        raise ValueError(
            f"tensors do not match a GPT-2 of {dataclasses.asdict(config)['n_layer']} layers: {'; '.join(parts)}"
        )
    for name, shape in wanted.items():
        if tuple(state[name].shape) != shape:
            raise ValueError(f"{name} has shape {tuple(state[name].shape)}, the configuration says {shape}")
    return {name: state[name] for name in wanted}
