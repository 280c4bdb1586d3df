"""One update, and one evaluation.

Losses are summed over target tokens, counted over all processes, and divided once; so how a batch is cut into
micro-batches and spread over processes does not change what is learned."""

from contextlib import contextmanager, nullcontext

import numpy as np
import torch

from finetune.data.batches import to_device
from finetune.runtime import fsdp

ROUNDING_STREAM = 1 << 32  # in the place of a micro-batch's number, which it is above


class UpdateResult:
    """What an update came to, the same on every process. Where loss or norm are not finite, nothing was updated."""

    def __init__(self, numbers):
        self.numbers, self.copied = numbers, None
        if (
            numbers.is_cuda
        ):  # on its way to the host from here on, not from when somebody asks, which would be behind the next update
            self.numbers = torch.empty(numbers.shape, pin_memory=True)
            self.numbers.copy_(numbers, non_blocking=True)
            self.copied = torch.cuda.Event()
            self.copied.record()

    def read(self):
        """`(loss, grad_norm, signals)`: mean nats per token, the norm of the gradient before clipping, and how many
        processes saw each of `Signals.NAMES`. Waits for the device."""
        if self.copied:
            self.copied.synchronize()
        loss, grad_norm, *signals = self.numbers.tolist()
        return loss, grad_norm, signals


def update(run, iteration, lr):
    """Make one optimizer update and return its Outcome. A GPU is only told what to do here, and never waited for."""
    loss = _backward(run, iteration)
    if run.scaler:
        run.scaler.unscale_(run.optimizer)
    norm = fsdp.full_tensor(
        torch.nn.utils.clip_grad_norm_(run.model.parameters(), run.recipe.grad_clip or torch.inf)
    ).to(loss.device)
    accelerator = run.machine.accelerator
    flags = to_device(torch.tensor(run.signals.flags()), loss.device)
    # one exchange; what is no number in one process is no number in the sum
    numbers = accelerator.reduce(torch.cat([loss[None], norm[None] / accelerator.num_processes, flags]))
    for group in run.optimizer.param_groups:
        group["lr"] = lr
    run.optimizer.seed = _seed(run.recipe.seed, iteration, ROUNDING_STREAM)  # for moments in bfloat16
    outcome, sound = (
        UpdateResult(numbers),
        numbers[:2].isfinite().all(),
    )  # before the step, which cannot be made again if memory fails here
    if run.scaler:  # skips by itself an update that overflowed float16
        run.scaler.step(run.optimizer)
        run.scaler.update()
    elif run.optimizer.defaults["fused"]:
        weights = run.optimizer.param_groups[0]["params"]
        run.optimizer.found_inf = (1.0 - sound.float()).to(
            weights[0].device
        )  # where it is 1, the fused kernel changes nothing
        run.optimizer.step()
    elif sound:
        run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    return outcome


def _backward(run, iteration):
    """Leave the gradient of an update in the parameters; return this process's share of its mean loss."""
    accelerator, recipe = run.machine.accelerator, run.recipe
    rows = run.order.rows(iteration)
    count = run.train.num_targets(rows)  # over all processes: every one of them knows all rows
    micro_batches = rows.reshape(recipe.gradient_accumulation_steps, recipe.batch_size)
    mine = range(accelerator.process_index, len(micro_batches), accelerator.num_processes)
    total = torch.zeros((), device=run.machine.torch_device)
    for index in mine:
        batch = run.train.batch(micro_batches[index], run.machine.torch_device)
        if recipe.dropout or recipe.lora_dropout:
            torch.manual_seed(_seed(recipe.seed, iteration, index))
        with _more_to_come(run) if index != mine[-1] else nullcontext():
            with run.machine.autocast():
                loss, _ = run.model(*batch)
            # data parallelism averages gradients over the processes, so each brings its share times their number
            loss = loss * (accelerator.num_processes / max(1, count))
            (run.scaler.scale(loss) if run.scaler else loss).backward()
        total += loss.detach()
    return total / accelerator.num_processes


@contextmanager
def _more_to_come(run):
    """The context of a backward pass that is not the last of its update: data parallelism need not exchange gradients
    yet. Shards are exchanged each time, since whole gradients are what they are to save, but weights that stay whole
    after the forward pass stay."""
    if not fsdp.is_sharded(run.network):
        with run.machine.accelerator.no_sync(run.model):
            yield
        return
    run.model.set_reshard_after_backward(run.machine.sharding.reshard_after_forward)
    try:
        yield
    finally:
        run.model.set_reshard_after_backward(True)


def warm_up_ddp(run):
    """Let data parallelism settle before the first update. DDP regroups gradients after its first backward passes,
    which changes the order of summation from three processes on; two passes that leave nothing behind make fresh and
    resumed runs equal to the bit."""
    batch = run.train.batch([0], run.machine.torch_device)
    for _ in range(2):
        with run.machine.uncompiled(), run.machine.autocast():
            (run.model(*batch)[0] * 0.0).backward()
        run.optimizer.zero_grad(set_to_none=True)


def _seed(seed, iteration, index):
    """A seed of its own for each micro-batch, so that dropout does not depend on what ran before or on the number of
    processes, and one for the rounding of the update."""
    return int(np.random.SeedSequence([seed, iteration, index]).generate_state(1, np.uint64)[0] >> 1)
