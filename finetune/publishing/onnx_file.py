"""A model as ONNX: torch's graph of transformers' GPT-2, compared in onnxruntime."""

from __future__ import annotations

import importlib.metadata
import logging
import math
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from finetune.common.errors import Failure
from finetune.gpt import GPT
from finetune.publishing import verify

FILE = "model.onnx"
MOST = 1_900_000_000  # bytes of weights beside the graph in one protobuf file, which holds 2 GiB


class Logits(torch.nn.Module):
    """transformers' model from ids and mask, each (B, T), to logits (B, T, V). Positions count from the first token
    behind the padding, as in generate()."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)
        given = {"attention_mask": attention_mask, "position_ids": positions, "use_cache": False}
        return self.model(input_ids=input_ids, **given).logits


@torch.no_grad()
def write(directory: Path, model: GPT) -> dict[str, Any]:
    """Write model.onnx, with model.onnx.data beside it for large models, and compare its logits with those of `model`
    at several lengths and batch sizes. Returns the counts and the largest difference. Raises Failure."""
    ids, mask = torch.zeros(2, 2, dtype=torch.long), torch.ones(2, 2, dtype=torch.long)  # 1 would become a constant
    axes = {0: "batch", 1: "sequence"}
    with warnings.catch_warnings(), verify.quiet():
        warnings.simplefilter("ignore")  # torch of its own names, and of torchvision
        logging.disable(logging.WARNING)
        try:
            program = torch.onnx.export(
                Logits(model.to_hf()).eval(),
                (ids, mask),
                input_names=["input_ids", "attention_mask"],
                output_names=["logits"],
                dynamic_shapes={"input_ids": axes, "attention_mask": axes},
                dynamo=True,
                verbose=False,
            )
        finally:
            logging.disable(logging.NOTSET)
    assert program is not None
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # lines of code with the folders of this computer
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.parameters())
    program.save(directory / FILE, external_data=size > MOST)
    return _verify(directory / FILE, model)


def _verify(path: Path, model: GPT) -> dict[str, Any]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    every, difference, largest, compared = verify.every_position(model.config), 0.0, 0.0, 0
    full = len(every)
    for lengths in ([1], [full], [(full + 1) // 2] * 3, [full, (full + 2) // 3]):  # the last has padding
        ids, mask = (
            torch.stack([pad(of[:n], (max(lengths) - n, 0)) for n in lengths]).numpy()
            for of in (every, torch.ones_like(every))
        )
        (found,) = session.run(["logits"], {"input_ids": ids, "attention_mask": mask})
        for n, row in zip(lengths, torch.from_numpy(found)):
            logits = model(every[None, :n])[0]
            gap = (row[-n:] - logits).abs().max().item()
            difference = math.nan if math.isnan(gap) else max(difference, gap)
            largest, compared = max(largest, logits.abs().max().item()), compared + logits.numel()
    if not difference <= verify.TOLERANCE * max(1.0, largest):
        problem = f"logits of onnxruntime differ by {difference:.2g} from ours"
        raise Failure(f"{path.name}: {problem}; nothing was exported", 1)
    used = {name: importlib.metadata.version(name) for name in ("onnx", "onnxscript", "onnxruntime")}
    return {"versions": used, "logits_compared": compared, "max_difference": difference, "largest_logit": largest}
