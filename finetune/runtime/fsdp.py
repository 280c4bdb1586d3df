"""FSDP2: each rank holds a shard of the weights, gradients and optimizer state.

The launcher's configuration (`accelerate config`) sets the options; torch's `fully_shard` applies them, because
accelerate's own wrapper rebuilds the optimizer and uses DDP on CPUs. A shard is a range of a tensor's rows, cut like
torch.chunk. Files hold full tensors, or shards (`runtime.shards`); a run resumes from both on any number of ranks,
sharded or not. Functions here return tensors without shards unchanged."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import nn

from finetune.common.errors import UsageError
from finetune.gpt.model import Transformer

if TYPE_CHECKING:  # slow to import, and not needed without FSDP
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

UNSUPPORTED = {
    "DEEPSPEED": "DeepSpeed",
    "MEGATRON_LM": "Megatron-LM",
    "PARALLELISM_CONFIG": "tensor, context or hybrid parallelism",
}
ADVICE = "recipes/accelerate/fsdp2.yaml shards like ZeRO-3, with fsdp_reshard_after_forward: false like ZeRO-2"


@dataclass
class FSDP:
    """Options of the launcher."""

    reshard_after_forward: bool = True  # free a block's full weights after its forward, gather them for its backward
    cpu_offload: bool = False  # shards and optimizer on the host
    activation_checkpointing: bool = False  # same as the recipe's gradient_checkpointing

    def describe(self) -> str:
        return f"sharded by FSDP2{' and offloaded to the CPU' if self.cpu_offload else ''}"


def from_launcher() -> FSDP | None:
    """The FSDP options in the launcher's environment, or None without FSDP. Raises UsageError for unsupported ones."""
    for name, words in UNSUPPORTED.items():
        if is_true(f"ACCELERATE_USE_{name}"):
            raise UsageError(f"the launcher is configured for {words}, which is not supported; {ADVICE}")
    if not is_true("ACCELERATE_USE_FSDP"):
        return None
    version, strategy = os.environ.get("FSDP_VERSION", "1"), os.environ.get("FSDP_SHARDING_STRATEGY", "FULL_SHARD")
    if version != "2":
        raise UsageError(f"the launcher is configured for FSDP version {version}; set fsdp_version: 2")
    if strategy not in ("FULL_SHARD", "1"):
        raise UsageError(f"fsdp_sharding_strategy: {strategy} belongs to FSDP 1; FSDP 2 has fsdp_reshard_after_forward")
    from accelerate import FullyShardedDataParallelPlugin
    from torch.distributed.fsdp import CPUOffloadPolicy

    try:
        plugin = FullyShardedDataParallelPlugin()
    except ValueError as error:
        raise UsageError(f"the launcher's FSDP options: {error}") from None
    if plugin.min_num_params is not None:
        raise UsageError("fsdp_auto_wrap_policy: SIZE_BASED_WRAP cannot apply; set TRANSFORMER_BASED_WRAP")
    if others := [name for name in plugin.transformer_cls_names_to_wrap or () if name != "Block"]:
        raise UsageError(f"fsdp_transformer_layer_cls_to_wrap: {','.join(others)} is not in this model; set Block")
    if plugin.ignored_modules:
        raise UsageError(f"fsdp_ignored_modules: {plugin.ignored_modules} cannot apply; remove it")
    if getattr(plugin, "activation_checkpointing_offload", False):  # releases before 1.15 have none
        raise UsageError("fsdp_activation_checkpointing_offload: true is not supported; set it to false")
    offload = isinstance(plugin.cpu_offload, CPUOffloadPolicy)
    return FSDP(bool(plugin.reshard_after_forward), offload, plugin.activation_checkpointing)


def shard(model: Transformer, options: FSDP, device: torch.device) -> nn.Module:
    """Shard a model in place and return it. It moves to the device block by block: no GPU ever holds all of it."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard

    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    # weights are gathered in float32: evaluation needs float32, and autocast casts them as it does without shards
    offload = CPUOffloadPolicy(pin_memory=device.type == "cuda") if options.cpu_offload else OffloadPolicy()
    for block in model.h:
        fully_shard(block, mesh=mesh, reshard_after_forward=options.reshard_after_forward, offload_policy=offload)
    fully_shard(model, mesh=mesh, offload_policy=offload)
    return model


def is_sharded(module: nn.Module) -> TypeGuard[FSDPModule]:
    """Whether `shard` was applied. If so, every forward and backward pass is a collective operation."""
    return hasattr(module, "set_reshard_after_backward")


def reshard(model: nn.Module) -> None:
    """Free the full weights after a forward pass without a backward pass, before updates make them stale."""
    for module in model.modules():
        if is_sharded(module):
            module.reshard()


def local_shard(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's rows of a tensor."""
    return tensor.to_local() if _is_dtensor(tensor) else tensor


@torch.no_grad()
def copy_rows(tensor: torch.Tensor, full: torch.Tensor) -> None:
    """Copy the rows of a full tensor into one that may be sharded. Rows beyond those of `full` keep their values."""
    local, first = local_shard(tensor), 0
    if _is_dtensor(tensor):
        first = tensor.device_mesh.get_local_rank() * -(-len(tensor) // tensor.device_mesh.size())
    rows = full[first : first + len(local)]
    local[: len(rows)] = rows


def load(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Load {name: full tensor} into a model, sharded or not."""
    for name, parameter in model.named_parameters():
        copy_rows(parameter, weights[name])


def full_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """The full tensor, on every rank. Collective: all ranks must call it."""
    return tensor.full_tensor() if _is_dtensor(tensor) else tensor


def gather_state_dict(tensors: Mapping[str, torch.Tensor], keep: bool) -> dict[str, torch.Tensor]:
    """{name: full tensor on the CPU} if `keep`, else {}. Collective; a GPU holds one full tensor at a time."""
    kept = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach()
        if _is_dtensor(tensor):  # offloaded shards must be on the mesh's device for the all-gather
            tensor = full_tensor(tensor.to(tensor.device_mesh.device_type))
        if keep:
            kept[name] = tensor.cpu()
    return kept


def _is_dtensor(tensor: torch.Tensor) -> TypeGuard[DTensor]:
    return hasattr(tensor, "device_mesh")


def is_true(name: str) -> bool:
    """Whether the launcher has set a variable of the environment to true."""
    return os.environ.get(name, "false").lower() in ("true", "1", "yes")
