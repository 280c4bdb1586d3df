"""Mixtures of base and finetuned weights: (1 - a) base + a finetuned often predicts better than both and forgets less.

Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from finetune.common.errors import UsageError
from finetune.common.progress import progress
from finetune.config.recipe import Recipe
from finetune.data import arrow_cache
from finetune.data import dataset as datasets
from finetune.data.batches import Blocks, ConcatBlocks
from finetune.evaluation.split_loss import split_loss
from finetune.gpt import GPT, GPTConfig, convert, pretrained, size
from finetune.runs.datasets import find_datasets_of_run, newest_start
from finetune.runs.model_card import without_folders
from finetune.runtime import device as devices

SWEEP = [a / 10 for a in range(11)]
# what the shapes of the tensors do not tell
COMPUTES = (
    *("n_head", "activation_function", "layer_norm_epsilon"),
    *("scale_attn_weights", "scale_attn_by_inverse_layer_idx"),
)
Weights = dict[str, torch.Tensor]


def interpolate(
    choice: str, config: GPTConfig, weights: Weights, facts: dict[str, Any], run_dir: Path
) -> tuple[Weights, dict[str, Any]]:
    """`(weights, mixture)`: the finetuned weights of a run mixed with its base, by the loss on its validation split.

    `choice` is a number a, or "auto" for the a of SWEEP with the lowest loss, which is never worse than a = 1.
    `mixture` is {"weight", "base", "chosen", "losses": [(a, loss), ...]}. Raises UsageError when the base or the data
    is missing or has changed."""
    base = load_base("interpolate", config, facts)
    model = GPT.from_state(config, {name: tensor.clone() for name, tensor in weights.items()}).eval()
    measure = _validation(model, run_dir)
    losses = []
    for a in SWEEP if choice == "auto" else sorted({0.0, float(choice), 1.0}):
        model.load_state_dict(convert.with_padding(_mix(base, weights, a), config))
        losses.append((a, measure()))
        print(f"interpolate {a:.2f}: val loss {losses[-1][1]:.4f}")
    weight = float(choice) if choice != "auto" else min(reversed(losses), key=lambda measured: measured[1])[0]
    reached, alone = dict(losses)[weight], losses[-1][1]
    print(f"keeping {weight:g} of the finetuned weights: val loss {reached:.4f}, without interpolation {alone:.4f}")
    mixture = {
        "weight": weight,
        "base": facts.get("base_model") or without_folders(facts["init_from"]),
        "chosen": choice == "auto",
        "losses": losses,
    }
    return _mix(base, weights, weight), mixture


def _mix(base: Weights, finetuned: Weights, a: float) -> Weights:
    return {name: torch.lerp(base[name], finetuned[name], a) for name in finetuned}


def load_base(what: str, config: GPTConfig, facts: dict[str, Any]) -> Weights:
    """The weights that a run started from, by its finetune.json. Raises UsageError, naming `what` needs them."""
    source = facts.get("init_from")
    if source in (None, "scratch"):
        began = source or "an unknown model"
        raise UsageError(f"{what}: the run began from {began}, so there is no base to go back to")
    base_config, base = pretrained.load(source)
    base["wpe.weight"] = base["wpe.weight"][: config.block_size]
    if facts.get("new_tokens"):
        base = convert.with_vocabulary(base, config.vocab_size)
    shapes = {name: tuple(tensor.shape) for name, tensor in base.items()}
    if shapes != size.shapes(config) or any(getattr(base_config, key) != getattr(config, key) for key in COMPUTES):
        raise UsageError(f"{what}: {source} is no longer the model that this run began with; its shape is another")
    return base


def _validation(model: GPT, run_dir: Path) -> Callable[[], float]:
    """A function that measures the model on the whole validation split of the run. Raises UsageError."""
    identity, parts = newest_start(run_dir).get("identity", {}), []
    for dataset in find_datasets_of_run(run_dir, "val"):
        stats = datasets.scan(dataset, "val")
        isolated = identity.get("isolate_documents", False)
        opened = arrow_cache.open_cache(dataset, "val", identity["block_size"], stats, isolated)
        parts.append(Blocks.from_arrow(opened, stats.tokens))
    blocks = parts[0] if len(parts) == 1 else ConcatBlocks(parts)
    device = devices.start(Recipe(dtype="float32", compile="false"))
    model.to(device.torch_device)

    def measure() -> float:
        with progress(desc="evaluating", total=blocks.num_rows, unit=" blocks", leave=False) as bar:
            return split_loss(
                device, model, blocks, np.arange(blocks.num_rows), lambda done, _: bar.update(done - bar.n)
            )

    return measure
