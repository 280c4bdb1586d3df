"""FSDP2: weights, gradients and optimizer in shards, one for each process.

`accelerate config` says whether and how; torch's `fully_shard` does it. accelerate's own way rebuilds the optimizer and
takes processes on a CPU for data parallel ones. A shard is a range of a tensor's rows, cut as torch.chunk does; files
hold whole tensors, so that a state goes on with any number of processes, sharded or not. What is not in shards passes
through the functions here unchanged."""

import os
from dataclasses import dataclass

import torch

from finetune.common.errors import UsageError

REFUSED = {
    "DEEPSPEED": "DeepSpeed",
    "MEGATRON_LM": "Megatron-LM",
    "PARALLELISM_CONFIG": "tensor, context or hybrid parallelism",
}
INSTEAD = (
    "recipes/accelerate/fsdp2.yaml shards weights, gradients and optimizer, as ZeRO-3 does; with"
    " fsdp_reshard_after_forward: false as ZeRO-2"
)


@dataclass
class FSDP:
    """What the launcher asks for."""

    reshard_after_forward: bool = (
        True  # weights are given up after the forward pass of a block and fetched again for its backward pass
    )
    cpu_offload: bool = False  # shards live in the memory of the host, and the optimizer computes there
    activation_checkpointing: bool = False  # the same as the recipe's gradient_checkpointing

    def describe(self):
        return f"sharded by FSDP2{' and offloaded to the CPU' if self.cpu_offload else ''}"


def from_launcher():
    """The Sharding that the launcher's environment asks for, or None. Raises UsageError for options that would have no
    effect here."""
    for name, words in REFUSED.items():
        if _is_true(f"ACCELERATE_USE_{name}"):
            raise UsageError(f"the launcher is configured for {words}, which is not supported; {INSTEAD}")
    if not _is_true("ACCELERATE_USE_FSDP"):
        return None
    version, strategy = os.environ.get("FSDP_VERSION", "1"), os.environ.get("FSDP_SHARDING_STRATEGY", "FULL_SHARD")
    if version != "2":
        raise UsageError(f"the launcher is configured for FSDP version {version}; set fsdp_version: 2")
    if strategy not in ("FULL_SHARD", "1"):
        raise UsageError(
            f"fsdp_sharding_strategy: {strategy} is FSDP 1's; with fsdp_version: 2 it is fsdp_reshard_after_forward:"
            " true or false"
        )
    from accelerate import FullyShardedDataParallelPlugin
    from torch.distributed.fsdp import CPUOffloadPolicy

    try:
        plugin = FullyShardedDataParallelPlugin()
    except ValueError as error:
        raise UsageError(f"the launcher's FSDP options: {error}") from None
    if plugin.min_num_params is not None:
        raise UsageError(
            "fsdp_auto_wrap_policy: SIZE_BASED_WRAP cannot apply, a shard is cut block by block; set"
            " TRANSFORMER_BASED_WRAP"
        )
    if any(name != "Block" for name in plugin.transformer_cls_names_to_wrap or ()):
        raise UsageError(
            f"fsdp_transformer_layer_cls_to_wrap: {','.join(plugin.transformer_cls_names_to_wrap)} is not in this"
            " network; set Block"
        )
    if plugin.ignored_modules:
        raise UsageError(
            f"fsdp_ignored_modules: {plugin.ignored_modules} cannot apply, everything is sharded; remove it"
        )
    if plugin.activation_checkpointing_offload:
        raise UsageError("fsdp_activation_checkpointing_offload: true is not supported; set it to false")
    return FSDP(
        plugin.reshard_after_forward, isinstance(plugin.cpu_offload, CPUOffloadPolicy), plugin.activation_checkpointing
    )


def shard(network, sharding, device):
    """Leave each process its shard of a network, in place, and return it. It moves to the device block by block, so
    that a GPU need not hold all of it at any time."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard

    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    # weights travel in float32: evaluations want them so, and autocast rounds them as it does without shards
    offload = CPUOffloadPolicy(pin_memory=device.type == "cuda") if sharding.cpu_offload else OffloadPolicy()
    for block in network.h:
        fully_shard(block, mesh=mesh, reshard_after_forward=sharding.reshard_after_forward, offload_policy=offload)
    return fully_shard(network, mesh=mesh, offload_policy=offload)


def is_sharded(network):
    """Whether `shard` has been there. Then every pass is an exchange: all processes make it or none."""
    return hasattr(network, "set_reshard_after_backward")


def reshard(network):
    """Give up weights that a pass without a backward pass has left whole, so that nobody takes them for what the
    optimizer holds."""
    for module in network.modules():
        if is_sharded(module):
            module.reshard()


def local_shard(tensor):
    """What this process holds of a tensor."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


@torch.no_grad()
def copy_rows(tensor, whole):
    """Write the rows of a whole tensor into one that may be in shards. Rows beyond those of `whole` stay as they
    are."""
    mine, first = local_shard(tensor), 0
    if mine is not tensor:
        first = tensor.device_mesh.get_local_rank() * -(-len(tensor) // tensor.device_mesh.size())
    rows = whole[first : first + len(mine)]
    mine[: len(rows)] = rows


def load(network, weights):
    """Give a network, sharded or not, the weights {name: whole tensor}."""
    for name, parameter in network.named_parameters():
        copy_rows(parameter, weights[name])


def full_tensor(tensor):
    """All of a tensor, on every process. All of them must ask."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def gather_state_dict(tensors, keep):
    """{name: whole tensor on the CPU} where `keep`, else {}. All processes take part, one tensor at a time: a GPU holds
    one of them whole."""
    kept = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach()
        if hasattr(tensor, "device_mesh"):  # which exchanges tensors of its device only
            tensor = full_tensor(tensor.to(tensor.device_mesh.device_type))
        if keep:
            kept[name] = tensor.cpu()
    return kept


def _is_true(name):
    return os.environ.get(name, "false").lower() in ("true", "1", "yes")
