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


@torch.no_grad()
def test_steps_that_are_recorded_are_steps(hf_model):
    """What a GPU replays as a CUDA graph, run without one."""
    from finetune.gpt.generate import Cache, FixedStep

    model = GPT.from_hf(hf_model()).eval()
    idx = torch.randint(0, 101, (2, 5), generator=torch.Generator().manual_seed(0))
    cache, uncached_idx = Cache(model.config, 2, 20, idx.device), idx
    model.hidden(idx, cache)
    step = FixedStep(model, cache)
    for _ in range(10):
        uncached_idx = uncached(model, uncached_idx, 1)
        x = step(uncached_idx[:, -1:])
        torch.testing.assert_close(x[:, -1], model.hidden(uncached_idx)[:, -1], rtol=1e-5, atol=1e-5)


def test_samples_are_drawn_in_proportion_to_their_probability(hf_model):
    """Frequencies of 20,000 draws against the probabilities of transformers' model, with top_k's renormalised."""
    hf = hf_model()
    n, idx = 20_000, torch.zeros(1, 3, dtype=torch.long)
    for top_k in (None, 7):
        logits = hf(idx).logits[0, -1].detach() / 0.7
        if top_k:
            logits[logits < logits.topk(top_k).values[-1]] = -torch.inf
        p = logits.softmax(-1)
        drawn = GPT.from_hf(hf).generate(idx.expand(n, -1), 1, temperature=0.7, top_k=top_k, generator=torch.Generator().manual_seed(0))[:, -1]
        counts = torch.bincount(drawn, minlength=101)
        chi_square = ((counts - n * p) ** 2 / (n * p))[p > 0].sum()
        freedom = int((p > 0).sum()) - 1
        assert chi_square < freedom + 4 * (2 * freedom) ** 0.5


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
