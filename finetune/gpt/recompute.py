"""Linear layers whose input is computed again in the backward pass, from what it was computed of.

A layer of GPT-2 keeps the output of each layer norm and of GELU for one matrix product of its backward pass, a third of
all that it keeps. Computing these outputs again takes one or two hundredths of an update.

Shapes: N tokens of a batch, I inputs, O outputs of the linear layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from typing import TypeGuard

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
MANY_TOKENS = 2048  # of a micro-batch; with fewer, weights and moments take most of the memory


def linear(layer: nn.Module, before: nn.Module, x: Tensor) -> Tensor:
    """`layer(before(x))`, to the last bit. From MANY_TOKENS on, a linear layer that is trained on a CPU keeps x
    (..., I) instead of `before(x)`."""
    are_many = x.device.type == "cpu" and x.numel() >= MANY_TOKENS * x.size(-1) and not torch.compiler.is_compiling()
    if not (are_many and torch.is_grad_enabled() and _is_plain(layer)) or any(map(_is_watched, (layer, before))):
        return layer(before(x))
    if not all(tensor.requires_grad for tensor in (x, layer.weight, layer.bias, *before.parameters())):
        return layer(before(x))
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    with torch.autocast("cpu", enabled=False):
        return RecomputedLinear.apply(
            before, dtype, x, layer.weight.to(dtype), layer.bias.to(dtype), *before.parameters()
        )


def _is_plain(layer: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether a call is nn.Linear's own product and nothing else: no adapter, no other kernel."""
    is_linear = isinstance(layer, nn.Linear) and type(layer).forward is nn.Linear.forward
    return is_linear and layer.bias is not None


def _is_watched(module: nn.Module) -> bool:
    """Whether somebody has put hooks on a module, or another `forward`, which are to run once."""
    return "forward" in vars(module) or any(getattr(module, name) for name in HOOKS)


class RecomputedLinear(torch.autograd.Function):
    """`linear` with products in `dtype`: x and the cast weight are saved, and the three products of the gradients are
    those that autograd would take."""

    @staticmethod
    def forward(
        ctx: Any, before: nn.Module, dtype: torch.dtype, x: Tensor, weight: Tensor, bias: Tensor, *parameters: Tensor
    ) -> Tensor:
        ctx.before = before
        ctx.save_for_backward(x, weight)
        return F.linear(before(x).to(dtype), weight, bias)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # autograd would take these for constants
            raise RuntimeError(f"create_graph=True: no second derivatives of {MANY_TOKENS:,} tokens or more")
        x, weight = ctx.saved_tensors
        grad = grad_outputs[0].flatten(0, -2)  # (N, O)
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            inputs = ctx.before(x)
        grad_inputs = (grad @ weight).view(inputs.shape).to(inputs.dtype)
        grads = torch.autograd.grad(inputs, (x, *ctx.before.parameters()), grad_inputs)
        inputs = inputs.detach().to(grad.dtype).flatten(0, -2)  # (N, I)
        return None, None, grads[0], grad.T @ inputs, grad.sum(0), *grads[1:]
