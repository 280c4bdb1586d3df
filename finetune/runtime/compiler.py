"""torch.compile: whether it works here, and which parts of a model it compiles."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional as F

from finetune.common.errors import UsageError, first_line
from finetune.config.recipe import Recipe
from finetune.gpt.model import CausalSelfAttention, Transformer
from finetune.runtime.device import Device


def check_compiler(recipe: Recipe, device: Device, log: Callable[[str], object]) -> None:
    """Compile something small before the run does. Where that fails, all processes train uncompiled: it takes Triton,
    a C compiler, the headers of Python and a GPU that is not too old. Raises UsageError if the recipe insists."""
    if not device.compile or recipe.eval_only:
        return
    problems = [_find_problem(device.torch_device)]
    if device.accelerator.num_processes > 1:  # they must compile alike, as each waits for the others
        from accelerate.utils import gather_object

        problems = gather_object(problems)
    if not (problem := next(filter(None, problems), None)):
        return
    if recipe.compile == "true":
        raise UsageError(f"compile: torch.compile does not work here ({problem}); --compile=false trains without it")
    device.compile = False
    log(f"not compiled, because torch.compile does not work here ({problem})")


def _find_problem(device: torch.device) -> str | None:
    """What the compiler says of a forward and a backward pass; None if it makes both."""
    x = torch.ones(8, 64, device=device, requires_grad=True)
    try:
        torch.compile(lambda x: F.layer_norm(x, x.shape[-1:]).exp().sum(), dynamic=False)(x).backward()
    except Exception as error:  # a compiler may raise anything
        return line_of(error)
    return None


def line_of(error: BaseException) -> str:
    """The first line of a compiler's error. Around that of a backend is another, whose first line says nothing."""
    return first_line(getattr(error, "inner_exception", error))


def compile_model(model: Transformer, whole: bool, device: torch.device) -> None:
    """Compile in place, as a whole or by block. As a whole deep models take minutes, and DDP cuts it into pieces, which
    in older versions of PyTorch excludes gradient checkpointing. The loss is compiled by itself either way."""
    if whole:
        model.hidden = torch.compile(model.hidden, dynamic=False)
    else:
        for module in model.modules():  # a number would be a constant of its graph, and torch makes eight at most
            if isinstance(module, CausalSelfAttention) and isinstance(module.q_scale, float):
                module.q_scale = torch.tensor([module.q_scale], device=device)
        for block in model.h:
            block.compile(dynamic=False)
    model.linear_cross_entropy = torch.compile(model.linear_cross_entropy, dynamic=False)
