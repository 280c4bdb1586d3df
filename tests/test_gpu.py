"""What only a CUDA device can show: nobody waits, the same is learned, graphs and compiled parts are the network,
resuming is exact.

pytest -m gpu -n 0 tests/test_gpu.py
"""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from finetune import GPT
from finetune.runs.events import read_metrics
from finetune.runtime import attention_check, compiler
from finetune.runtime import device as devices
from finetune.runtime.unchanged import unchanged
from finetune.training import setup, step, trainer

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
if torch.cuda.is_available():  # older versions of torch read it at the first product, which is not deterministic here
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@pytest.fixture(autouse=True)
def usual_settings():
    """A deterministic run changes torch for those after it."""
    with unchanged():
        yield


@pytest.fixture(autouse=True)
def without_datasets(monkeypatch):
    """Blocks straight from the bin where `datasets` is not installed."""
    from importlib.util import find_spec

    from finetune.data import arrow_cache
    from finetune.data.batches import Blocks

    if not find_spec("datasets"):
        monkeypatch.setattr(
            arrow_cache,
            "open_cache",
            lambda dataset, split, T, contents, isolated: (np.fromfile(dataset.bin(split), dtype=np.uint16), T),
        )
        monkeypatch.setattr(Blocks, "from_arrow", classmethod(lambda cls, opened, tokens: cls.from_tokens(*opened)))


def train(recipe):
    """A run that keeps nothing of the one before: accelerate would keep its device."""
    with unchanged():
        return trainer.train(recipe)


def losses(out_dir):
    return [event["loss"] for event in read_metrics(f"{out_dir}/metrics.jsonl") if event["event"] == "iter"]


@pytest.mark.parametrize("optimizer_dtype", ["float32", "bfloat16"])
def test_an_update_never_waits_for_the_device(tiny, optimizer_dtype):
    Path("out").mkdir()
    recipe = tiny(device="cuda", compile="false", dtype="bfloat16", optimizer_dtype=optimizer_dtype)
    run, state = setup.setup_run(recipe, devices.start(recipe), print)
    step.update(run, state, 1e-3).read()
    state.step = 1
    torch.cuda.set_sync_debug_mode("error")
    try:
        outcome = step.update(run, state, 1e-3)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert outcome.read()[0] > 0


@pytest.mark.filterwarnings("default")  # the compiler's own
@pytest.mark.parametrize(
    "dtype, compile, tolerance",
    [("float32", "false", 2e-3), ("bfloat16", "false", 3e-2), ("bfloat16", "true", 3e-2), ("float16", "false", 3e-2)],
)
def test_a_gpu_learns_what_a_cpu_learns(tiny, dtype, compile, tolerance):
    plain = {"dropout": 0.0, "learning_rate": 1e-3}
    train(tiny("cpu", **plain))
    run, _ = train(tiny("gpu", **plain, device="cuda", dtype=dtype, compile=compile))
    assert run.device.torch_device.type == "cuda" and run.device.compile == (compile == "true")
    assert losses("gpu") == pytest.approx(losses("cpu"), abs=tolerance)


def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(tiny):
    settings = {"device": "cuda", "compile": "false", "dtype": "bfloat16", "deterministic": True}
    train(tiny("whole", **settings))
    train(tiny(**settings, max_iters=9, decay_lr=False))
    train(tiny("other", **settings, decay_lr=False))
    train(tiny(**settings, decay_lr=False, init_from="resume"))
    one, other = (
        load_file(sorted(Path(name, "last").glob("step-*"))[-1] / "model.safetensors") for name in ("out", "other")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_replayed_step_is_a_step(hf_model):
    """Greedy text of a CUDA graph against transformers' own on the CPU, past the context too."""
    hf = hf_model()
    idx = torch.randint(0, 100, (3, 5), generator=torch.Generator().manual_seed(0))
    expected = hf.generate(
        idx, attention_mask=torch.ones_like(idx), max_new_tokens=26, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    model = GPT.from_hf(hf).cuda()
    assert torch.equal(model.generate(idx.cuda(), 26, temperature=0).cpu(), expected)
    slid = GPT.from_hf(hf).generate(idx, 40, temperature=0)
    assert torch.equal(model.generate(idx.cuda(), 40, temperature=0).cpu(), slid)


@pytest.mark.filterwarnings("default")  # the compiler's own, such as that about products in float32
@pytest.mark.parametrize("compiled", [False, True])
def test_documents_are_isolated(hf_model, compiled):
    """Loss and gradients of packed documents as on a CPU; compiled, by flex attention, whose heads are at least 16."""
    shape = {"n_positions": 128, "n_embd": 64, "n_head": 4}
    positions = torch.cat([torch.arange(n) for n in (40, 1, 55, 32)])[None].repeat(3, 1)
    idx, targets = torch.randint(101, (2, 3, 128), generator=torch.Generator().manual_seed(0))
    ours, expected = GPT.from_hf(hf_model(**shape)).cuda(), GPT.from_hf(hf_model(**shape))
    said = []
    attention_check.check_isolation(
        ours, devices.Device(OnGPU(), torch.float32, compile=compiled), 128, 0.0, said.append
    )
    assert not said and all(block.attn.use_flex_attention == compiled for block in ours.h)
    if compiled:
        compiler.compile_model(ours, False, OnGPU.device)
    loss = ours(idx.cuda(), targets.cuda(), positions.cuda())[0]
    wanted = expected(idx, targets, positions)[0]
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-4)
    loss.backward()
    wanted.backward()
    torch.testing.assert_close(ours.wte.weight.grad.cpu(), expected.wte.weight.grad, atol=1e-2, rtol=1e-2)


class OnGPU:
    device = torch.device("cuda")


def test_batch_size_auto_goes_down_until_it_fits(tiny):
    """Half a gigabyte does not hold the largest micro-batch that pays, which would be 1,024 blocks of 32 tokens."""
    shape = {"n_embd": 512, "batch_size": "auto", "gradient_accumulation_steps": 4096, "max_iters": 1, "dropout": 0.0}
    recipe = tiny(device="cuda", compile="false", **shape)
    torch.cuda.set_per_process_memory_fraction(2**29 / torch.cuda.get_device_properties(0).total_memory)
    try:
        _, state = train(recipe)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert state.micro_batch.blocks == 4096 and 1 < state.micro_batch.batch_size < 1024


def test_attention_is_a_fused_kernel():
    from torch.profiler import ProfilerActivity, profile

    q = torch.randn(2, 12, 256, 64, device="cuda", dtype=torch.bfloat16)
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        from finetune.gpt import attention

        attention.causal_attention(q, q, q)
        torch.cuda.synchronize()
    names = [event.key.lower() for event in seen.key_averages()]
    assert any("flash" in name or "cudnn" in name for name in names), names
