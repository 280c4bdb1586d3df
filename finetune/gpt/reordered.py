"""Matrix products of decoding on a CPU with weights in oneDNN's own layout. PyTorch's products reorder the weights in
each step, which takes longer than a product with a few rows.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from finetune.common.free_memory import available_bytes
from finetune.gpt import size
from finetune.gpt.model import Transformer, UninitializedLinear

MIN_STEPS = 16  # reordering takes as long as a few steps save
SPARE = 8  # times the copies must fit into free memory, of which the samples fill the most


def copied_bytes(model: Transformer, rows: int, steps: int) -> int:
    """Bytes of the copies that `reordered_weights` makes. 0 if it makes none: a single row in float32 is as fast
    without, autocast casts weights itself, and only x86 is measured."""
    weight = model.wte.weight
    if type(weight.data) is not Tensor or weight.device.type != "cpu" or steps < MIN_STEPS or rows < 2:
        return 0
    if torch.is_autocast_enabled("cpu") or not torch.backends.mkldnn.is_available():
        return 0
    has_avx2 = torch.backends.cpu.get_cpu_capability().startswith("AVX")  # AVX2 or newer
    has_bfloat16 = has_avx2 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    is_fast = {torch.float32: has_avx2, torch.bfloat16: has_bfloat16}.get(weight.dtype, False)
    copies = weight.dtype.itemsize * size.num_parameters(model.config)
    return copies if is_fast and SPARE * copies < available_bytes("cpu") else 0


@contextmanager
def reordered_weights(model: Transformer, rows: int, steps: int) -> Generator[None]:
    """Within it the products of `model`, with about `rows` rows, read reordered copies of its weights. In bfloat16 the
    results have the same bits, in float32 they differ in the last ones."""
    if not copied_bytes(model, rows, steps):
        yield
        return
    linears = [module for module in model.modules() if isinstance(module, UninitializedLinear)]
    try:  # from the first copy on: one that stayed would hide what training changes
        for linear in linears:
            linear.__dict__["forward"] = partial(_product, _reordered(linear.weight, rows), linear.bias)
        head, V = _reordered(model.wte.weight, rows), model.config.vocab_size
        model.__dict__["head"] = lambda x: _product(head, None, x)[..., :V]
        yield
    finally:
        for linear in linears:
            linear.__dict__.pop("forward", None)  # another thread with the same model may have been here
        model.__dict__.pop("head", None)


def _reordered(weight: Tensor, rows: int) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach(), rows)


def _product(weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
