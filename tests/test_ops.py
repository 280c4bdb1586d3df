"""Attention and loss equal the plain formulas they replace."""

import pytest
import torch
from torch.nn import functional as F

from finetune import GPT
from finetune.gpt import attention
from finetune.gpt import loss as gpt_loss


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("T", [1, 63, 256, 257, 600])
def test_blockwise_attention_is_attention(monkeypatch, T, kept):
    """Against float64, with at most twice the rounding error of PyTorch's own kernel, value and gradients."""
    monkeypatch.setattr(attention, "MAX_SAVED", 1 << 30 if kept else 0)
    generator = torch.Generator().manual_seed(T)
    exact = torch.randn(3, 2, 4, T, 16, generator=generator).bfloat16()
    upstream = torch.randn(2, 4, T, 16, generator=generator).bfloat16()
    results = {}
    for name, attend, dtype in (
        ("exact", lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True), torch.float64),
        ("torch", lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True), torch.bfloat16),
        ("ours", lambda q, k, v: attention.causal_attention(q, k, v), torch.bfloat16),
    ):
        leaf = exact.clone().to(dtype).requires_grad_()
        y = attend(*leaf)
        y.backward(upstream.to(dtype))
        results[name] = (y.detach().double(), *leaf.grad.double())
    for right, theirs, ours in zip(results["exact"], results["torch"], results["ours"]):
        error, allowed = (ours - right).norm(), 2 * (theirs - right).norm()
        assert error <= allowed + 1e-6 * right.norm()


def test_training_on_a_cpu_in_bfloat16_uses_it_and_dropout_does_not(monkeypatch):
    seen = []
    monkeypatch.setattr(attention.BlockwiseAttention, "apply", lambda *args: seen.append(1) or args[2])
    q = torch.randn(1, 2, 8, 4).bfloat16()
    attention.causal_attention(q, q, q, dropout_p=0.1)
    attention.causal_attention(q.float(), q.float(), q.float())
    assert not seen
    attention.causal_attention(q, q, q)
    assert seen


@pytest.mark.parametrize(
    "has_amx, T, trains, keeps, is_ours",
    [
        (False, attention.FLASH_TOKENS, False, False, True),
        (True, attention.FLASH_TOKENS - 1, False, False, True),
        (True, attention.FLASH_TOKENS, False, True, False),
        (True, attention.FLASH_TOKENS, True, True, True),
        (True, attention.FLASH_TOKENS, True, False, False),
    ],
)
def test_long_rows_go_to_the_kernel_of_pytorch_only_with_amx(monkeypatch, has_amx, T, trains, keeps, is_ours):
    """And not where training keeps the probabilities for its backward pass."""
    seen = []
    monkeypatch.setattr(attention, "HAS_AMX", has_amx)
    monkeypatch.setattr(attention, "MAX_SAVED", T**2 if keeps else T**2 - 1)
    monkeypatch.setattr(attention.BlockwiseAttention, "apply", lambda *args: seen.append(1) or args[2])
    q = torch.randn(1, 1, T, 4).bfloat16().requires_grad_(trains)
    attention.causal_attention(q, q, q)
    assert bool(seen) == is_ours


@pytest.mark.parametrize("has_amx", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_cache_is_in_bfloat16_only_with_amx(monkeypatch, dtype, has_amx):
    monkeypatch.setattr(attention, "HAS_AMX", has_amx)
    cache, q = attention.KVCache(1, (1, 1, 8, 4), torch.device("cpu")), torch.randn(1, 1, 3, 4).to(dtype)
    assert cache.attend(0, q, q, q).dtype == dtype
    assert cache.layers.dtype == (dtype if has_amx else torch.float32)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # within the compiler
@pytest.mark.parametrize("T", [32, attention.FLASH_TOKENS])
def test_attention_in_bfloat16_is_compiled_in_one_graph(T):
    """A call that the compiler cannot trace would cut each layer in two, on a GPU too."""
    q = torch.randn(1, 2, T, 16).bfloat16()
    compiled = torch.compile(attention.causal_attention, backend="eager", fullgraph=True)
    with torch.no_grad():
        assert torch.equal(compiled(q, q, q), attention.causal_attention(q, q, q))


def test_a_loss_of_hundreds_of_nats_is_still_exact():
    x, weight, targets = torch.eye(1, 4) * 300, torch.eye(64, 4), torch.tensor([1])
    assert gpt_loss.ChunkedLinearCrossEntropy.apply(x, weight, targets, 64, torch.float32).item() == pytest.approx(300)


@pytest.mark.parametrize("chunk", [1, 7, 1000])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_the_loss_in_chunks_is_cross_entropy(monkeypatch, chunk, dtype, tolerance):
    monkeypatch.setattr(gpt_loss, "CHUNK", chunk)
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(20, 16, generator=generator), torch.randn(128, 16, generator=generator)
    targets = torch.randint(0, 101, (20,), generator=generator)
    targets[3:6] = -100
    results = []
    for chunked in (True, False):
        a, b = x.clone().requires_grad_(), weight.clone().requires_grad_()
        if chunked:
            loss = gpt_loss.ChunkedLinearCrossEntropy.apply(a, b, targets, 101, dtype)
        else:
            loss = torch.nn.functional.cross_entropy(a @ b[:101].T, targets, reduction="sum")
        (loss / 7).backward()
        results.append((loss, a.grad, b.grad))
    for one, other in zip(*results):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance * other.abs().max().item())
    assert results[0][2][101:].abs().max() == 0


@pytest.mark.parametrize("without_gradients", [torch.no_grad, torch.inference_mode])
def test_an_evaluation_computes_no_gradient(without_gradients):
    from torch.utils.flop_counter import FlopCounterMode

    x, weight = torch.randn(20, 16), torch.nn.Parameter(torch.randn(128, 16))
    with without_gradients(), FlopCounterMode(display=False) as counter:
        gpt_loss.chunked_linear_cross_entropy(x, weight, torch.arange(20), 101)
    assert counter.get_total_flops() == 2 * 20 * 16 * 128


def test_training_never_holds_all_logits(hf_model):
    """No tensor of tokens times vocabulary is made when there are more tokens than a chunk has."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        rows = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.dim() == 2 and out.size(1) in (1000, 1024):
                self.rows = max(self.rows, out.size(0))
            return out

    ours = GPT.from_hf(hf_model(vocab_size=1000, n_positions=64)).train()
    idx = torch.zeros(2 * gpt_loss.CHUNK // 64, 64, dtype=torch.long)
    with Largest() as seen:
        ours(idx, idx)[0].backward()
    assert 0 < seen.rows <= gpt_loss.CHUNK


def second_derivatives(model, loss):
    """The gradient of the squared norm of the gradient of `loss`, of all weights in one row."""
    weights = [weight for _, weight in sorted(model.named_parameters())]
    norm = sum(grad.square().sum() for grad in torch.autograd.grad(loss, weights, create_graph=True))
    found = torch.autograd.grad(norm, weights, materialize_grads=True)
    return torch.cat([grad.sum(-1).flatten() for grad in found if grad.dim() == 1])  # biases and norms


def test_second_derivatives_are_those_of_transformers_or_an_error(hf_model, monkeypatch):
    """Autograd took gradients that are computed by hand for constants, and left out what depends on them."""
    theirs = hf_model()
    theirs.set_attn_implementation("eager")
    ours, idx = GPT.from_hf(theirs).train(), torch.arange(20).reshape(2, 10)
    starts = torch.arange(10).expand(2, -1)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        for chunked, many, documents in (("auto", 4096, None), ("false", 8, None), ("false", 4096, starts)):
            ours.chunked_loss = chunked
            monkeypatch.setattr("finetune.gpt.recompute.MANY_TOKENS", many)
            with pytest.raises(RuntimeError, match="create_graph"):
                second_derivatives(ours, ours(idx, idx, documents)[0])
        loss, _ = ours(idx, idx)
        found = second_derivatives(ours, loss)
    logits = theirs(idx).logits.flatten(0, 1)
    wanted = second_derivatives(theirs, F.cross_entropy(logits, idx.flatten(), reduction="sum"))
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3 * wanted.abs().max().item())


def test_a_loss_without_tokens_has_no_gradient():
    x, weight = torch.zeros(0, 16, requires_grad=True), torch.randn(128, 16, requires_grad=True)
    for _ in range(20):
        held = [torch.randn(128, 16) for _ in range(3)]
        del held  # memory that is not zero
        loss = gpt_loss.chunked_linear_cross_entropy(x, weight, torch.zeros(0, dtype=torch.int64), 101)
        (gradient,) = torch.autograd.grad(loss, weight)
        assert loss == 0 and not gradient.any()
