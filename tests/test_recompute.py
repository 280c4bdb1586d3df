"""What is computed again in the backward pass changes no bit, and is not kept until then."""

import pytest
import torch

from finetune.gpt import recompute
from finetune.gpt.model import GPTConfig, Transformer

CONFIG = GPTConfig(block_size=64, vocab_size=101, n_layer=2, n_head=2, n_embd=32)


def loss_and_gradients(monkeypatch, many_tokens, dtype, config=CONFIG, checkpointing=False):
    """`(loss, gradients, bytes kept for the backward pass)` of 4 x 64 tokens."""
    monkeypatch.setattr(recompute, "MANY_TOKENS", many_tokens)
    generator = torch.Generator().manual_seed(3)
    model = Transformer(config).init_weights(generator).train()
    model.gradient_checkpointing = checkpointing
    idx = torch.randint(config.vocab_size, (4, 64), generator=generator)
    kept: dict[int, int] = {}
    torch.manual_seed(5)  # of dropout

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    saved = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with saved, torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        loss, _ = model(idx, idx)
    loss.backward()
    return loss.detach(), {name: weight.grad for name, weight in model.named_parameters()}, sum(kept.values())


@pytest.mark.parametrize("activation", ["gelu_new", "gelu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("more", [{}, {"dropout": 0.3}, {"n_inner": 48}], ids=str)
def test_losses_and_gradients_are_the_same_bits(monkeypatch, dtype, activation, more):
    config = GPTConfig(**{**vars(CONFIG), "activation_function": activation, **more})
    loss, gradients, kept = loss_and_gradients(monkeypatch, 1 << 30, dtype, config)
    again, others, kept_now = loss_and_gradients(monkeypatch, 256, dtype, config)
    assert torch.equal(loss, again)
    for name, gradient in gradients.items():
        assert torch.equal(gradient, others[name]), name
    # of a layer: outputs of the layer norms and of GELU, and mean and deviation of the norms
    outputs = 4 * 64 * (dtype.itemsize * (2 * 32 + config.mlp_width) + 4 * 4)
    assert kept - kept_now == pytest.approx(2 * outputs, rel=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_it_goes_with_gradient_checkpointing(monkeypatch, dtype):
    loss, gradients, _ = loss_and_gradients(monkeypatch, 1 << 30, dtype, checkpointing=True)
    again, others, _ = loss_and_gradients(monkeypatch, 256, dtype, checkpointing=True)
    assert torch.equal(loss, again) and all(torch.equal(gradient, others[name]) for name, gradient in gradients.items())


def test_few_tokens_and_frozen_weights_keep_their_outputs(monkeypatch):
    """255 of 256 tokens are too few; frozen weights, frozen norms and hooks are left to PyTorch."""
    made = []
    monkeypatch.setattr(recompute, "MANY_TOKENS", 256)
    monkeypatch.setattr(recompute.RecomputedLinear, "apply", lambda *args: made.append(1))
    norm, layer = torch.nn.LayerNorm(8), torch.nn.Linear(8, 8)
    recompute.linear(layer, norm, torch.randn(255, 8))
    with torch.no_grad():
        recompute.linear(layer, norm, torch.randn(256, 8))
    x = torch.randn(256, 8, requires_grad=True)
    for frozen in (layer.weight, norm.bias):
        frozen.requires_grad_(False)
        recompute.linear(layer, norm, x).sum().backward()
        frozen.requires_grad_(True)
    hook = layer.register_forward_hook(lambda *given: None)
    recompute.linear(layer, norm, x)
    hook.remove()
    assert not made
    recompute.linear(layer, norm, x)
    assert made


@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward", "full_backward_pre", "replaced"])
def test_hooks_run_as_often_as_with_few_tokens(monkeypatch, kind):
    """A layer norm was called again in the backward pass, with its hooks, and a linear layer not at all."""
    model, idx, seen = Transformer(CONFIG).init_weights(), torch.randint(CONFIG.vocab_size, (4, 64)), []

    def watch(name, module):
        if kind != "replaced":
            getattr(module, f"register_{kind}_hook")(lambda *given: seen.append(name))
            return
        own = module.forward
        module.forward = lambda *given: (seen.append(name), own(*given))[1]

    for name, module in model.named_modules():
        if name.endswith((".c_attn", ".c_fc", "mlp.c_proj", ".ln_1", ".ln_2", ".act")):
            watch(name, module)
    counts = []
    for many in (1 << 30, 256):
        monkeypatch.setattr(recompute, "MANY_TOKENS", many)
        seen.clear()
        model(idx, idx)[0].backward()
        counts.append(sorted(seen))
    assert counts[0] == counts[1] and len(counts[0]) == 12
