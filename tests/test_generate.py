"""Generation with a cache equals generation without, and sampling equals that of transformers."""

import numpy as np
import pytest
import torch

from finetune import GPT
from finetune.gpt import streams


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
    from finetune.gpt.attention import KVCache
    from finetune.gpt.generate import CUDAGraphStep, forward_cached

    model = GPT.from_hf(hf_model()).eval()
    idx = torch.randint(0, 101, (2, 5), generator=torch.Generator().manual_seed(0))
    cache, uncached_idx = KVCache(2, (2, 4, 20, 8), idx.device), idx
    forward_cached(model, idx, cache)
    step = CUDAGraphStep(model, cache)
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
        drawn = GPT.from_hf(hf).generate(
            idx.expand(n, -1), 1, temperature=0.7, top_k=top_k, generator=torch.Generator().manual_seed(0)
        )[:, -1]
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


def logits_of_each_step(model, idx, new):
    seen = []
    out = model.generate(
        idx, new, temperature=0, logits_processor=lambda ids, logits: seen.append(logits.clone()) or logits
    )
    return out, torch.stack(seen, 1)  # (B, new, V)


@torch.no_grad()
@pytest.mark.parametrize("prompt_length", [1, 20, 32, 45])
def test_logits_of_every_step_are_those_of_recomputation_and_of_transformers(hf_model, prompt_length):
    hf = hf_model()
    model = GPT.from_hf(hf).eval()
    idx = torch.randint(0, 101, (2, prompt_length), generator=torch.Generator().manual_seed(0))
    out, logits = logits_of_each_step(model, idx, 40)  # past the context of 32 in any case
    for step in range(40):
        window = out[:, : prompt_length + step][:, -32:]
        torch.testing.assert_close(logits[:, step], model(window)[:, -1], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(logits[:, step], hf(window).logits[:, -1], rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("penalty", [1.0, 1.3, 0.8])
def test_greedy_is_that_of_transformers(hf_model, penalty):
    hf = hf_model()
    idx = torch.randint(0, 100, (3, 4), generator=torch.Generator().manual_seed(0))
    greedy = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None, "attention_mask": torch.ones_like(idx)}
    theirs = hf.generate(idx, max_new_tokens=28, repetition_penalty=penalty, **greedy)
    assert torch.equal(GPT.from_hf(hf).generate(idx, 28, temperature=0, repetition_penalty=penalty), theirs)


@pytest.mark.parametrize(
    "settings",
    [
        {"top_p": 0.7},
        {"min_p": 0.5},
        {"repetition_penalty": 2.0},
        {"top_k": 20, "top_p": 0.8, "min_p": 0.6, "repetition_penalty": 1.5},
    ],
    ids=lambda settings: " ".join(settings),
)
@torch.no_grad()
def test_what_is_drawn_is_what_the_processors_of_transformers_leave(hf_model, settings):
    """Frequencies of 20,000 draws, and nothing outside of what they leave."""
    from transformers import (
        LogitsProcessorList,
        MinPLogitsWarper,
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    hf, n = hf_model(), 20_000
    idx = torch.tensor([[5, 17, 17, 80]])
    kinds = {
        "repetition_penalty": RepetitionPenaltyLogitsProcessor,
        "temperature": TemperatureLogitsWarper,
        "top_k": TopKLogitsWarper,
        "top_p": TopPLogitsWarper,
        "min_p": MinPLogitsWarper,
    }
    settings = {"temperature": 1.5, **settings}
    processors = LogitsProcessorList([kind(settings[name]) for name, kind in kinds.items() if name in settings])
    p = processors(idx, hf(idx).logits[:, -1])[0].softmax(-1)
    generator = torch.Generator().manual_seed(0)
    drawn = GPT.from_hf(hf).generate(idx.expand(n, -1), 1, generator=generator, **settings)[:, -1]
    counts = torch.bincount(drawn, minlength=101)
    assert not counts[p == 0].any() and (p == 0).any() == (settings.keys() != {"temperature", "repetition_penalty"})
    freedom = int((p > 0).sum()) - 1
    assert freedom > 5
    assert ((counts - n * p) ** 2 / (n * p))[p > 0].sum() < freedom + 4 * (2 * freedom) ** 0.5


@torch.no_grad()
@pytest.mark.parametrize("top_k", [1, 40, 200, None])
def test_rounding_to_16_bits_does_not_choose(top_k):
    """Logits around -100, where bfloat16 knows multiples of 0.5 only, as GPT-2's are."""
    from finetune import GPTConfig
    from finetune.gpt.generate import _float32_head

    model = GPT.from_scratch(GPTConfig(vocab_size=500, n_layer=1, n_head=1, n_embd=64, block_size=8))
    model.wte.weight[:, 0] = -10.0
    model.bfloat16()
    x = torch.randn(20, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    x[:, 0] = 10.0
    exact = x.double() @ model.wte.weight[:500].double().T
    logits, ids = _float32_head(model, top_k, whole=False)(x)
    ids = torch.arange(500).expand(20, -1) if ids is None else ids
    rough = model.head(x)
    assert ((rough == rough.amax(-1, keepdim=True)).sum(-1) > 1).all(), "ties, so that there is something to decide"
    torch.testing.assert_close(logits.double()[:, :64], exact.gather(-1, ids)[:, :64], rtol=0, atol=1e-4)
    torch.testing.assert_close(logits.double(), exact.gather(-1, ids), rtol=0, atol=0.26)
    assert torch.equal(ids.gather(-1, logits.argmax(-1, keepdim=True)), exact.argmax(-1, keepdim=True))


@pytest.mark.parametrize("every", [1, 7, 50])
def test_a_callback_sees_every_id_once_and_can_end_it(hf_model, every):
    model, idx = GPT.from_hf(hf_model()), torch.zeros(2, 3, dtype=torch.long)
    whole = model.generate(idx, 40, generator=torch.Generator().manual_seed(1))
    for enough in (25, 1000):
        seen = []

        def callback(new, seen=seen, enough=enough):
            seen.append(new.clone())
            return sum(part.size(1) for part in seen) >= enough

        out = model.generate(
            idx, 40, generator=torch.Generator().manual_seed(1), callback=callback, callback_every=every
        )
        assert torch.equal(out, whole[:, : out.size(1)]) and torch.equal(torch.cat(seen, 1), out[:, 3:])
        assert out.size(1) - 3 == (40 if enough > 40 else min(40, -(-25 // every) * every))


def test_top_k_and_top_p_and_the_vocabulary_bound_what_is_drawn(hf_model):
    model = GPT.from_hf(hf_model()).eval()
    idx = torch.zeros(500, 3, dtype=torch.long)
    likeliest = model(idx[:1])[0, -1].sort(descending=True)

    def drawn(**options):
        return set(model.generate(idx, 1, generator=torch.Generator().manual_seed(0), **options)[:, -1].tolist())

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
    for name, value in {"temperature": -1, "top_p": 0, "min_p": 1.1, "repetition_penalty": 0}.items():
        with pytest.raises(ValueError, match=name):
            model.generate(torch.zeros(1, 1, dtype=torch.long), 2, **{name: value})
    for name, value in {"top_k": -1, "max_new_tokens": -2}.items():
        with pytest.raises(ValueError, match=f"{name} must be at least 0, got {value}"):
            model.generate(torch.zeros(1, 1, dtype=torch.long), **{"max_new_tokens": 2, name: value})
    with pytest.raises(ValueError, match=r"must be \(B, T\)"):
        model.generate(torch.zeros(3, dtype=torch.long), 2)
    for wrong in (-1, 101, 120):  # transformers has no embedding for them, ours has up to 127
        with pytest.raises(IndexError):
            hf_model().generate(torch.tensor([[1, wrong]]), max_new_tokens=2)
        with pytest.raises(ValueError, match=f"idx has {wrong}, which is no id of this model; these are 0 to 100"):
            model.generate(torch.tensor([[1, 2], [1, wrong]]), 2)
    with pytest.raises(TypeError, match="temprature"):
        model.generate(torch.zeros(1, 1, dtype=torch.long), 2, temprature=0.5)


def test_a_generation_that_fails_keeps_the_mode_of_the_model(hf_model):
    model = GPT.from_hf(hf_model()).train()

    def fail(ids):
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        model.generate(torch.zeros(1, 1, dtype=torch.long), 2, callback=fail)
    assert model.training


def test_no_rows_are_no_rows_and_each_row_has_one_number(hf_model):
    model = GPT.from_hf(hf_model())
    for options in ({}, {"temperature": 0}, {"top_k": 5, "top_p": 0.9, "repetition_penalty": 1.2}):
        assert model.generate(torch.zeros(0, 3, dtype=torch.long), 4, **options).shape == (0, 7)
    for rows in ([0], range(3)):
        with pytest.raises(ValueError, match="rows must have a number for each of the 2 rows"):
            model.generate(torch.zeros(2, 3, dtype=torch.long), 4, rows=rows)


def test_equal_prompts_are_computed_once_and_each_row_is_as_alone(hf_model):
    model, idx, lengths = GPT.from_hf(hf_model()), torch.arange(9).expand(5, -1), []
    model.h[0].register_forward_hook(lambda block, inputs, out: lengths.append(inputs[0].shape[:2].numel()))
    how = {"eos_token_id": None, "top_k": 9}
    whole = model.generate(idx, 40, generator=torch.Generator().manual_seed(1), **how)  # also beyond the context
    assert lengths[:2] == [9, 5] and len({tuple(row) for row in whole.tolist()}) == 5
    for row in range(5):
        alone = model.generate(idx[:1], 40, generator=torch.Generator().manual_seed(1), rows=[row], **how)
        assert torch.equal(alone[0], whole[row])
    other = torch.cat([idx[:1] + 1, idx])  # prompts that are not equal
    beside = model.generate(other, 40, generator=torch.Generator().manual_seed(1), rows=[9, *range(5)], **how)
    assert torch.equal(beside[1:], whole)


def test_every_bit_of_a_seed_counts():
    keys = [
        streams.step_keys(torch.Generator().manual_seed(seed), range(2), 3, torch.device("cpu"))
        for seed in (7, 7 + 2**32, 7 + 2**40, 7 + 2**62, 2**63 - 1, 2**32 - 1, -7)
    ]
    assert len({tuple(one.flatten().tolist()) for one in keys}) == 7


@pytest.mark.parametrize("pad", [None, 3])
@pytest.mark.parametrize("by_config", [True, False])
def test_texts_end_where_those_of_transformers_end(hf_model, pad, by_config):
    """Rows of different lengths, filled with pads; the batch ends with its longest row."""
    theirs = hf_model()
    idx = torch.randint(0, 101, (3, 4), generator=torch.Generator().manual_seed(1))
    greedy = {"max_new_tokens": 20, "do_sample": False, "attention_mask": torch.ones_like(idx)}
    free = theirs.generate(idx, eos_token_id=None, pad_token_id=0, **greedy)
    ours = GPT.from_hf(theirs)
    assert torch.equal(ours.generate(idx, 20, temperature=0, eos_token_id=None), free)
    first = [int(row[4 + place]) for row, place in zip(free, (5, 2, 9))]
    for ends in (first[0], first[:2], first):
        theirs.generation_config.pad_token_id = pad
        expected = theirs.generate(idx, eos_token_id=ends, **greedy)
        ours.config.generation_config = {"pad_token_id": pad, "eos_token_id": ends if by_config else None}
        shown = []
        asked = {} if by_config else {"eos_token_id": ends}
        found = ours.generate(idx, 20, temperature=0, callback=lambda ids: shown.append(ids.clone()), **asked)  # noqa: B023
        assert torch.equal(found, expected) and torch.equal(torch.cat([idx, *shown], 1), expected)


def test_random_numbers_are_exponential_and_independent():
    """Against the distribution function, and the covariance of neighbours in each direction."""
    device = torch.device("cpu")
    keys = streams.step_keys(torch.Generator().manual_seed(1), range(40), 50, device)
    assert torch.equal(keys[3:5, :9], streams.step_keys(torch.Generator().manual_seed(1), [3, 4], 9, device))
    numbers = streams.exponential(keys.reshape(-1, 1), torch.arange(200)).view(40, 50, 200)
    assert numbers.min() > 0 and numbers.isfinite().all()
    u = (1 - (-numbers.double()).exp()).flatten().sort().values
    distance = (u - torch.linspace(0, 1, u.numel(), dtype=torch.float64)).abs().max()
    assert distance < 1.95 / u.numel() ** 0.5  # Kolmogorov-Smirnov, one in a thousand
    centred = numbers.double() - 1
    for dim in range(3):
        n = centred.narrow(dim, 0, centred.size(dim) - 1)
        product = (n * centred.narrow(dim, 1, centred.size(dim) - 1)).mean()
        assert abs(product) < 4 / n.numel() ** 0.5


def test_ids_of_a_tokenizer_are_taken_as_they_come(hf_model):
    """Arrays of uint16, and lists, gave errors of torch about kinds of numbers."""
    model = GPT.from_hf(hf_model())
    ids = np.array([[5, 7, 100]], np.uint16)
    wanted = hf_model().generate(torch.tensor([[5, 7, 100]]), max_new_tokens=4, do_sample=False, eos_token_id=None)
    for given in (ids, ids.astype(np.uint32), ids.tolist(), torch.tensor(ids), torch.tensor(ids.astype(np.uint8))):
        assert torch.equal(model.generate(given, 4, temperature=0, eos_token_id=None), wanted)
    with pytest.raises(ValueError, match=r"must be \(B, T\)"):
        model.generate(ids[0], 4)
    with pytest.raises(ValueError, match="whole numbers, got float32"):
        model.generate(torch.ones(1, 3), 4)
