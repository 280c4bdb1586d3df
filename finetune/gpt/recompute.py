"""Linear layers whose input is computed again in the backward pass, from what it was computed of.

A layer of GPT-2 keeps the output of each layer norm and of GELU for one matrix product of its backward pass, a third of
all that it keeps. Computing these outputs again takes a hundredth of an update.

Shapes: N tokens of a batch, I inputs, O outputs of the linear layer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MANY_TOKENS = 2048  # of a micro-batch; with fewer, weights and moments take most of the memory


def linear(layer: nn.Module, before: nn.Module, x: Tensor) -> Tensor:
    """`layer(before(x))`, to the last bit. From MANY_TOKENS on, a linear layer that is trained on a CPU keeps x
    (..., I) instead of `before(x)`."""
    if x.device.type != "cpu" or x.numel() < MANY_TOKENS * x.size(-1) or torch.compiler.is_compiling():
        return layer(before(x))
    if not (torch.is_grad_enabled() and isinstance(layer, nn.Linear) and layer.weight.requires_grad):
        return layer(before(x))
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    with torch.autocast("cpu", enabled=False):
        return RecomputedLinear.apply(
            before, dtype, x, layer.weight.to(dtype), layer.bias.to(dtype), *before.parameters()
        )


class RecomputedLinear(torch.autograd.Function):
    """`linear` in `dtype`."""

    @staticmethod
    def forward(
        ctx: Any, before: nn.Module, dtype: torch.dtype, x: Tensor, weight: Tensor, bias: Tensor, *parameters: Tensor
    ) -> Tensor:
        ctx.before = before
        ctx.save_for_backward(x, weight)
        return F.linear(before(x).to(dtype), weight, bias)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad = grad_outputs[0].flatten(0, -2)  # (N, O)
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            inputs = ctx.before(x)
        normed = inputs.detach().to(grad.dtype).flatten(0, -2)  # (N, I)
        grad_input = (grad @ weight).view(inputs.shape).to(inputs.dtype)
        grads = torch.autograd.grad(inputs, (x, *ctx.before.parameters()), grad_input)
        return None, None, grads[0], grad.T @ normed, grad.sum(0), *grads[1:]
