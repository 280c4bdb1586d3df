"""Weights and configurations to and from Hugging Face's GPT2LMHeadModel and nanoGPT's checkpoints.

Hugging Face stores the four Conv1D matrices of a layer as (in, out), we as (out, in). Nothing else differs, so that
both directions are exact.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from finetune.common.formatting import shown
from finetune.gpt.config_names import ACTIVATIONS, own_names, refuse_unknown
from finetune.gpt.model import GPTConfig
from finetune.gpt.size import shapes

# keys with the same name in config.json and GPTConfig
SAME_KEYS = (
    "vocab_size", "n_layer", "n_head", "n_embd", "n_inner", "layer_norm_epsilon", "bos_token_id", "eos_token_id",
    "scale_attn_weights", "scale_attn_by_inverse_layer_idx",
)  # fmt: skip
# keys of config.json that GPTConfig lacks, with the only value it can represent
FIXED_KEYS = {"tie_word_embeddings": True}
# keys without a meaning here, for a model whose source does not set them
DEFAULTS = {"initializer_range": 0.02, "use_cache": True, "reorder_and_upcast_attn": False}
# name code that transformers would run; an attention implementation can be a kernel of the Hub
CODE_KEYS = (
    "auto_map", "custom_pipelines", "custom_generate",
    "attn_implementation", "_attn_implementation", "experts_implementation",
)  # fmt: skip
# keys of a source's config.json that would be wrong in another directory
DROPPED_KEYS = ("_name_or_path", "transformers_version", *CODE_KEYS)
# fields of GPTConfig that nanoGPT lacks, in the `config` of its checkpoint
KEPT_IN_NANOGPT = ("activation_function", "bos_token_id", "eos_token_id", "generation_config", "other_keys")
SHORT_CONTEXT = 512  # pipeline() generates 256 tokens where a model does not say how many
# of torch.compile, FSDP and activation checkpointing, around the network or a part of it
WRAPPERS = re.compile(r"(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
PREFIXES = ("module.", "model.", "transformer.")  # of DDP, of Lightning and of GPT2LMHeadModel
NANOGPT_ARGS = {"n_layer", "n_head", "n_embd", "block_size", "vocab_size", "bias", "dropout"}
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
TASKS = "task_specific_params"
LAYER = re.compile(r"\bh\.\d+\.")
CONV1D = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")


def from_hf(state: dict[str, Tensor], config: GPTConfig) -> dict[str, Tensor]:
    """Our weights from those of a GPT2LMHeadModel or GPT2Model, with or without `transformer.` in their names.

    Raises ValueError for a head that is not tied to the embedding, and for tensors that are missing, unknown, there
    twice, no floating point numbers, or of another shape than `config` says."""
    expected = {name: shape[::-1] if name.endswith(CONV1D) else shape for name, shape in shapes(config).items()}
    state = check_shapes(_network(state), expected)
    return {name: tensor.t().contiguous() if name.endswith(CONV1D) else tensor for name, tensor in state.items()}


def to_hf(state: dict[str, Tensor], config: GPTConfig) -> dict[str, Tensor]:
    """The weights as `GPT2LMHeadModel.save_pretrained` writes them, without the tied head: views, of
    which matrices are not contiguous."""
    return {
        f"transformer.{name}": tensor.t() if name.endswith(CONV1D) else tensor
        for name, tensor in without_padding(state, config).items()
    }


def from_nanogpt(checkpoint: dict[str, Any]) -> tuple[GPTConfig, dict[str, Tensor]]:
    """`(config, weights)` from the contents of a nanoGPT ckpt.pt.

    torch.compile's prefixes are removed, a vocabulary padded to 50304 is cut to GPT-2's 50257, and missing biases
    (`bias=False`) become zeros. The activation is nanoGPT's exact GELU unless `to_nanogpt` has noted another."""
    args, trained_with, model = checkpoint["model_args"], checkpoint.get("config"), checkpoint["model"]
    if not (isinstance(args, dict) and isinstance(model, dict) and all(map(torch.is_tensor, model.values()))):
        raise ValueError("not a nanoGPT checkpoint: its 'model' does not hold tensors, or its 'model_args' no object")
    refuse_unknown(args, NANOGPT_ARGS)
    trained_with = trained_with if isinstance(trained_with, dict) else {}
    vocab_size = 50257 if args["vocab_size"] == 50304 else args["vocab_size"]
    end = 50256 if vocab_size == 50257 else None
    defaults = dict(zip(KEPT_IN_NANOGPT, ("gelu", end, end, None, {})))
    config = GPTConfig(
        **{key: args[key] for key in ("block_size", "n_layer", "n_head", "n_embd")},
        vocab_size=vocab_size,
        dropout=args.get("dropout", 0.0),
        **{key: trained_with.get(key, value) for key, value in defaults.items()},
    )
    state, expected = _network(model), shapes(config)
    state["wte.weight"] = state["wte.weight"][:vocab_size]
    for name, shape in expected.items():
        if name.endswith("bias") and name not in state:
            state[name] = torch.zeros(shape)
    return config, check_shapes(state, expected)


def _network(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the network under our names, without the tied head and the buffers of old files."""
    found: dict[str, Tensor] = {}
    for (name, tensor), ours in zip(state.items(), _without_prefixes([*state])):
        if ".lora_" in ours or ".base_layer." in ours:
            raise ValueError(f"{shown(name)} is of adapters; merge_and_unload() of peft merges them into the weights")
        if ours.endswith((".attn.bias", ".attn.masked_bias")):
            continue
        if ours in found:
            raise ValueError(f"{shown(name)} is there a second time under another name")
        if tensor.dtype not in FLOATS:
            raise ValueError(f"{shown(name)} is {str(tensor.dtype).removeprefix('torch.')}, and weights are floats")
        if tensor.layout != torch.strided:
            raise ValueError(f"{shown(name)} is a sparse tensor, and weights are dense")
        found[ours] = tensor
    head, wte = found.pop("lm_head.weight", None), found.get("wte.weight")
    if head is not None and wte is not None and head.dtype != wte.dtype:
        head, wte = head.float(), wte.float()
    is_tied = head is None or wte is None or torch.equal(head, wte)
    if not is_tied and not torch.equal(head.nan_to_num(), wte.nan_to_num()):  # NaN equals nothing, and is named later
        raise ValueError("lm_head.weight differs from wte.weight; only a GPT-2 with a tied head can be represented")
    return found


def _without_prefixes(names: list[str]) -> list[str]:
    """The names without what wraps a network, and without the prefixes that all of them have, but for the head."""
    found = [WRAPPERS.sub("", name) for name in names]
    while body := [name for name in found if not name.startswith("lm_head.")]:
        prefix = next((prefix for prefix in PREFIXES if all(name.startswith(prefix) for name in body)), None)
        if prefix is None:
            break
        found = [name.removeprefix(prefix) for name in found]
    return [name.removeprefix("transformer.") for name in found]


def to_nanogpt(state: dict[str, Tensor], config: GPTConfig) -> dict[str, Any]:
    """The contents of a nanoGPT ckpt.pt: `model`, `model_args` and `config`. Raises ValueError for a configuration that
    nanoGPT does not have.

    Without padding, because rows of zeros give logits of 0, far above those of GPT-2."""
    if config.n_inner not in (None, 4 * config.n_embd):
        raise ValueError(f"n_inner={config.n_inner}: nanoGPT's is four times n_embd={config.n_embd}")
    if config.has_own_scale:
        raise ValueError("scale_attn_weights or scale_attn_by_inverse_layer_idx: nanoGPT has neither")
    if config.layer_norm_epsilon != 1e-5:
        raise ValueError(f"layer_norm_epsilon={config.layer_norm_epsilon:g}: nanoGPT's is 1e-05")
    model = {f"transformer.{name}": tensor.contiguous() for name, tensor in without_padding(state, config).items()}
    model["lm_head.weight"] = model["transformer.wte.weight"]  # one tensor, which is saved once
    shape = {name: getattr(config, name) for name in ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")}
    kept = {name: getattr(config, name) for name in KEPT_IN_NANOGPT}
    return {"model": model, "model_args": {**shape, "bias": True, "dropout": 0.0}, "config": kept}


def without_padding(state: dict[str, Tensor], config: GPTConfig) -> dict[str, Tensor]:
    """The weights with the embedding cut to the vocabulary."""
    return {name: tensor[: config.vocab_size] if name == "wte.weight" else tensor for name, tensor in state.items()}


def with_padding(state: dict[str, Tensor], config: GPTConfig) -> dict[str, Tensor]:
    """The weights with rows of zeros appended to the embedding, if it is there, as `Transformer` has it."""
    if "wte.weight" not in state:
        return state
    wte = state["wte.weight"]
    return {**state, "wte.weight": F.pad(wte, (0, 0, 0, config.padded_vocab_size - len(wte)))}


def with_vocabulary(state: dict[str, Tensor], vocab_size: int) -> dict[str, Tensor]:
    """The weights with at least `vocab_size` rows in the embedding; new ones are the mean of the old ones, as in
    transformers' `resize_token_embeddings` without its noise."""
    wte = state["wte.weight"]
    more = vocab_size - len(wte)
    if more <= 0:
        return state
    mean = wte.mean(0, keepdim=True, dtype=torch.float64).to(wte.dtype)  # the same for any number of threads
    return {**state, "wte.weight": torch.cat([wte, mean.expand(more, -1)])}


def config_from_hf(hf: dict[str, Any]) -> GPTConfig:
    """A GPTConfig from the contents of a Hugging Face config.json. Raises ValueError for what GPTConfig lacks."""
    if hf.get("model_type") != "gpt2":
        raise ValueError(f"model_type is {shown(hf.get('model_type'))}, not gpt2")
    fixed = {**FIXED_KEYS, "add_cross_attention": False}
    refused = [f"{key}={shown(hf[key])}" for key, value in fixed.items() if hf.get(key, value) != value]
    activation = hf.get("activation_function", "gelu_new")
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        refused.append(f"activation_function={shown(activation)}")
    if type(hf.get("reorder_and_upcast_attn", False)) is not bool:  # another order of the same sums
        refused.append(f"reorder_and_upcast_attn={shown(hf['reorder_and_upcast_attn'])}")
    if refused:
        raise ValueError(f"a GPT-2 with {', '.join(refused)} cannot be represented")
    if hf.get("quantization_config"):
        raise ValueError("quantization_config: its weights are quantized; give the model that it was made from")
    hf = own_names(hf)
    _check_ids("eos_token_id", hf.get("eos_token_id"))
    _check_ids("bos_token_id", hf.get("bos_token_id"))
    given: dict[str, Any] = {"bos_token_id": 50256, "eos_token_id": 50256} | {
        key: hf[key] for key in SAME_KEYS if key in hf
    }
    try:
        config = GPTConfig(block_size=hf.get("n_positions", 1024), activation_function=ACTIVATIONS[activation], **given)
    except TypeError as error:
        raise ValueError(f"not a GPT-2 configuration: {error}") from None
    ours = {*config_to_hf(config), *DROPPED_KEYS} - DEFAULTS.keys() - {TASKS}
    config.other_keys = {key: value for key, value in hf.items() if key not in ours}
    return config


def config_to_hf(config: GPTConfig, dtype: str = "float32") -> dict[str, Any]:
    """The contents of a Hugging Face config.json for weights of this dtype."""
    return {
        **config.other_keys,
        **_lengths_of_tasks(config),
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_positions": config.block_size,
        "n_ctx": config.block_size,
        **{key: getattr(config, key) for key in SAME_KEYS},
        "activation_function": config.activation_function,
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.dropout,
        **{key: config.other_keys.get(key, value) for key, value in DEFAULTS.items()},
        **FIXED_KEYS,
        "dtype": dtype,
        "torch_dtype": dtype,
    }


def generation_config_from_hf(found: object) -> dict[str, Any]:
    """The contents of a generation_config.json, checked. Raises ValueError."""
    if not isinstance(found, dict):
        raise ValueError("it holds no object")
    _check_ids("eos_token_id", found.get("eos_token_id"))
    for key in ("max_length", "max_new_tokens"):
        if (length := found.get(key)) is not None and type(length) is not int:
            raise ValueError(f"{key} is {shown(length)}, and not a number of tokens")
    return {key: value for key, value in found.items() if key not in CODE_KEYS}


def _check_ids(key: str, value: object) -> None:
    """Raise ValueError unless `value` is an id, a list of ids or None."""
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(one) is int and abs(one) < 1 << 31 for one in ids):  # some write -1 for none
        raise ValueError(f"{key} is {shown(value)}, and not an id or a list of ids")


def generation_config(config: GPTConfig) -> dict[str, Any]:
    """The contents of generation_config.json: as they were in the model's source, with `max_new_tokens` where
    pipeline() would run past the last position, and in place of a `max_length`, which makes every call with
    max_new_tokens warn, and is not read by the pipeline() of transformers 4."""
    found = {key: value for key, value in (config.generation_config or {}).items() if key != "max_length"}
    if config.generation_config is None:
        tokens = {key: getattr(config, key) for key in ("bos_token_id", "eos_token_id")}
        tokens["pad_token_id"] = config.pad_id
        found = {key: value for key, value in tokens.items() if value is not None}
    if (new_tokens := _max_new_tokens(config)) is not None:
        found["max_new_tokens"] = new_tokens
    return found


def _max_new_tokens(config: GPTConfig) -> int | None:
    """The limit of the source, or half the context where pipeline() would run past the last position."""
    given = config.generation_config or {}
    wanted, half = given.get("max_new_tokens"), max(1, config.block_size // 2)
    if wanted is not None:
        return wanted if wanted < config.block_size else half
    if (length := given.get("max_length")) is not None:  # with the prompt
        return max(1, min(length, half))
    return half if config.block_size < SHORT_CONTEXT else None


def _lengths_of_tasks(config: GPTConfig) -> dict[str, Any]:
    """The same for transformers 4, whose pipeline() reads it in config.json."""
    new_tokens, tasks = _max_new_tokens(config), config.other_keys.get(TASKS)
    if new_tokens is None:
        return {}
    tasks = tasks if isinstance(tasks, dict) else {}
    own = tasks.get("text-generation")
    generation = {**(own if isinstance(own, dict) else {}), "max_new_tokens": new_tokens}
    return {TASKS: {**tasks, "text-generation": generation}}


def check_shapes(state: dict[str, Tensor], expected: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """`state` in the order of `expected`, {name: shape}. Raises ValueError if names or shapes differ."""
    missing, unknown = expected.keys() - state.keys(), state.keys() - expected.keys()
    found = (("missing", missing), ("unknown", unknown))
    problems = [f"{len(names)} {what}, such as {shown(min(names))}" for what, names in found if names]
    if problems:
        layers = len({layer[0] for name in expected if (layer := LAYER.search(name))})
        raise ValueError(f"tensors do not match a GPT-2 of {layers} layers: {'; '.join(problems)}")
    for name, shape in expected.items():
        if tuple(state[name].shape) != shape:
            raise ValueError(f"{name} has shape {tuple(state[name].shape)}, the configuration says {shape}")
    return {name: state[name] for name in expected}
