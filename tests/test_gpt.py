"""The network computes what transformers' GPT2LMHeadModel computes, and their weights are the same."""

import math

import pytest
import torch

from finetune import GPT, GPTConfig
from finetune.gpt import convert

SHAPES = {
    "small": {},
    "odd": {
        "n_layer": 3,
        "n_head": 3,
        "n_embd": 48,
        "n_positions": 17,
        "vocab_size": 65,
        "n_inner": 100,
        "layer_norm_epsilon": 1e-6,
    },
    "exact gelu": {"activation_function": "gelu"},
    "scaled by the layer": {"n_layer": 3, "scale_attn_by_inverse_layer_idx": True},
    "scores not scaled": {"n_layer": 3, "scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True},
    "124M": {
        "n_layer": 12,
        "n_head": 12,
        "n_embd": 768,
        "n_positions": 1024,
        "vocab_size": 50257,
        "bos_token_id": 50256,
        "eos_token_id": 50256,
    },
}
NAMES = [pytest.param(name, marks=pytest.mark.slow) if name == "124M" else name for name in SHAPES]


@pytest.mark.parametrize("shape", NAMES)
def test_logits_gradients_and_weights_are_those_of_hugging_face(hf_model, shape):
    theirs = hf_model(**SHAPES[shape])
    ours = GPT.from_hf(theirs)
    idx = torch.randint(0, theirs.config.vocab_size, (2, 17), generator=torch.Generator().manual_seed(0))

    logits = theirs(idx).logits
    bound = 1e-5 * max(1.0, logits.abs().max().item())
    assert (ours.eval()(idx) - logits).abs().max().item() <= bound

    loss, count = ours.train()(idx[:, :-1], idx[:, 1:].contiguous())
    (loss / count).backward()
    theirs(idx, labels=idx).loss.backward()
    gradients = convert.to_hf({name: parameter.grad for name, parameter in ours.named_parameters()}, ours.config)
    for name, parameter in theirs.named_parameters():
        scale = parameter.grad.abs().max().item()
        assert (gradients[name] - parameter.grad).abs().max().item() <= 1e-4 * scale, name

    back, there = ours.to_hf().state_dict(), theirs.state_dict()
    assert back.keys() == there.keys()
    assert ours.num_parameters() == theirs.num_parameters()
    assert all(torch.equal(back[name], there[name]) and back[name].is_contiguous() for name in there)


@pytest.mark.parametrize("shape", NAMES)
def test_greedy_text_is_that_of_hugging_face(hf_model, shape):
    theirs = hf_model(**SHAPES[shape])
    ours = GPT.from_hf(theirs)
    prompt = torch.randint(0, 100, (3, 5), generator=torch.Generator().manual_seed(0))
    prompt = prompt % theirs.config.vocab_size
    expected = theirs.generate(prompt, max_new_tokens=10, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert torch.equal(ours.generate(prompt, 10, temperature=0), expected)


def test_five_updates_are_those_of_hugging_face(hf_model):
    theirs = hf_model(seed=3).train()
    for module in theirs.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    ours = GPT.from_hf(theirs)
    # not Adam: it blows the rounding of gradients that are zero by symmetry (the key biases) up to full steps
    optimizers = [torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9) for model in (ours, theirs)]
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        idx = torch.randint(0, 101, (2, 16), generator=generator)
        loss, count = ours(idx[:, :-1], idx[:, 1:].contiguous())
        (loss / count).backward()
        theirs(idx, labels=idx).loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    expected = convert.from_hf(theirs.state_dict(), ours.config)
    for name, tensor in convert.without_padding(ours.state_dict(), ours.config).items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-5)


def test_loss_is_a_sum_over_counted_targets(hf_model):
    theirs = hf_model()
    ours = GPT.from_hf(theirs)
    idx = torch.randint(0, 101, (2, 9), generator=torch.Generator().manual_seed(0))
    targets = idx[:, 1:].clone()
    targets[0, 3:] = -100
    loss, count = ours(idx[:, :-1], targets)
    logits = theirs(idx[:, :-1]).logits
    expected = torch.nn.functional.cross_entropy(logits[targets != -100], targets[targets != -100], reduction="sum")
    assert count.item() == 3 + 8
    torch.testing.assert_close(loss, expected)


def test_a_new_network_has_random_weights_of_the_state_of_torch():
    """As nanoGPT's, and as GPT2LMHeadModel(config) has."""
    config = GPTConfig(block_size=64, vocab_size=640, n_layer=1, n_head=1, n_embd=64)
    torch.manual_seed(3)
    first, second = GPT(config), GPT(config)
    torch.manual_seed(3)
    assert torch.equal(GPT(config).wte.weight, first.wte.weight)
    assert not torch.equal(first.wte.weight, second.wte.weight)
    idx = torch.randint(0, 640, (4, 64), generator=torch.Generator().manual_seed(0))
    loss, count = first(idx, idx.roll(-1, 1))
    assert (loss / count).item() == pytest.approx(math.log(640), rel=0.02)
    assert first.wte.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert torch.equal(GPT.from_scratch(config, 5).wpe.weight, GPT.from_scratch(config, 5).wpe.weight)


@pytest.mark.parametrize("chunked", ["false", "true", "auto"])
@pytest.mark.parametrize("wrong", [-1, 101, 120])  # nanoGPT's sign for a target that does not count, and ids above
def test_targets_that_are_no_ids_are_an_error_as_in_torch(hf_model, wrong, chunked):
    model, idx = GPT.from_hf(hf_model()), torch.zeros(1, 4, dtype=torch.long)
    model.chunked_loss = chunked
    targets = torch.tensor([[1, wrong, -100, 3]])
    with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
        torch.nn.functional.cross_entropy(model(idx)[0], targets[0], ignore_index=-100)
    with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
        model(idx, targets)


def test_the_padding_of_the_vocabulary_touches_nothing():
    model = GPT.from_scratch(GPTConfig(block_size=8, vocab_size=65, n_layer=1, n_head=1, n_embd=16))
    idx = torch.randint(0, 65, (4, 8), generator=torch.Generator().manual_seed(0))
    before = model(idx, idx)[0].item()
    with torch.no_grad():
        model.wte.weight[65:] = 1e3
    assert model(idx).shape == (4, 8, 65)
    assert model(idx, idx)[0].item() == before
    model(idx, idx)[0].backward()
    assert model.wte.weight.grad[65:].abs().max() == 0
    assert model.num_parameters() == sum(p.numel() for p in model.to_hf().parameters())


def test_cropping_keeps_the_first_positions(hf_model):
    model = GPT.from_hf(hf_model())
    idx = torch.randint(0, 101, (1, 8), generator=torch.Generator().manual_seed(0))
    before = model(idx)
    model.crop_block_size(8)
    torch.testing.assert_close(model(idx), before)
    with pytest.raises(ValueError, match="more than block_size=8"):
        model(torch.zeros(1, 9, dtype=torch.long))
    with pytest.raises(ValueError, match="8 positions"):
        model.crop_block_size(9)
    for wrong in (0, -1):
        with pytest.raises(ValueError, match="at least 1"):
            model.crop_block_size(wrong)
    for wrong in (-0.1, 1.5):
        with pytest.raises(ValueError, match="dropout must be"):
            model.set_dropout(wrong)


def test_gradient_checkpointing_changes_no_gradient(hf_model):
    idx = torch.randint(0, 101, (2, 16), generator=torch.Generator().manual_seed(0))
    gradients = []
    for recompute in (False, True):
        model = GPT.from_hf(hf_model()).train()
        model.set_dropout(0.1)
        model.gradient_checkpointing = recompute
        torch.manual_seed(5)
        model(idx, idx)[0].backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name in gradients[0]:
        torch.testing.assert_close(gradients[0][name], gradients[1][name])


def test_dropout_acts_in_training_only(hf_model):
    model = GPT.from_hf(hf_model())
    model.set_dropout(0.5)
    idx = torch.zeros(1, 8, dtype=torch.long)
    assert torch.equal(model.eval()(idx), model(idx))
    model.train()
    assert not torch.equal(model(idx), model(idx))


def test_attention_is_one_fused_kernel(hf_model):
    from torch.profiler import profile

    model = GPT.from_hf(hf_model())
    with profile() as seen, torch.no_grad():
        model(torch.zeros(1, 16, dtype=torch.long))
    names = {event.key for event in seen.key_averages()}
    assert any("flash_attention" in name for name in names), names
    assert "aten::softmax" not in names


@pytest.mark.parametrize(
    "change, named",
    [
        ({"activation_function": "relu"}, "activation_function=relu"),
        ({"add_cross_attention": True}, "add_cross_attention=True"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings=False"),
        ({"model_type": "llama"}, "llama"),
        ({"n_head": 5}, "n_embd=32"),
    ],
)
def test_configurations_that_cannot_be_represented_are_refused_by_name(hf_model, change, named):
    with pytest.raises(ValueError, match=named):
        convert.config_from_hf(hf_model().config.to_dict() | change)


@pytest.mark.parametrize("n_embd, std", [(768, 0.02), (192, 0.04)])
def test_initialisation_is_gpt2s_at_its_width_and_scaled_elsewhere(n_embd, std):
    model = GPT.from_scratch(GPTConfig(block_size=64, vocab_size=500, n_layer=2, n_head=2, n_embd=n_embd), seed=1)
    for name, parameter in model.named_parameters():
        if name.endswith("c_proj.weight"):
            assert parameter.std().item() == pytest.approx(std / 2, rel=0.05), name
        elif name in ("wte.weight", "wpe.weight"):
            assert parameter[:500].std().item() == pytest.approx(0.02, rel=0.05), name
        elif name.endswith("weight") and "ln_" not in name:
            assert parameter.std().item() == pytest.approx(std, rel=0.05), name
    idx = torch.randint(0, 500, (4, 64), generator=torch.Generator().manual_seed(0))
    loss, count = model(idx, idx.roll(-1, 1))
    assert (loss / count).item() == pytest.approx(6.215, abs=0.2)  # ln 500
