"""One update, and one evaluation.

Losses are summed over target tokens, counted over all processes, and divided once; so how a batch is cut into micro-batches and
spread over processes does not change what is learned.
"""

from contextlib import nullcontext

import numpy as np
import torch


def update(run, iteration, lr):
    """Make one optimizer update; return `(loss, grad_norm)` as tensors: this process's share of the mean loss in nats a token
    (the shares of all processes add up to it), and the norm of the whole gradient before clipping.
    """
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
    if run.scaler:
        run.scaler.unscale_(run.optimizer)
    norm = torch.nn.utils.clip_grad_norm_(run.model.parameters(), recipe.grad_clip or torch.inf)
    for group in run.optimizer.param_groups:
        group["lr"] = lr
    if run.scaler:
        run.scaler.step(run.optimizer)
        run.scaler.update()
    else:
        run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    return total / accelerator.num_processes, norm


@torch.no_grad()
def evaluate(run, blocks, rows):
    """Mean nats per target token over these rows, the same for every batch size and number of processes. Draws no random number."""
    accelerator, model = run.machine.accelerator, run.network
    mine = np.asarray(rows)[accelerator.process_index :: accelerator.num_processes]
    size = max(run.recipe.batch_size, min(256, (1 << 26) // (blocks.block_size * model.config.vocab_size)))  # logits up to 256 MB
    total = torch.zeros((), device=run.machine.device, dtype=torch.float64 if run.machine.device.type != "mps" else torch.float32)
    was_training = model.training
    model.eval()
    for first in range(0, len(mine), size):
        idx, targets = to_device(blocks.batch(mine[first : first + size]), run.machine.device)
        with run.machine.autocast():
            total += model(idx, targets)[0]
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
