"""An update makes nobody wait, leaves no trace when it went wrong, and is the same whatever it is cut into."""

import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from finetune import GPTConfig
from finetune.common.errors import Failure
from finetune.runs.events import read_metrics
from finetune.runtime import device as machines
from finetune.runtime import memory
from finetune.training import micro_batch, setup, step, trainer


def events(out_dir, kind):
    return [event for event in read_metrics(f"{out_dir}/metrics.jsonl") if event["event"] == kind]


@pytest.fixture
def looked_at_late(monkeypatch):
    """Updates are looked at one late, as on a GPU."""
    monkeypatch.setattr(machines.Device, "late", 1)


def assembled(recipe):
    Path(recipe.out_dir).mkdir(exist_ok=True)
    return setup.setup_run(recipe, machines.start(recipe), print)


def test_an_update_never_waits_for_the_device(tiny):
    class Waits(TorchDispatchMode):
        seen = ()

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if "_local_scalar_dense" in str(function) or "nonzero" in str(function):
                self.seen += (str(function),)
            return function(*args, **(kwargs or {}))

    run = assembled(tiny(dropout=0.1))
    step.update(run, 0, 1e-3).read()
    with Waits() as waits:
        outcome = step.update(run, 1, 1e-3)
    assert not waits.seen
    loss, grad_norm, signals = outcome.read()
    assert loss > 0 and grad_norm > 0 and signals == [0, 0, 0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_update_with_a_bad_gradient_changes_nothing(tiny, monkeypatch, bad):
    run = assembled(tiny())
    step.update(run, 0, 1e-3)
    before = {name: parameter.clone() for name, parameter in run.network.named_parameters()}
    moments = [{key: value.clone() for key, value in state.items()} for state in run.optimizer.state.values()]
    backward = step._backward

    def spoiled(run, iteration):
        loss = backward(run, iteration)
        run.network.ln_f.bias.grad[3] = bad
        return loss

    with monkeypatch.context() as patch:
        patch.setattr(step, "_backward", spoiled)
        loss, grad_norm, _ = step.update(run, 1, 1e-3).read()
    assert not torch.isfinite(torch.tensor(grad_norm)) and loss > 0
    assert all(torch.equal(before[name], parameter) for name, parameter in run.network.named_parameters())
    for was, state in zip(moments, run.optimizer.state.values()):
        assert all(torch.equal(was[key], state[key]) for key in was)
    step.update(run, 1, 1e-3)
    assert not torch.equal(before["wte.weight"], run.network.wte.weight)


def test_looking_late_changes_nothing(tiny, looked_at_late, monkeypatch):
    late = trainer.train(tiny("late"))
    monkeypatch.setattr(machines.Device, "late", 0)
    at_once = trainer.train(tiny("at_once"))
    told = ("iter", "loss", "lr", "grad_norm")
    one, other = ([[event[key] for key in told] for event in events(name, "iter")] for name in ("late", "at_once"))
    assert one == other and len(one) == 20
    assert late.evaluations == at_once.evaluations and late.best == at_once.best


def test_looking_late_still_finds_bad_numbers_and_signals(tiny, looked_at_late, monkeypatch):
    backward, done = step._backward, []

    def harmed(run, iteration):
        loss = backward(run, iteration)
        if iteration == 9 and not done:
            done.append(True)
            run.network.ln_f.bias.grad[0] = float("nan")
        if iteration == 15:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss

    monkeypatch.setattr(step, "_backward", harmed)
    with pytest.raises(Failure) as stopped:
        trainer.train(tiny(save_interval=7))
    assert stopped.value.code == 143
    (rollback,) = events("out", "rollback")
    assert (rollback["step"], rollback["reached"]) == (7, 9)
    (stop,) = events("out", "stop")
    told = [event["iter"] for event in events("out", "iter")]
    assert told == list(range(stop["step"])) and 16 <= stop["step"] <= 17  # everything that was begun was looked at
    monkeypatch.setattr(step, "_backward", backward)
    assert trainer.train(tiny(save_interval=7, init_from="resume")).iteration == 20


def test_batch_size_auto_changes_how_an_update_is_cut_and_nothing_else(tiny):
    plain = trainer.train(tiny("plain", dropout=0.0, max_iters=5))
    auto = trainer.train(tiny(dropout=0.0, max_iters=5, auto_batch_size=True))
    assert (plain.recipe.batch_size, plain.recipe.gradient_accumulation_steps) == (2, 3)
    assert (auto.recipe.batch_size, auto.recipe.gradient_accumulation_steps) == (6, 1)
    for one, other in zip(events("plain", "iter"), events("out", "iter"), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-5)


class FakeGpu:
    type = "cuda"


def test_processes_that_see_different_memory_cut_alike(tiny, monkeypatch):
    run = assembled(tiny(batch_size=8, gradient_accumulation_steps=6))
    run.machine.accelerator.gather = lambda tensor: torch.tensor([tensor.item(), 12 * 32])
    micro_batch.choose_batch_size(run, SimpleNamespace(print=print, record=lambda *args, **values: None))
    assert (run.recipe.batch_size, run.recipe.gradient_accumulation_steps) == (12, 4)


def test_an_optimizer_that_is_not_fused_skips_bad_numbers_too(tiny, monkeypatch):
    from finetune.training import optimizer

    plain = optimizer.adamw
    monkeypatch.setattr(
        optimizer, "adamw", lambda network, recipe: torch.optim.AdamW(plain(network, recipe).param_groups, fused=False)
    )
    run = assembled(tiny())
    run.optimizer.defaults["fused"] = False
    backward = step._backward
    before = run.network.wte.weight.clone()
    monkeypatch.setattr(
        step, "_backward", lambda run, iteration: backward(run, iteration) * float("nan" if iteration == 0 else 1)
    )
    step.update(run, 0, 1e-3)
    assert torch.equal(before, run.network.wte.weight)
    step.update(run, 1, 1e-3)
    assert not torch.equal(before, run.network.wte.weight)


@pytest.mark.parametrize(
    "device, processes, limit, chosen",
    [
        ("cpu", 1, 0, (24, 1)),
        ("cuda", 1, 24, (24, 1)),
        ("cuda", 1, 7, (6, 4)),
        ("cuda", 2, 24, (12, 2)),
        ("cuda", 3, 5, (4, 6)),
        ("cuda", 1, 0, (1, 24)),
    ],
)
def test_batch_size_auto_takes_the_largest_that_fits(monkeypatch, device, processes, limit, chosen):
    from finetune.config.recipe import Recipe

    monkeypatch.setattr(micro_batch, "fits_in_memory", lambda run, size: size <= limit)
    accelerator = SimpleNamespace(num_processes=processes, gather=lambda tensor: tensor)
    machine = SimpleNamespace(
        device=torch.device("cpu") if device == "cpu" else FakeGpu(), accelerator=accelerator, dtype=torch.bfloat16
    )
    config = GPTConfig(n_embd=16, n_head=1, n_layer=1)
    run = SimpleNamespace(
        iteration=0,
        recipe=Recipe(batch_size=4, gradient_accumulation_steps=6),
        machine=machine,
        train=SimpleNamespace(block_size=32),
        network=SimpleNamespace(config=config),
    )
    monkeypatch.setattr(memory.torch, "tensor", lambda values, device: torch.as_tensor(values))
    micro_batch.choose_batch_size(run, SimpleNamespace(print=print, record=lambda *args, **values: None))
    assert (run.recipe.batch_size, run.recipe.gradient_accumulation_steps) == chosen


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # PyTorch's own
def test_compiled_parts_are_the_network(hf_model, monkeypatch):
    """By block and whole: same names, same loss, same gradients. The compiler itself is PyTorch's and not waited for
    here."""
    from finetune import GPT

    idx = torch.randint(0, 101, (2, 16), generator=torch.Generator().manual_seed(0))
    compiler = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda *args, **options: compiler(*args, **options, backend="eager", fullgraph=True)
    )
    plain = GPT.from_hf(hf_model()).train()
    expected, _ = plain(idx, idx)
    expected.backward()
    for whole in (True, False):
        network = GPT.from_hf(hf_model()).train()
        setup._compile(network, whole)
        assert list(network.state_dict()) == list(plain.state_dict())
        loss, _ = network(idx, idx)
        loss.backward()
        torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
        for one, other in zip(network.parameters(), plain.parameters()):
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-6)
