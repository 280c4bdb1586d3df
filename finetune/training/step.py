"""One update.

Losses are summed over target tokens, counted over all processes, and divided once. So the cut into micro-batches and
their spread over processes do not change what is learned."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from finetune.data.batches import to_device
from finetune.runtime import fsdp
from finetune.training.state import Setup, TrainState

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule

ROUNDING_STREAM = 1 << 32  # larger than any micro-batch index, so the two seed streams never collide


class UpdateResult:
    """Loss and gradient norm of an update, the same on every process. Nothing was updated unless both are finite."""

    def __init__(self, step: int, lr: float, numbers: torch.Tensor) -> None:
        self.step, self.lr = step, lr
        self.numbers = numbers
        self.num_saves = 0  # written when the update was made; known once it was read
        self.copied = None
        if numbers.is_cuda:  # copied now, since a copy made when it is read would wait for the next update
            self.numbers = torch.empty(numbers.shape, pin_memory=True)
            self.numbers.copy_(numbers, non_blocking=True)
            self.copied = torch.cuda.Event()
            self.copied.record()

    def read(self) -> tuple[float, float, list[float]]:
        """`(loss, grad_norm, signal_counts)`: mean nats per token, the gradient norm before clipping, and how many
        processes received each signal. Waits for the device."""
        if self.copied:
            self.copied.synchronize()
        loss, grad_norm, *signal_counts, num_saves = self.numbers.tolist()
        self.num_saves = int(num_saves)
        return loss, grad_norm, signal_counts


def update(setup: Setup, state: TrainState, lr: float) -> UpdateResult:
    """Make one optimizer update. A GPU is never waited for."""
    setup.hooks.before_update(setup, state)
    recipe, optimizer, scaler = setup.recipe, setup.optimizer, state.scaler
    loss = backward(setup, state)
    setup.hooks.after_backward(setup, state)
    # clip the gradient
    if scaler:
        scaler.unscale_(optimizer)
    norm = torch.nn.utils.clip_grad_norm_(setup.wrapped_model.parameters(), recipe.grad_clip or torch.inf)
    norm = fsdp.full_tensor(norm).to(loss.device)
    # one all-reduce; a NaN on one rank makes the sum NaN on all
    accelerator = setup.device.accelerator
    num_saves = setup.saves.num_written() if accelerator.is_main_process else 0
    signals = to_device(torch.tensor([*setup.signals.flags(), num_saves]), loss.device)
    numbers = accelerator.reduce(torch.cat([loss[None], norm[None] / accelerator.num_processes, signals]))
    # made before the step, which cannot be repeated if memory fails here
    result, is_finite = UpdateResult(state.step, lr, numbers), numbers[:2].isfinite().all()
    setup.saves.wait_for_copies()
    # step the optimizer, unless loss or gradient are not finite
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.seed = _seed(recipe.seed, state.step, ROUNDING_STREAM)  # rounding of moments in bfloat16
    if scaler:  # skips an update that overflowed
        scaler.step(optimizer)
        scaler.update()
    elif optimizer.defaults["fused"]:
        weights = optimizer.param_groups[0]["params"]
        optimizer.found_inf = (1.0 - is_finite.float()).to(weights[0].device)  # 1: the fused kernel changes nothing
        optimizer.step()
    elif is_finite:
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return result


def backward(setup: Setup, state: TrainState) -> torch.Tensor:
    """Leave the gradient of an update in the parameters; return this process's share of its mean loss."""
    accelerator, recipe, device = setup.device.accelerator, setup.recipe, setup.device.torch_device
    rows = setup.sampler.rows(state.step)
    count = setup.train.num_targets(rows)  # over all processes, each of which knows all rows
    micro_batches = rows.reshape(state.micro_batch.accumulation, state.micro_batch.batch_size)
    mine = range(accelerator.process_index, len(micro_batches), accelerator.num_processes)
    total = torch.zeros((), device=device)
    for index in mine:
        batch = setup.train.batch(micro_batches[index], device)
        if recipe.dropout or recipe.lora_dropout:
            torch.manual_seed(_seed(recipe.seed, state.step, index))
        with _without_all_reduce(setup) if index != mine[-1] else nullcontext():
            with setup.device.autocast():
                loss, _ = setup.wrapped_model(*batch)
            # DDP averages gradients over the processes, so each brings its share times their number
            loss = loss * (accelerator.num_processes / max(1, count))
            (state.scaler.scale(loss) if state.scaler else loss).backward()
        total += loss.detach()
    return total / accelerator.num_processes


@contextmanager
def _without_all_reduce(setup: Setup) -> Generator[None]:
    """The context of a backward pass that is not the last of its update. DDP sums gradients once, after the last.
    FSDP reduces them every time, because it must not hold whole gradients; it keeps gathered weights if it may."""
    sharding = setup.device.sharding
    if not sharding:
        with setup.device.accelerator.no_sync(setup.wrapped_model):
            yield
        return
    model = cast("FSDPModule", setup.wrapped_model)
    model.set_reshard_after_backward(sharding.reshard_after_forward)
    try:
        yield
    finally:
        model.set_reshard_after_backward(True)


def two_passes(setup: Setup, batch_size: int) -> None:
    """Make two forward and backward passes whose gradients are zero, uncompiled."""
    batch = setup.train.batch([0] * batch_size, setup.device.torch_device)
    for _ in range(2):
        with setup.device.uncompiled():
            with setup.device.autocast():
                loss, _ = setup.wrapped_model(*batch)
            (loss * 0.0).backward()


def _seed(seed: int, step: int, index: int) -> int:
    """A seed for each micro-batch of each update, so that dropout does not depend on what ran before or on the number
    of processes."""
    [state] = np.random.SeedSequence([seed, step, index]).generate_state(1, np.uint64)
    return int(state) >> 1  # numpy 1 shifts no uint64 by an int
