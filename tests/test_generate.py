"""Cached generation is uncached generation, and sampling keeps to what it was told."""

import pytest
import torch

from finetune import GPT


def uncached(model, idx, steps):
    """Greedy text by recomputing the last block_size tokens for each new one."""
    for _ in range(steps):
        logits = model(idx[:, -model.config.block_size :])[:, -1]
        idx = torch.cat([idx, logits.argmax(-1, keepdim=True)], 1)
    return idx


@pytest.mark.parametrize("prompt_length", [1, 5, 31, 32, 40])
def test_the_cache_changes_nothing_also_past_the_context(hf_model, prompt_length):
    model = GPT.from_hf(hf_model()).eval()
    idx = torch.randint(0, 101, (2, prompt_length), generator=torch.Generator().manual_seed(0))
    assert torch.equal(model.generate(idx, 40, temperature=0), uncached(model, idx, 40))


def test_the_same_seed_gives_the_same_text(hf_model):
    model = GPT.from_hf(hf_model())
    idx = torch.zeros(3, 4, dtype=torch.long)
    one, two, other = (model.generate(idx, 20, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, two) and not torch.equal(one, other)
    assert not torch.equal(one[0], one[1])  # samples of a batch differ


def test_top_k_and_top_p_and_the_vocabulary_bound_what_is_drawn(hf_model):
    model = GPT.from_hf(hf_model()).eval()
    idx = torch.zeros(500, 3, dtype=torch.long)
    likeliest = model(idx[:1])[0, -1].sort(descending=True)
    drawn = lambda **options: set(model.generate(idx, 1, generator=torch.Generator().manual_seed(0), **options)[:, -1].tolist())  # noqa: E731
    assert drawn(top_k=1) == {likeliest.indices[0].item()}
    assert drawn(top_k=5) <= set(likeliest.indices[:5].tolist()) and len(drawn(top_k=5)) > 1
    cumulative = likeliest.values.softmax(-1).cumsum(-1)
    within = int((cumulative < 0.5).sum()) + 1
    assert drawn(top_p=0.5) <= set(likeliest.indices[:within].tolist()) and len(drawn(top_p=0.5)) > 1
    assert max(drawn(temperature=100.0)) < 101  # never the padding of the vocabulary


def test_generation_keeps_the_mode_of_the_model_and_refuses_nonsense(hf_model):
    model = GPT.from_hf(hf_model()).train()
    model.generate(torch.zeros(1, 1, dtype=torch.long), 2)
    assert model.training
    with pytest.raises(ValueError, match="empty"):
        model.generate(torch.zeros(1, 0, dtype=torch.long), 2)
    with pytest.raises(ValueError, match="temperature"):
        model.generate(torch.zeros(1, 1, dtype=torch.long), 2, temperature=-1)
