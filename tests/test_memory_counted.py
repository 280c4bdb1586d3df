"""The memory formula against PyTorch's own count of every tensor of an update, without memory: fake tensors."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from finetune.config.recipe import Recipe
from finetune.gpt import loss as losses
from finetune.gpt.model import SHAPES, GPTConfig, Transformer
from finetune.runtime import memory

SMALL = {"gpt2, three layers": (3, 12, 768)}


@pytest.mark.heavy
@pytest.mark.parametrize(
    "name",
    [
        "gpt2, three layers",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("gpt2", "gpt2-medium", "gpt2-large")),
    ],
)
def test_an_update_needs_what_the_formula_says(name):
    from torch.distributed._tools.mem_tracker import MemTracker  # a second

    n_layer, n_head, n_embd = {**SHAPES, **SMALL}[name]
    config = GPTConfig(n_layer=n_layer, n_head=n_head, n_embd=n_embd)
    with FakeTensorMode():
        model = Transformer(config)
        optimizer = torch.optim.AdamW(model.parameters(), foreach=False, fused=False)
        tracker = MemTracker()
        tracker.track_external(model, optimizer)
        idx = torch.zeros(4, 1024, dtype=torch.long)
        with tracker:
            for _ in range(2):  # the second has moments from its beginning
                with torch.autocast("cpu", torch.bfloat16):
                    loss, count = model(idx, idx)
                (loss / count).backward()
                optimizer.step()
                optimizer.zero_grad()
                tracker.reset_mod_stats()
    counted = tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"]
    recipe = Recipe(batch_size=4, gradient_accumulation_steps=1, dropout=0.0)
    found = memory.estimate_memory(memory.Workload(recipe, config, 1024, "cpu", torch.bfloat16))
    beside = found.parts["program"] + found.parts["heap fragmentation"]  # no tensors
    assert found.peak - beside == pytest.approx(counted, rel=0.05)


def test_the_uncompiled_loss_needs_what_the_formula_says():
    """That of a GPU: logits in bfloat16, and all of them at once."""
    from torch.distributed._tools.mem_tracker import MemTracker

    config, N = GPTConfig(n_layer=1), 4096
    C, V = config.n_embd, config.padded_vocab_size
    with FakeTensorMode():
        x, weight = (torch.empty(rows, C, requires_grad=True) for rows in (N, V))
        targets = torch.zeros(N, dtype=torch.long)
        tracker = MemTracker()
        tracker.track_external(x, weight, targets)
        with tracker, torch.autocast("cpu", torch.bfloat16):
            losses.linear_cross_entropy(x, weight, targets, config.vocab_size).backward()
    counted = tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"]
    recipe = Recipe(batch_size=4, chunked_loss="false")
    found = memory.estimate_memory(memory.Workload(recipe, config, 1024))
    beside = 4 * (N + V) * C + 2 * (N + V) * C  # inputs in float32, and as products read them
    assert found.parts["logits and loss"] == pytest.approx(counted - beside, rel=0.01)
