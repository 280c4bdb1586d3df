"""An update makes nobody wait, leaves no trace when it went wrong, and is the same whatever it is cut into."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from finetune.common.errors import Failure
from finetune.gpt import GPTConfig, loss
from finetune.runs.events import read_metrics
from finetune.runs.logger import RunLogger
from finetune.runtime import device as devices
from finetune.runtime.compiler import compile_model
from finetune.training import micro_batch, setup, step, trainer
from finetune.training.state import Hooks


def events(out_dir, kind):
    return [event for event in read_metrics(f"{out_dir}/metrics.jsonl") if event["event"] == kind]


@pytest.fixture
def looked_at_late(monkeypatch):
    """Updates are looked at one late, as on a GPU."""
    monkeypatch.setattr(devices.Device, "max_in_flight", 1)


def set_up(recipe, hooks=None):
    Path(recipe.out_dir).mkdir(exist_ok=True)
    return setup.setup_run(recipe, devices.start(recipe), print, hooks)


def update(run, state, number):
    """Make the update of this number at a rate of 1e-3."""
    state.step = number
    return step.update(run, state, 1e-3)


def test_an_update_never_waits_for_the_device(tiny):
    class Waits(TorchDispatchMode):
        seen = ()

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if "_local_scalar_dense" in str(function) or "nonzero" in str(function):
                self.seen += (str(function),)
            return function(*args, **(kwargs or {}))

    run, state = set_up(tiny(dropout=0.1))
    update(run, state, 0).read()
    with Waits() as waits:
        result = update(run, state, 1)
    assert not waits.seen
    loss, grad_norm, signals = result.read()
    assert loss > 0 and grad_norm > 0 and not any(signals)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_update_with_a_bad_gradient_changes_nothing(tiny, bad):
    def spoil(run, state):
        if state.step == 1:
            run.model.ln_f.bias.grad[3] = bad

    run, state = set_up(tiny(), Hooks(after_backward=spoil))
    update(run, state, 0)
    before = {name: parameter.clone() for name, parameter in run.model.named_parameters()}
    moments = [{key: value.clone() for key, value in values.items()} for values in run.optimizer.state.values()]
    loss, grad_norm, _ = update(run, state, 1).read()
    assert not torch.isfinite(torch.tensor(grad_norm)) and loss > 0
    assert all(torch.equal(before[name], parameter) for name, parameter in run.model.named_parameters())
    for was, values in zip(moments, run.optimizer.state.values()):
        assert all(torch.equal(was[key], values[key]) for key in was)
    update(run, state, 2)
    assert not torch.equal(before["wte.weight"], run.model.wte.weight)


def test_looking_late_changes_nothing(tiny, looked_at_late, monkeypatch):
    _, late = trainer.train(tiny("late"))
    monkeypatch.setattr(devices.Device, "max_in_flight", 0)
    _, at_once = trainer.train(tiny("at_once"))
    told = ("iter", "loss", "lr", "grad_norm")
    one, other = ([[event[key] for key in told] for event in events(name, "iter")] for name in ("late", "at_once"))
    assert one == other and len(one) == 20
    assert late.evaluations == at_once.evaluations and late.best == at_once.best


def test_looking_late_still_finds_bad_numbers_and_signals(tiny, looked_at_late):
    done = []

    def harm(run, state):
        if state.step == 9 and not done:
            done.append(True)
            run.model.ln_f.bias.grad[0] = float("nan")
        if state.step == 15:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Failure) as stopped:
        trainer.train(tiny(save_interval=7), hooks=Hooks(after_backward=harm))
    assert stopped.value.code == 143
    (rollback,) = events("out", "rollback")
    assert (rollback["step"], rollback["reached"]) == (7, 9)
    (stop,) = events("out", "stop")
    told = [event["iter"] for event in events("out", "iter")]
    assert told == list(range(stop["step"])) and 16 <= stop["step"] <= 17  # everything that was begun was looked at
    _, state = trainer.train(tiny(save_interval=7, init_from="resume"))
    assert state.step == 20


def test_batch_size_auto_changes_how_an_update_is_cut_and_nothing_else(tiny):
    _, plain = trainer.train(tiny("plain", dropout=0.0, max_iters=5))
    auto = {"batch_size": "auto", "gradient_accumulation_steps": 6}
    setup, found = trainer.train(tiny(dropout=0.0, max_iters=5, **auto))
    assert (plain.micro_batch.batch_size, plain.micro_batch.accumulation) == (2, 3)
    assert (found.micro_batch.batch_size, found.micro_batch.accumulation) == (6, 1)
    assert setup.recipe.batch_size == "auto"
    for one, other in zip(events("plain", "iter"), events("out", "iter"), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-5)


def test_processes_that_see_different_memory_cut_alike(tiny):
    run, state = set_up(tiny(batch_size="auto", gradient_accumulation_steps=48))
    run.device.accelerator.gather = lambda tensor: torch.tensor([tensor.item(), 12 * 32])
    micro_batch.choose_batch_size(run, state, RunLogger("out", write=False))
    assert (state.micro_batch.batch_size, state.micro_batch.accumulation) == (12, 4)


def test_a_cpu_is_not_tried_to_its_limit(tiny, monkeypatch):
    """It would swap, and report no error."""
    monkeypatch.setattr(micro_batch, "fits_in_memory", lambda run, size: False)
    run, state = set_up(tiny(batch_size="auto", gradient_accumulation_steps=24))
    micro_batch.choose_batch_size(run, state, RunLogger("out", write=False))
    assert (state.micro_batch.batch_size, state.micro_batch.accumulation) == (24, 1)


def test_an_optimizer_that_is_not_fused_skips_bad_numbers_too(tiny, monkeypatch):
    from finetune.training import optimizer

    def unfused(model, recipe):
        return optimizer.AdamW(optimizer.adamw(model, recipe).param_groups, fused=False)

    def spoil(run, state):
        if state.step == 0:
            run.model.ln_f.bias.grad[0] = float("nan")

    monkeypatch.setattr(setup, "adamw", unfused)
    run, state = set_up(tiny(), Hooks(after_backward=spoil))
    run.optimizer.defaults["fused"] = False
    before = run.model.wte.weight.clone()
    update(run, state, 0)
    assert torch.equal(before, run.model.wte.weight)
    update(run, state, 1)
    assert not torch.equal(before, run.model.wte.weight)


@pytest.mark.parametrize(
    "processes, limit, chosen", [(1, 24, 24), (1, 7, 6), (2, 24, 12), (3, 5, 4), (1, 0, 1), (3, 24, 8)]
)
def test_batch_size_auto_takes_the_largest_that_fits(processes, limit, chosen):
    """Of an update of 24 blocks."""
    assert micro_batch.largest_that_fits(24, processes, 2048, lambda size: size <= limit) == chosen


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_no_batch_size_that_is_found_needs_chunks_or_64_bit_indices(device):
    """With GPT-2's vocabulary; twice as many tokens of a GPU would."""
    logits = micro_batch.MOST_TOKENS[device] * GPTConfig().padded_vocab_size
    assert logits < 2**31 and not loss.is_chunked("auto", device, logits)
    assert loss.is_chunked("auto", device, 2**31)


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
        compile_model(network, whole, torch.device("cpu"))
        assert list(network.state_dict()) == list(plain.state_dict())
        loss, _ = network(idx, idx)
        loss.backward()
        torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
        for one, other in zip(network.parameters(), plain.parameters()):
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-6)


class OfNumpy1(int):
    """As the uint64 of numpy 1, which has no common type with an int."""

    def __rshift__(self, other):
        raise TypeError("ufunc 'right_shift' not supported for the input types")


def test_seeds_are_the_same_with_numpy_1(tiny, monkeypatch):
    real = np.random.SeedSequence

    def of_numpy_1(entropy):
        seeds = real(entropy)
        states = lambda *args: np.array([OfNumpy1(state) for state in seeds.generate_state(*args)], object)  # noqa: E731
        return type("SeedSequence", (), {"generate_state": staticmethod(states)})

    losses = []
    for out_dir in ("new", "old"):
        recipe = tiny(out_dir=out_dir, dropout=0.2, max_iters=3)
        trainer.train(recipe)
        losses.append([event["loss"] for event in events(out_dir, "iter")])
        monkeypatch.setattr(np.random, "SeedSequence", of_numpy_1)
    assert losses[0] == losses[1] and len(losses[0]) == 3
