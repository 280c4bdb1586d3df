"""LoRA by the `peft` package: two small matrices beside each large one are trained in its place.

An adapted matrix computes W x + b + lora_alpha / lora_rank * B (A x), with A (rank, in) and B (out, rank). W and b are
frozen. B starts at zero, so that training starts with the given model. Names of parameters in states and files are
without peft's additions:

    h.0.attn.c_attn.weight   h.0.attn.c_attn.lora_A.weight   h.0.attn.c_attn.lora_B.weight
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from finetune.common.errors import UsageError
from finetune.common.files import read_json_object
from finetune.common.formatting import is_number, shown
from finetune.config.recipe import Recipe, lora_alpha
from finetune.gpt import convert, hub_model, pretrained, size
from finetune.gpt.model import GPTConfig, Transformer
from finetune.gpt.pretrained import write_tensors

if TYPE_CHECKING:
    from peft import LoraConfig

TARGETS = ["c_attn", "c_fc", "c_proj"]  # the last parts of the names in convert.CONV1D
ADAPTER = "default"  # peft's name for the only adapter


def add_adapters(network: Transformer, recipe: Recipe) -> None:
    """Freeze a network and add adapters to its matrices, in place. A is drawn from the seed."""
    from peft import inject_adapter_in_model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        inject_adapter_in_model(_peft_config(recipe.lora_rank, _alpha(recipe), recipe.lora_dropout), network, ADAPTER)
    for module in _adapted(network).values():
        module.cast_input_dtype_enabled = False  # no cast to float32, which autocast would undo
    if network.config.new_tokens:  # their rows are the same yet, so the embedding is trained too
        network.wte.weight.requires_grad_(True)


def num_adapter_parameters(config: GPTConfig, rank: int) -> int:
    """Number of parameters that adapters train: `rank` for each input and each output of the four matrices of a layer,
    and the embedding if the run adds tokens."""
    embedding = config.vocab_size * config.n_embd if rank and config.new_tokens else 0
    return rank * config.n_layer * (8 * config.n_embd + 2 * config.mlp_width) + embedding


def shapes(config: GPTConfig, rank: int) -> dict[str, tuple[int, ...]]:
    """{name: shape} of what adapters train, as `trained` names it, without padding."""
    found: dict[str, tuple[int, ...]] = {"wte.weight": (config.vocab_size, config.n_embd)} if config.new_tokens else {}
    for name, shape in size.shapes(config).items():
        if name.endswith(convert.CONV1D):
            stem = name.removesuffix(".weight")
            found |= {f"{stem}.lora_A.weight": (rank, shape[1]), f"{stem}.lora_B.weight": (shape[0], rank)}
    return found


def strip_peft_names(name: str) -> str:
    """The name of a parameter without peft's additions."""
    return name.replace(".base_layer.", ".").replace(f".{ADAPTER}.", ".")


def state(network: nn.Module) -> dict[str, Tensor]:
    """Weights and adapters, if any."""
    return {strip_peft_names(name): tensor for name, tensor in network.state_dict().items()}


def trained(network: nn.Module) -> dict[str, Tensor]:
    """What training changes: the adapters and the embedding of new tokens, or all weights if there are no adapters."""
    tensors = state(network)
    names = {strip_peft_names(name) for name, parameter in network.named_parameters() if parameter.requires_grad}
    has_adapters = any(".lora_" in name for name in tensors)
    return {name: tensor for name, tensor in tensors.items() if name in names} if has_adapters else tensors


def load(network: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Load what `trained` returned."""
    peft_names = {strip_peft_names(name): name for name in network.state_dict()}
    given = {peft_names.get(name, name): tensor for name, tensor in tensors.items()}
    network.load_state_dict(given if len(given) == len(peft_names) else network.state_dict() | given)


def fingerprint(network: nn.Module) -> str:
    """sha256 of the weights of a network on the CPU, before it gets adapters."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy())
    return digest.hexdigest()


@torch.no_grad()
def merged(network: nn.Module) -> dict[str, Tensor]:
    """Weights with the adapters merged in, as copies on the CPU: undoing a merge in place would round the weights."""
    weights = {name: tensor for name, tensor in state(network).items() if ".lora_" not in name}
    for name, module in _adapted(network).items():
        weight = module.base_layer.weight + module.get_delta_weight(ADAPTER)
        # (out, in), with the memory layout (in, out) of a Hugging Face file, so that saving needs no copy
        weights[f"{name}.weight"] = weight.t().contiguous().t().cpu()
    return weights


def save(directory: str | Path, network: Transformer, recipe: Recipe, init_from: str) -> None:
    """Write the adapters alone, for `PeftModel.from_pretrained` over the GPT2LMHeadModel of `init_from`."""
    directory = Path(directory)
    directory.mkdir()
    path = Path(os.path.expanduser(init_from))
    base = next((place for place in (path / "best", path) if (place / "config.json").is_file()), None)
    source = init_from
    if base is not None:  # "./" tells a relative directory from a Hub id
        source = str(base) if base.is_absolute() else os.path.join(".", base)
    _save_config(directory, recipe.lora_rank, _alpha(recipe), recipe.lora_dropout, source)
    tensors = convert.without_padding(trained(network), network.config)
    adapters = {f"base_model.model.transformer.{name}": tensor.cpu().contiguous() for name, tensor in tensors.items()}
    write_tensors(directory / "adapter_model.safetensors", adapters)


class Adapter(NamedTuple):
    """Adapters that `save` wrote: `tensors` is the file, the rest is of adapter_config.json."""

    tensors: bytes
    rank: int
    alpha: float
    dropout: float
    base: str


def read(directory: Path, config: GPTConfig) -> Adapter:
    """The adapters in a run's directory. Raises UsageError. Of the configuration only the numbers are taken: its other
    keys may be patterns that never end."""
    path = directory / "adapter_config.json"
    found = read_json_object(path)
    rank, alpha, dropout = (found.get(key) for key in ("r", "lora_alpha", "lora_dropout"))
    if type(rank) is not int or not 1 <= rank <= config.n_embd or not (is_number(alpha) and alpha > 0):
        wanted = f"expected r from 1 to {config.n_embd} and lora_alpha above 0"
        raise UsageError(f"{path}: {wanted}, got {shown(rank)} and {shown(alpha)}; export from the run that wrote it")
    if not is_number(dropout) or not 0 <= dropout < 1:
        raise UsageError(f"{path}: lora_dropout must be at least 0 and below 1, got {shown(dropout)}")
    tensors = (directory / "adapter_model.safetensors").read_bytes()
    base, revision = str(found.get("base_model_name_or_path")), found.get("revision")
    return Adapter(tensors, rank, alpha, dropout, f"{base}@{revision}" if revision else base)


def write(directory: Path, adapter: Adapter, base: str | None = None) -> None:
    """Write adapters as peft does, over the model `base` instead of their own."""
    (directory / "adapter_model.safetensors").write_bytes(adapter.tensors)
    _save_config(directory, adapter.rank, adapter.alpha, adapter.dropout, base or adapter.base)


def _save_config(directory: Path, rank: int, alpha: float, dropout: float, base: str) -> None:
    name, revision = hub_model.split_revision(base) if pretrained.is_hub_id(base) else (base, None)
    # fan_in_fan_out: Conv1D matrices of a GPT2LMHeadModel are stored (in, out)
    config = _peft_config(
        rank,
        alpha,
        dropout,
        base_model_name_or_path=name,
        revision=revision,
        task_type="CAUSAL_LM",
        fan_in_fan_out=True,
        inference_mode=True,
    )
    config.target_modules = TARGETS
    config.save_pretrained(str(directory))


def describe(config: GPTConfig, recipe: Recipe) -> str:
    """A line about the trainable parameters."""
    trainable = num_adapter_parameters(config, recipe.lora_rank)
    embedding = " and in the embedding, for the new tokens" if config.new_tokens else ""
    return (
        f"rank {recipe.lora_rank}, alpha {lora_alpha(recipe)}: {trainable:,} trainable parameters beside c_attn,"
        f" c_proj and c_fc{embedding}, {trainable / size.num_parameters(config):.2%} of the model's"
    )


def check_rank(recipe: Recipe, config: GPTConfig) -> None:
    """Raise UsageError for a rank above that of the matrices."""
    if recipe.lora_rank > config.n_embd:
        raise UsageError(f"lora_rank: {recipe.lora_rank:,} is above n_embd={config.n_embd:,}; 8 to 64 are usual")


def _alpha(recipe: Recipe) -> float:
    alpha = lora_alpha(recipe)
    assert alpha is not None, "a rank of 0 has no adapters"
    return alpha


def _peft_config(rank: int, alpha: float, dropout: float, **more: Any) -> LoraConfig:
    from peft import LoraConfig

    whole_alpha: Any = alpha  # peft says it is an integer, and any number works
    return LoraConfig(r=rank, lora_alpha=whole_alpha, lora_dropout=dropout, target_modules=TARGETS, **more)


def _adapted(network: nn.Module) -> dict[str, Any]:
    """{name: peft module} of the matrices with adapters."""
    return {name: module for name, module in network.named_modules() if hasattr(module, "lora_A")}
