"""One update, and one evaluation.

Losses are summed over target tokens, counted over all processes, and divided once; so how a batch is cut into micro-batches and
spread over processes does not change what is learned.
"""

import math
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch

from finetune.training.guard import is_out_of_memory


@dataclass
class Outcome:
    """What an update came to, the same on every process: mean loss in nats per token, the norm of the gradient before clipping, and
    how many processes saw each of `Signals.NAMES`. Where loss or norm are not finite, nothing was updated."""

    loss: float
    grad_norm: float
    signals: list


def update(run, iteration, lr):
    """Make one optimizer update and return its Outcome."""
    loss = _backward(run, iteration)
    if run.scaler:
        run.scaler.unscale_(run.optimizer)
    norm = torch.nn.utils.clip_grad_norm_(run.model.parameters(), run.recipe.grad_clip or torch.inf)
    # one exchange and one wait for the device; what is no number in one process is no number in the sum
    accelerator = run.machine.accelerator
    flags = torch.tensor(run.signals.flags(), device=loss.device)
    loss, norm, *signals = accelerator.reduce(torch.cat([loss[None], norm[None] / accelerator.num_processes, flags])).tolist()
    for group in run.optimizer.param_groups:
        group["lr"] = lr
    if run.scaler:  # skips by itself an update that overflowed float16
        run.scaler.step(run.optimizer)
        run.scaler.update()
    elif math.isfinite(loss) and math.isfinite(norm):
        run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    return Outcome(loss, norm, signals)


def _backward(run, iteration):
    """Leave the gradient of an update in the parameters; return this process's share of its mean loss."""
    accelerator, recipe = run.machine.accelerator, run.recipe
    rows = run.order.rows(iteration)
    count = run.train.num_targets(rows)  # over all processes: every one of them knows all rows
    micro_batches = rows.reshape(recipe.gradient_accumulation_steps, recipe.batch_size)
    mine = range(accelerator.process_index, len(micro_batches), accelerator.num_processes)
    total = torch.zeros((), device=run.machine.device)
    for index in mine:
        idx, targets = to_device(run.train.batch(micro_batches[index]), run.machine.device)
        if recipe.dropout:
            torch.manual_seed(_dropout_seed(recipe.seed, iteration, index))
        with nullcontext() if index == mine[-1] else accelerator.no_sync(run.model):
            with run.machine.autocast():
                loss, _ = run.model(idx, targets)
            # data parallelism averages gradients over the processes, so each brings its share times their number
            loss = loss * (accelerator.num_processes / count)
            (run.scaler.scale(loss) if run.scaler else loss).backward()
        total += loss.detach()
    return total / accelerator.num_processes


def settle(run):
    """Let data parallelism settle before the first update. DDP regroups gradients after its first backward passes, which changes the
    order of summation from three processes on; two passes that leave nothing behind make fresh and resumed runs equal to the bit."""
    idx, targets = to_device(run.train.batch([0]), run.machine.device)
    for _ in range(2):
        with run.machine.autocast():
            (run.model(idx, targets)[0] * 0.0).backward()
        run.optimizer.zero_grad(set_to_none=True)


def fits(run):
    """Whether every process has memory for a micro-batch. To be asked before the first update of several processes: later, one that
    fails would leave the others waiting for its gradients."""
    failed = 0.0
    try:
        idx, targets = to_device(run.train.batch([0] * run.recipe.batch_size), run.machine.device)
        with run.machine.accelerator.no_sync(run.model), run.machine.autocast():
            (run.model(idx, targets)[0] * 0.0).backward()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        failed = 1.0
    run.optimizer.zero_grad(set_to_none=True)
    return not run.machine.accelerator.reduce(torch.tensor(failed, device=run.machine.device)).item()


@torch.no_grad()
def evaluate(run, blocks, rows):
    """Mean nats per target token over these rows, the same for every batch size and number of processes. Draws no random number."""
    accelerator, model = run.machine.accelerator, run.network
    mine = np.asarray(rows)[accelerator.process_index :: accelerator.num_processes]
    widest = blocks.block_size * max(model.config.vocab_size, 16 * model.config.n_embd)
    size = max(run.recipe.batch_size, min(256, (1 << 26) // widest))  # logits or activations up to 256 MB
    total = torch.zeros((), device=run.machine.device, dtype=torch.float64 if run.machine.device.type != "mps" else torch.float32)
    was_training = model.training
    model.eval()
    done = 0
    while done < len(mine):
        try:
            idx, targets = to_device(blocks.batch(mine[done : done + size]), run.machine.device)
            with run.machine.exactly():
                total += model(idx, targets)[0]
            done += size
        except RuntimeError as error:
            if not is_out_of_memory(error) or size == 1:
                raise
            size //= 2
    model.train(was_training)
    return (accelerator.reduce(total) / blocks.num_targets(rows)).item()


def to_device(tensors, device):
    """Copies on the device; on a GPU without waiting for them."""
    if device.type != "cuda":
        return [tensor.to(device) for tensor in tensors]
    return [tensor.pin_memory().to(device, non_blocking=True) for tensor in tensors]


def _dropout_seed(seed, iteration, index):
    """A seed of its own for each micro-batch, so that dropout does not depend on what ran before or on the number of processes."""
    return int(np.random.SeedSequence([seed, iteration, index]).generate_state(1, np.uint64)[0] >> 1)
