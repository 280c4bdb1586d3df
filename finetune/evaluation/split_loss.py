"""The loss over a split, the same for every batch size and number of processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from finetune.common.errors import Failure
from finetune.data.batches import Blocks, ConcatBlocks
from finetune.gpt.model import Transformer
from finetune.runtime import fsdp
from finetune.runtime.device import Device
from finetune.runtime.memory import is_out_of_memory, rows_of_evaluation

OnProgress = Callable[[int, int], object]

TRAIN_PROBE = 16384  # tokens of the train split, spread evenly over it, that every evaluation measures


def blocks_of_evaluation(train: int, val: int, block_size: int, limit: int | None) -> tuple[int, int]:
    """(blocks of train, blocks of val) that an evaluation reads of splits of so many."""
    return min(train, limit or max(1, TRAIN_PROBE // block_size)), min(val, limit or val)


def eval_rows(blocks: Blocks | ConcatBlocks, limit: int | None) -> np.ndarray:
    """The rows of an evaluation, the same every time: all with a target, or `limit` of these spread evenly over the
    split."""
    rows = blocks.rows_with_targets()
    count = min(len(rows), limit or len(rows))
    return rows[np.linspace(0, len(rows) - 1, count).round().astype(np.int64)]


@torch.no_grad()
def split_loss(
    device: Device,
    model: Transformer,
    blocks: Blocks | ConcatBlocks,
    rows: np.ndarray | Sequence[int],
    on_progress: OnProgress = lambda done, total: None,
) -> float:
    """Mean nats per target token over these rows. Draws no random number. `on_progress` is called after each batch with
    this process's rows, done and in all."""
    accelerator, torch_device = device.accelerator, device.torch_device
    rows, is_sharded = np.asarray(rows), fsdp.is_sharded(model)
    mine = rows[accelerator.process_index :: accelerator.num_processes]
    # a forward pass of a sharded model is collective, so every process makes as many as the one with most rows
    end = -(-len(rows) // accelerator.num_processes) if is_sharded else len(mine)
    size = rows_of_evaluation(model.config, blocks.block_size, torch_device.type)
    dtype = torch.float32 if torch_device.type == "mps" else torch.float64
    total = torch.zeros((), device=torch_device, dtype=dtype)
    was_training = model.training
    model.eval()
    done = 0
    while done < end:
        part = mine[done : done + size]
        try:
            batch = blocks.batch(part if len(part) else rows[:1], torch_device)
            with device.full_precision():
                loss = model(*batch)[0]
            total += loss if len(part) else 0.0
            done += size
            on_progress(min(done, end), end)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if is_sharded:  # the others wait for this process, so it cannot retry alone
                raise Failure(
                    f"out of memory in an evaluation of {size} blocks; a smaller block_size, more processes or"
                    " fsdp_offload_params: true need less; --init_from=resume goes on from the last state",
                    1,
                    alone=True,
                ) from error
            if size == 1:
                raise
            size //= 2
    fsdp.reshard(model)
    model.train(was_training)
    return (accelerator.reduce(total) / blocks.num_targets(rows)).item()
