"""AdamW with nanoGPT's two groups, and the learning rate as a function of the iteration."""

import math

import torch

from finetune.gpt import convert


def adamw(model, recipe):
    """Fused AdamW: weight decay on matrices and embeddings, none on biases and layer norms."""
    decayed = [parameter for parameter in model.parameters() if parameter.dim() >= 2]
    others = [parameter for parameter in model.parameters() if parameter.dim() < 2]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
    fused = decayed[0].device.type in ("cpu", "cuda")
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(recipe.beta1, recipe.beta2), eps=1e-8, fused=fused)


def learning_rate(iteration, recipe, schedule):
    """The rate of an update: linear warmup, then a cosine from learning_rate to min_lr, which later updates keep."""
    if iteration < schedule.warmup_iters:
        return recipe.learning_rate * (iteration + 1) / (schedule.warmup_iters + 1)
    if not recipe.decay_lr:
        return recipe.learning_rate
    if iteration >= schedule.lr_decay_iters:
        return schedule.min_lr
    progress = (iteration - schedule.warmup_iters) / (schedule.lr_decay_iters - schedule.warmup_iters)
    return schedule.min_lr + 0.5 * (1 + math.cos(math.pi * progress)) * (recipe.learning_rate - schedule.min_lr)


def describe(config):
    """The two lines that nanoGPT prints about the groups."""
    groups = {"decayed": [], "non-decayed": []}
    for shape in convert.shapes(config).values():
        groups["decayed" if len(shape) >= 2 else "non-decayed"].append(math.prod(shape))
    return "\n".join(f"num {name} parameter tensors: {len(sizes)}, with {sum(sizes):,} parameters" for name, sizes in groups.items())
