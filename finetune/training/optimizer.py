"""AdamW with nanoGPT's two parameter groups, and with moments in bfloat16."""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
from torch.optim.adamw import adamw as adamw_step

from finetune.config.recipe import Recipe
from finetune.data.batches import to_device
from finetune.gpt import GPTConfig, size
from finetune.runtime import fsdp

MOMENTS = ("exp_avg", "exp_avg_sq")
CHUNK = 1 << 22  # elements of a parameter that are stepped at a time: 32 MB of moments in float32
NOISE_SIZE = 1 << 16  # random numbers of a step, repeated over all moments


def adamw(model: torch.nn.Module, recipe: Recipe) -> AdamW:
    """Fused AdamW over the trained parameters: weight decay on matrices and embeddings, none on biases and layer
    norms."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decayed = [parameter for parameter in trained if parameter.dim() >= 2]
    others = [parameter for parameter in trained if parameter.dim() < 2]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
    fused = decayed[0].device.type in ("cpu", "cuda")
    kind = CompactAdamW if recipe.optimizer_dtype == "bfloat16" else AdamW
    return kind(groups, lr=recipe.learning_rate, betas=(recipe.beta1, recipe.beta2), eps=1e-8, fused=fused)


class AdamW(torch.optim.AdamW):
    """torch's own, with the attributes that an update sets before a step, and without decorators whose only effect here
    is to import torch's compiler: half a second before the first update."""

    add_param_group = inspect.unwrap(torch.optim.AdamW.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.AdamW.zero_grad)
    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))
    moments_dtype = torch.float32
    found_inf: torch.Tensor | None = None  # where it is 1, the fused kernel changes nothing
    seed = 0  # of CompactAdamW's noise


class CompactAdamW(AdamW):
    """AdamW with moments in bfloat16. The fused kernels take one dtype, so a step widens the moments to float32, a
    chunk at a time, and calls torch's own step.

    The new moments are rounded stochastically. Rounded to the nearest, a moment that moves by less than 1/256 of itself
    would never move, as the second moment does at beta2=0.999. `seed`, set before every step, decides the noise."""

    moments_dtype = torch.bfloat16

    @torch.no_grad()
    def step(self) -> None:  # pyrefly: ignore[bad-override]  no closure
        generator = torch.Generator().manual_seed(self.seed)
        noise = torch.randint(0, 1 << 16, (2, NOISE_SIZE), generator=generator, dtype=torch.int32)
        noise = to_device(noise, self.param_groups[0]["params"][0].device)
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                whole = parameter, parameter.grad, state["exp_avg"], state["exp_avg_sq"]
                tensors = [tensor.view(-1).split(CHUNK) for tensor in whole]
                # each chunk counts up its own, the last one the real counter
                steps = [*(state["step"].clone() for _ in tensors[0][1:]), state["step"]]
                for weights, gradient, exp_avg, exp_avg_sq, step in zip(*tensors, steps):
                    wide, wide_sq = exp_avg.float(), exp_avg_sq.float()
                    self._step(group, weights, gradient, wide, wide_sq, step)
                    exp_avg.copy_(round_to_bfloat16(wide, noise[0]))
                    exp_avg_sq.copy_(round_to_bfloat16(wide_sq, noise[1]))

    def _step(self, group: dict[str, Any], *tensors: torch.Tensor) -> None:
        """Torch's step on (weights, gradient, exp_avg, exp_avg_sq, step)."""
        options = {name: group[name] for name in ("lr", "weight_decay", "eps", "amsgrad", "maximize", "fused")}
        options |= dict(zip(("beta1", "beta2"), group["betas"])) | {"foreach": False, "found_inf": self.found_inf}
        weights, gradient, exp_avg, exp_avg_sq, step = ([tensor] for tensor in tensors)
        scale = getattr(self, "grad_scale", None)  # set by GradScaler
        adamw_step(weights, gradient, exp_avg, exp_avg_sq, [], step, grad_scale=scale, **options)


def round_to_bfloat16(wide: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Stochastic rounding of float32 to bfloat16, in place: the discarded 16 bits are the probability of rounding up.
    `noise`: (NOISE_SIZE,) int32 of 16 random bits."""
    bits = wide.view(torch.int32)
    whole = len(bits) // NOISE_SIZE * NOISE_SIZE
    bits[:whole].view(-1, NOISE_SIZE).add_(noise)
    bits[whole:].add_(noise[: len(bits) - whole])
    bits.bitwise_and_(-1 << 16)
    return wide


def optimizer_tensors(optimizer: AdamW, names: dict[torch.Tensor, str]) -> dict[str, torch.Tensor]:
    """The moments as {"exp_avg.NAME": tensor, "exp_avg_sq.NAME": tensor}, not copied and not gathered."""
    states = optimizer.state.items()
    return {f"{kind}.{names[parameter]}": state[kind] for parameter, state in states for kind in MOMENTS}


def fill_optimizer(
    optimizer: AdamW, names: dict[torch.Tensor, str], tensors: dict[str, torch.Tensor] | None = None, updates: int = 0
) -> None:
    """Load what `optimizer_tensors` returned after so many updates; without tensors, moments of zero."""
    for parameter, name in names.items():
        state = {"step": torch.tensor(float(updates), device=parameter.device)}
        for kind in MOMENTS:
            state[kind] = torch.zeros_like(parameter, dtype=optimizer.moments_dtype)
            if tensors:
                fsdp.copy_rows(state[kind], tensors[f"{kind}.{name}"])  # without the rows of a padded vocabulary
        optimizer.state[parameter] = state


def describe(config: GPTConfig) -> str:
    """The two lines that nanoGPT prints about the groups."""
    groups: dict[str, list[int]] = {"decayed": [], "non-decayed": []}
    for shape in size.shapes(config).values():
        groups["decayed" if len(shape) >= 2 else "non-decayed"].append(math.prod(shape))
    return "\n".join(
        f"num {name} parameter tensors: {len(sizes)}, with {sum(sizes):,} parameters" for name, sizes in groups.items()
    )
