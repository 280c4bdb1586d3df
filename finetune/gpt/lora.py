"""LoRA: two small matrices beside each large one, trained in its place. The `peft` package brings them.

An adapted matrix computes W x + b + lora_alpha / lora_rank * B (A x) with A (rank, in) and B (out, rank). W and b stay
as they were, and B begins at zero, so that training begins with the model itself. States and files do not show how peft
nests its modules:

    h.0.attn.c_attn.weight   h.0.attn.c_attn.lora_A.weight   h.0.attn.c_attn.lora_B.weight
"""

import hashlib
import os
from pathlib import Path

import torch

from finetune.common.errors import UsageError
from finetune.config.recipe import lora_alpha
from finetune.gpt import convert, size
from finetune.gpt.pretrained import write_tensors

TARGETS = ["c_attn", "c_fc", "c_proj"]  # the names that `convert.CONV1D` ends in
ADAPTER = "default"  # peft's name for the only one


def add_adapters(network, recipe):
    """Freeze a network and put adapters beside its matrices, in place. The seed decides what A begins with."""
    from peft import inject_adapter_in_model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        inject_adapter_in_model(_config(recipe), network, ADAPTER)
    for module in _adapted(network).values():
        module.cast_input_dtype_enabled = False  # to float32, which autocast would only cast back


def num_parameters(config, rank):
    """Parameters of the adapters of a network."""
    return sum(rank * sum(shape) for name, shape in size.shapes(config).items() if name.endswith(convert.CONV1D))


def strip_peft_names(name):
    """The name of a parameter without what peft adds to it."""
    return name.replace(".base_layer.", ".").replace(f".{ADAPTER}.", ".")


def state(network):
    """Weights and adapters of a network, which need not have any."""
    return {strip_peft_names(name): tensor for name, tensor in network.state_dict().items()}


def trained(network):
    """The part of `state` that training changes: adapters where there are some, else all of it."""
    found = state(network)
    return {name: tensor for name, tensor in found.items() if ".lora_" in name} or found


def load(network, tensors):
    """Give a network what `trained` took from one like it."""
    names = {strip_peft_names(name): name for name in network.state_dict()}
    given = {names.get(name, name): tensor for name, tensor in tensors.items()}
    network.load_state_dict(given if len(given) == len(names) else network.state_dict() | given)


def fingerprint(network):
    """sha256 of the weights of a network on the CPU that has no adapters yet: what they will be trained over."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy())
    return digest.hexdigest()


@torch.no_grad()
def merged(network):
    """The weights of the model without adapters that computes the same. The network stays as it is: to add what they
    add and take it away again would leave other weights, by rounding. What was added to is on the CPU, where there is
    room for it."""
    found = {name: tensor for name, tensor in state(network).items() if ".lora_" not in name}
    for name, module in _adapted(network).items():
        weight = module.base_layer.weight + module.get_delta_weight(ADAPTER)
        found[f"{name}.weight"] = weight.t().contiguous().t().cpu()  # as a file has it, which then needs no copy
    return found


def save(directory, network, recipe, init_from):
    """Write the adapters alone as peft does, for `PeftModel.from_pretrained` over the GPT2LMHeadModel of
    `init_from`."""
    directory = Path(directory)
    directory.mkdir()
    path = Path(init_from).expanduser()
    here = next((place for place in (path / "best", path) if (place / "config.json").is_file()), None)
    # no Hub id begins with a dot: what is not there later shall not be looked for among the models of strangers
    source = init_from if here is None else str(here) if here.is_absolute() else os.path.join(".", here)
    # the matrices of a GPT2LMHeadModel are stored (in, out)
    config = _config(
        recipe, base_model_name_or_path=source, task_type="CAUSAL_LM", fan_in_fan_out=True, inference_mode=True
    )
    config.target_modules = TARGETS
    config.save_pretrained(str(directory))
    adapters = {f"base_model.model.transformer.{name}": tensor.cpu() for name, tensor in trained(network).items()}
    write_tensors(directory / "adapter_model.safetensors", adapters)


def describe(config, recipe):
    """What is trained, in a line."""
    trained = num_parameters(config, recipe.lora_rank)
    share = trained / size.num_parameters(config)
    return (
        f"rank {recipe.lora_rank}, alpha {lora_alpha(recipe)}: {trained:,} trainable parameters beside c_attn,"
        f" c_proj and c_fc, {share:.2%} of the model's"
    )


def _config(recipe, **more):
    from peft import LoraConfig

    return LoraConfig(
        r=recipe.lora_rank,
        lora_alpha=lora_alpha(recipe),
        lora_dropout=recipe.lora_dropout,
        target_modules=TARGETS,
        **more,
    )


def _adapted(network):
    """{name: module} of the matrices with adapters."""
    return {name: module for name, module in network.named_modules() if hasattr(module, "lora_A")}


def check_rank(recipe, config):
    """Raise UsageError when adapters would be larger than what they are beside."""
    if recipe.lora_rank > config.n_embd:
        raise UsageError(
            f"lora_rank: {recipe.lora_rank:,} is more than the rank of matrices {config.n_embd:,} wide; 8 to 64 are"
            " usual"
        )
