"""Decoding with reordered weights gives the ids of decoding without, and leaves the model as it was."""

import copy
import threading

import pytest
import torch

from finetune import GPT, GPTConfig
from finetune.gpt import reordered

TOKENS = 24
HAS_BFLOAT16 = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
IN_BFLOAT16 = pytest.mark.skipif(not HAS_BFLOAT16, reason="oneDNN has no products in bfloat16 on this processor")


def network(dtype=torch.float32, **shape):
    shape = {"block_size": 64, "vocab_size": 1000, "n_layer": 2, "n_head": 2, "n_embd": 64} | shape
    return GPT.from_scratch(GPTConfig(**shape)).to(dtype)


def written(model, rows=4, tokens=TOKENS, **how):
    idx = torch.arange(3).expand(rows, -1)
    how = {"temperature": 0.8, "eos_token_id": None, "generator": torch.Generator().manual_seed(1)} | how
    return model.generate(idx, tokens, **how)


def plain(monkeypatch, *args, **how):
    with monkeypatch.context() as without:
        without.setattr(reordered, "copied_bytes", lambda *_: 0)
        return written(*args, **how)


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=IN_BFLOAT16)], ids=str)
@pytest.mark.parametrize("how", [{}, {"top_k": 200}, {"temperature": 0}, {"repetition_penalty": 1.3}], ids=str)
def test_ids_are_the_same(monkeypatch, dtype, how):
    model = network(dtype)
    assert reordered.copied_bytes(model, 4, TOKENS) > 0
    assert torch.equal(written(model, **how), plain(monkeypatch, model, **how))
    # past block_size, where a step computes the whole window
    assert torch.equal(written(model, tokens=80, **how), plain(monkeypatch, model, tokens=80, **how))


@torch.no_grad()
@pytest.mark.parametrize("dtype, error", [(torch.float32, 1e-5), pytest.param(torch.bfloat16, 0, marks=IN_BFLOAT16)])
def test_products_are_those_of_plain_weights(dtype, error):
    """Beside a copy without: the same bits in bfloat16, but for the last ones in float32."""
    model = network(dtype, n_embd=192, n_head=3, vocab_size=5000)
    other, idx = copy.deepcopy(model), torch.arange(40).view(8, 5)
    with reordered.reordered_weights(model, 8, TOKENS):
        assert "forward" in model.h[1].mlp.c_fc.__dict__
        torch.testing.assert_close(model(idx), other(idx), rtol=error, atol=error)


def test_the_model_stays_as_it_was(monkeypatch):
    model = network()
    before, weights = copy.deepcopy(model.__dict__), {n: p.clone() for n, p in model.named_parameters()}

    def fail(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        written(model, callback=fail)
    for module in model.modules():
        assert not {"forward", "head"} & module.__dict__.keys()
    assert model.__dict__.keys() == before.keys()
    with torch.no_grad():  # new weights are reordered anew
        model.h[0].mlp.c_fc.weight.mul_(-2)
    assert torch.equal(written(model), plain(monkeypatch, model))
    model.h[0].mlp.c_fc.weight.data.div_(-2)
    assert all(torch.equal(weights[n], p) for n, p in model.named_parameters())


def test_an_error_while_weights_are_reordered_leaves_no_copy():
    """A copy that stayed would hide the weights that training changes."""
    model = network()
    model.h[1].mlp.c_fc.double()  # which oneDNN does not take
    with pytest.raises(RuntimeError):
        written(model)
    assert not any({"forward", "head"} & module.__dict__.keys() for module in model.modules())


def test_two_threads_share_a_model():
    model, got = network(), []
    expected = written(model)
    threads = [threading.Thread(target=lambda: got.append(written(model))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 4 and all(torch.equal(ids, expected) for ids in got)


def test_where_nothing_is_reordered(monkeypatch):
    model = network()
    assert reordered.copied_bytes(model, 1, TOKENS) == reordered.copied_bytes(model, 4, reordered.MIN_STEPS - 1) == 0
    assert reordered.copied_bytes(network(torch.float16), 4, TOKENS) == 0
    assert (reordered.copied_bytes(network(torch.bfloat16), 4, TOKENS) > 0) == HAS_BFLOAT16
    with torch.device("meta"):
        assert reordered.copied_bytes(GPT(GPTConfig(n_layer=1)), 4, TOKENS) == 0
    with torch.autocast("cpu", torch.bfloat16):  # which casts the weights of plain products
        assert reordered.copied_bytes(model, 4, TOKENS) == 0 and written(model).shape == (4, 3 + TOKENS)
    needed = reordered.copied_bytes(model, 4, TOKENS)
    monkeypatch.setattr(reordered, "available_bytes", lambda _: reordered.SPARE * needed)
    assert reordered.copied_bytes(model, 4, TOKENS) == 0
    monkeypatch.setattr(reordered, "available_bytes", lambda _: reordered.SPARE * needed + 1)
    assert reordered.copied_bytes(model, 4, TOKENS) == needed
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert reordered.copied_bytes(model, 4, TOKENS) == 0


def test_adapters_are_beside_packed_weights(monkeypatch):
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(r=4, target_modules=["c_attn", "c_fc", "c_proj"], init_lora_weights=False)
    model = inject_adapter_in_model(config, network())
    assert torch.equal(written(model), plain(monkeypatch, model))
    assert not torch.equal(written(model), written(network()))
