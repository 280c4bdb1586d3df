"""The loss over a split, the same for every batch size and number of processes."""

import numpy as np
import torch

from finetune.common.errors import Failure
from finetune.runtime import fsdp
from finetune.runtime.memory import is_out_of_memory, rows_of_evaluation

TRAIN_PROBE = 16384  # tokens of the train split, spread evenly over it, that every evaluation measures


def eval_rows(blocks, limit):
    """The rows an evaluation reads, the same every time: all that have a target, or `limit` of these spread evenly over
    the split."""
    rows = blocks.rows_with_targets()
    count = min(len(rows), limit or len(rows))
    return rows[np.linspace(0, len(rows) - 1, count).round().astype(np.int64)]


@torch.no_grad()
def split_loss(run, blocks, rows):
    """Mean nats per target token over these rows, the same for every batch size and number of processes. Draws no
    random number."""
    accelerator, model = run.machine.accelerator, run.network
    rows, exchanged = np.asarray(rows), fsdp.is_sharded(model)
    mine = rows[accelerator.process_index :: accelerator.num_processes]
    end = (
        -(-len(rows) // accelerator.num_processes) if exchanged else len(mine)
    )  # as many passes as the process with most rows makes
    size = rows_of_evaluation(model.config, blocks.block_size, run.machine.torch_device.type)
    total = torch.zeros(
        (),
        device=run.machine.torch_device,
        dtype=torch.float64 if run.machine.torch_device.type != "mps" else torch.float32,
    )
    was_training = model.training
    model.eval()
    done = 0
    while done < end:
        part = mine[done : done + size]
        try:
            batch = blocks.batch(part if len(part) else rows[:1], run.machine.torch_device)
            with run.machine.full_precision():
                loss = model(*batch)[0]
            total += loss if len(part) else 0.0
            done += size
        except RuntimeError as error:
            if is_out_of_memory(error) and exchanged:  # the others wait for this process, so it cannot try with less
                advice = (
                    "a smaller block_size, more processes or fsdp_offload_params: true need less; what was saved goes"
                    " on with --init_from=resume"
                )
                raise Failure(f"out of memory in an evaluation of {size} blocks; {advice}", 1, alone=True) from error
            if not is_out_of_memory(error) or size == 1:
                raise
            size //= 2
    fsdp.reshard(model)
    model.train(was_training)
    return (accelerator.reduce(total) / blocks.num_targets(rows)).item()
