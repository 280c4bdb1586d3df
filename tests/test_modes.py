"""Modes that need less memory learn the same, or nearly, and memory=auto chooses among them."""

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_trust import events, final

from finetune import GPT, GPTConfig
from finetune.common import disk_space
from finetune.common.errors import UsageError
from finetune.config.recipe import Recipe
from finetune.gpt import lora, loss, size
from finetune.gpt.model import SHAPES
from finetune.runtime import compiler, fsdp, memory, memory_modes
from finetune.runtime import device as devices
from finetune.training import optimizer as optimizers
from finetune.training import setup, trainer
from finetune.training.state import MicroBatch

XL = GPTConfig(n_layer=48, n_head=25, n_embd=1600)


def saved_bytes(network, *inputs):
    """Bytes of the storages that autograd keeps after a forward pass, without those of the network's weights."""
    weights, storages = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}, {}

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in weights:
            storages[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(*inputs)
    return sum(tensor.untyped_storage().nbytes() for tensor in storages.values())


@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_checkpointing_changes_no_bit_of_a_gradient(hf_model, dtype, rank):
    idx, found = torch.arange(48).reshape(2, 24), {}
    for recompute in (False, True):
        model = GPT.from_hf(hf_model()).train()
        model.set_dropout(0.1)
        model.gradient_checkpointing = recompute
        if rank:
            lora.add_adapters(model, Recipe(dataset="x", lora_rank=rank, lora_dropout=0.1))
            for name, parameter in model.named_parameters():
                parameter.data += 0.1 * (".lora_B." in name)  # else A has no gradient
        torch.manual_seed(0)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss, _ = model(idx, idx)
        loss.backward()
        found[recompute] = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
        assert all(gradient.abs().max() > 0 for gradient in found[recompute].values())
    for name, gradient in found[True].items():
        assert torch.equal(gradient, found[False][name]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rank", [0, 8])
def test_activations_that_are_predicted_are_those_that_are_kept(dtype, rank):
    """The second layer's share."""

    def kept(n_layer):
        network = GPT.from_scratch(GPTConfig(block_size=128, vocab_size=64, n_layer=n_layer, n_head=2, n_embd=64))
        if rank:
            lora.add_adapters(network, Recipe(dataset="x", lora_rank=rank))
        adapters = sum(parameter.numel() for name, parameter in network.h[1].named_parameters() if ".lora_" in name)
        idx = torch.zeros(2, 128, dtype=torch.int64)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            return saved_bytes(network.train(), idx, idx), network.config, adapters

    (more, config, adapters), (less, _, _) = kept(3), kept(2)
    counted = memory.activations_of_layer(
        memory.Workload(Recipe(batch_size=2, lora_rank=rank), config, 128, "cpu", dtype)
    )
    casts = dtype.itemsize * (12 * 64 * 64 + adapters) if dtype != torch.float32 else 0
    assert counted + casts == pytest.approx(more - less, rel=0.02)


def test_the_loss_in_chunks_is_the_loss_at_once(tiny, monkeypatch):
    in_chunks, losses, calls = loss.chunked_linear_cross_entropy, [], []
    monkeypatch.setattr(loss, "chunked_linear_cross_entropy", lambda *given: calls.append(1) or in_chunks(*given))
    for chunked in ("false", "true"):
        assert not calls
        state = trainer.train(tiny(chunked, max_iters=3, eval_interval=3, chunked_loss=chunked))[1]
        losses.append(state.best["val_loss"])
    assert calls and losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_rounding_to_bfloat16_is_right_on_average_and_leaves_what_is_bfloat16():
    wide = torch.linspace(-3, 3, 1000).repeat(optimizers.NOISE_SIZE // 1000 + 1)[: optimizers.NOISE_SIZE]
    near = wide.bfloat16()
    below, above = (torch.nextafter(near, torch.tensor(end).bfloat16()) for end in (-8.0, 8.0))
    total, rounds = torch.zeros(len(wide), dtype=torch.float64), 400
    for seed in range(rounds):
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randint(0, 1 << 16, (optimizers.NOISE_SIZE,), generator=generator, dtype=torch.int32)
        rounded = optimizers.round_to_bfloat16(wide.clone(), noise)
        assert torch.equal(rounded.bfloat16().float(), rounded)
        assert torch.equal(optimizers.round_to_bfloat16(rounded.clone(), noise), rounded)
        assert ((rounded >= below.float()) & (rounded <= above.float())).all()
        total += rounded
    step = (above.double() - below.double()) / 2
    mean_error, error_of_nearest = ((total / rounds - wide).abs() / step).mean(), ((near - wide).abs() / step).mean()
    assert mean_error < 1.5 / rounds**0.5 < error_of_nearest


def test_a_step_of_compact_adamw_is_torchs_own_on_widened_moments(monkeypatch):
    """Against torch's AdamW whose moments are rounded by the same noise after every step, whatever parts a parameter is
    cut into."""
    torch.manual_seed(0)
    mine, theirs = torch.nn.Linear(7, 5), torch.nn.Linear(7, 5)
    theirs.load_state_dict(mine.state_dict())
    monkeypatch.setattr(optimizers, "CHUNK", 16)
    optimizer = optimizers.adamw(mine, Recipe(dataset="x", optimizer_dtype="bfloat16", learning_rate=1e-2))
    for parameter in mine.parameters():
        zeros = [torch.zeros_like(parameter, dtype=torch.bfloat16) for _ in range(2)]
        optimizer.state[parameter] = {"step": torch.tensor(0.0), "exp_avg": zeros[0], "exp_avg_sq": zeros[1]}
    groups = [{"params": [theirs.weight], "weight_decay": 0.1}, {"params": [theirs.bias], "weight_decay": 0.0}]
    reference = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), eps=1e-8)
    for step in range(20):
        for one, other in zip(mine.parameters(), theirs.parameters()):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        optimizer.found_inf, optimizer.seed = torch.tensor(float(step == 7)), step  # a step that is not to be made
        before = [state["exp_avg_sq"].clone() for state in optimizer.state.values()]
        optimizer.step()
        if step == 7:
            assert all(torch.equal(state["exp_avg_sq"], old) for state, old in zip(optimizer.state.values(), before))
            continue
        reference.step()
        for one, other in zip(mine.parameters(), theirs.parameters()):
            for name in ("exp_avg", "exp_avg_sq"):
                rounded, exact = optimizer.state[one][name], reference.state[other][name]
                assert rounded.dtype == torch.bfloat16
                # one of the two neighbours
                assert ((rounded.float() - exact).abs() <= exact.abs() * 2**-7 + 1e-30).all()
                exact.copy_(rounded.float())
    for one, other in zip(mine.parameters(), theirs.parameters()):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
        assert optimizer.state[one]["step"] == 19


def test_a_second_moment_in_bfloat16_reaches_what_it_estimates():
    """At beta2=0.999, where rounding to the nearest stands still at once: after 1,500 steps of gradients of size 1 it
    is at 0.83."""
    parameter = torch.nn.Parameter(torch.zeros(4096))
    optimizer = optimizers.CompactAdamW([parameter], lr=0.0, betas=(0.9, 0.999), fused=True)
    optimizer.state[parameter] = {"step": torch.tensor(0.0)} | {
        name: torch.full((4096,), 0.25).bfloat16() for name in ("exp_avg", "exp_avg_sq")
    }
    parameter.grad = torch.ones(4096)
    for step in range(1500):
        optimizer.seed = step
        optimizer.step()
    second = optimizer.state[parameter]["exp_avg_sq"].float()
    expected = 1 - 0.75 * 0.999**1500
    assert second.mean().item() == pytest.approx(expected, abs=0.005) and second.std() < 0.1
    assert torch.tensor(0.25 + 0.001 * 0.75).bfloat16() == 0.25, "to the nearest it would have moved as well"


@pytest.mark.parametrize(
    "beta2", [pytest.param(0.95, marks=pytest.mark.slow), pytest.param(0.999, marks=pytest.mark.heavy)]
)
def test_moments_in_bfloat16_learn_as_well(tiny, beta2):
    """Losses of 200 updates, smoothed, never part by more than 2%."""
    smooth = {}
    for dtype in ("float32", "bfloat16"):
        length = {"max_iters": 200, "eval_interval": 200, "save_interval": 200, "epochs": None}
        trainer.train(tiny(dtype, dropout=0.0, beta2=beta2, optimizer_dtype=dtype, **length))
        losses = torch.tensor([event["loss"] for event in events(dtype, "iter")])
        smooth[dtype] = losses.unfold(0, 20, 20).mean(-1)
    assert len(smooth["float32"]) == 10 and smooth["float32"][-1] < 0.9 * smooth["float32"][0]
    assert not torch.equal(*smooth.values())
    torch.testing.assert_close(smooth["bfloat16"], smooth["float32"], rtol=0.02, atol=0)
    moments = load_file(sorted(Path("bfloat16/last").glob("step-*"))[-1] / "optimizer.safetensors")
    assert {tensor.dtype for tensor in moments.values()} == {torch.bfloat16}


def modes(recipe, free, monkeypatch):
    """What memory=auto chooses for GPT-2 XL where so many bytes are free, and what it says."""
    monkeypatch.setattr(memory, "available_bytes", lambda device: free)
    said = []
    return memory_modes.choose_mode(recipe, XL, 1024, devices.start(recipe), said.append), said


def test_memory_auto_takes_the_first_mode_that_fits(tiny, monkeypatch):
    recipe = tiny(
        init_from="base",
        batch_size=2,
        gradient_accumulation_steps=4,
        memory="auto",
        dropout=0.0,
        n_layer=None,
        n_head=None,
        n_embd=None,
        dtype="bfloat16",
    )
    chosen = [modes(recipe, free * 1e9, monkeypatch) for free in (200, 38, 35, 30)]
    assert [(r.batch_size, r.gradient_checkpointing, r.optimizer_dtype) for r, _ in chosen] == [
        (2, False, "float32"),
        (1, False, "float32"),
        (2, True, "float32"),
        (2, True, "bfloat16"),
    ]
    assert all(r.batch_size * r.gradient_accumulation_steps == 8 and r.memory == "auto" for r, _ in chosen)
    (line,) = chosen[-1][1]
    assert (
        "gradient_checkpointing=true, optimizer_dtype=bfloat16, estimated " in line
        and "changes the result slightly" in line
    )
    assert "recipe unchanged" in chosen[0][1][0]
    with pytest.raises(
        UsageError, match=r"no mode is estimated to fit in 90% of the 12.00 GB free.*--lora_rank=16 needs 13.\d\d GB"
    ):
        modes(recipe, 12e9, monkeypatch)
    adapters = dataclasses.replace(recipe, lora_rank=16)
    assert modes(adapters, 16e9, monkeypatch)[0].lora_rank == 16


def test_memory_auto_is_resumed_as_it_was_chosen(tiny, monkeypatch):
    recipe = tiny(
        "whole",
        max_iters=4,
        memory="auto",
        batch_size=4,
        gradient_accumulation_steps=1,
        dropout=0.0,
        lr_decay_iters=4,
        warmup_iters=0,
    )
    config = GPTConfig(block_size=32, vocab_size=23, n_layer=1, n_head=2, n_embd=16)

    def takes(**changes):
        least = dataclasses.replace(
            recipe, batch_size=1, gradient_accumulation_steps=4, gradient_checkpointing=True, **changes
        )
        return memory.estimate_memory(memory.Workload(least, config, 32, "cpu", torch.float32)).peak

    between = (takes() + takes(optimizer_dtype="bfloat16")) / 2 / memory_modes.MAX_FILL
    monkeypatch.setattr(memory, "available_bytes", lambda device: between)
    trainer.train(recipe)
    trainer.train(dataclasses.replace(recipe, out_dir="out", max_iters=2))
    monkeypatch.setattr(memory, "available_bytes", lambda device: 10**12)
    run, state = trainer.train(
        dataclasses.replace(recipe, out_dir="out", init_from="resume", n_layer=None, n_head=None, n_embd=None)
    )
    assert state.micro_batch == MicroBatch(4, 1, checkpointing=False) and run.optimizer_dtype == "bfloat16"
    assert run.recipe.optimizer_dtype == "float32"
    assert final("whole") == final("out")
    written = Path("whole/recipe.yaml").read_text()
    assert 'optimizer_dtype: "bfloat16"' in written and 'memory: "recipe"' in written


def test_memory_auto_chooses_anew_where_nothing_was_chosen_or_it_cannot_be_kept(tiny, monkeypatch, capsys):
    recipe = tiny(
        max_iters=2, batch_size=4, gradient_accumulation_steps=1, dropout=0.0, lr_decay_iters=9, warmup_iters=0
    )
    resumed = dataclasses.replace(recipe, init_from="resume", n_layer=None, n_head=None, n_embd=None, memory="auto")
    trainer.train(recipe)
    config = GPTConfig(block_size=32, vocab_size=23, n_layer=1, n_head=2, n_embd=16)
    least = dataclasses.replace(recipe, batch_size=1, gradient_accumulation_steps=4, gradient_checkpointing=True)
    takes = [
        memory.estimate_memory(
            memory.Workload(dataclasses.replace(least, optimizer_dtype=dtype), config, 32, "cpu", torch.float32)
        ).peak
        for dtype in ("float32", "bfloat16")
    ]
    monkeypatch.setattr(memory, "available_bytes", lambda device: sum(takes) / 2 / memory_modes.MAX_FILL)
    run, _ = trainer.train(dataclasses.replace(resumed, max_iters=4))  # of a run that had chosen nothing
    assert run.optimizer_dtype == "bfloat16" and ", estimated " in capsys.readouterr().out
    run, _ = trainer.train(dataclasses.replace(resumed, max_iters=6))
    assert run.optimizer_dtype == "bfloat16" and "as it was chosen for this run" in capsys.readouterr().out
    with pytest.raises(UsageError, match="rows per iteration"):
        trainer.train(dataclasses.replace(resumed, max_iters=8, batch_size=8))
    saved = {**dataclasses.asdict(recipe), "memory": "auto"}
    assert memory_modes.previous_choice(resumed, saved, 1).batch_size == 4
    assert memory_modes.previous_choice(resumed, saved, 2) is None  # one step cannot be shared
    sharded = dataclasses.replace(devices.start(resumed), sharding=fsdp.FSDP())
    with pytest.raises(UsageError, match="optimizer_dtype: bfloat16 cannot apply"):
        setup.setup_run(resumed, sharded, print)


def test_a_plan_tells_what_the_modes_take_and_which_one_memory_auto_picks(command, monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda device: 9e9)
    monkeypatch.setattr(disk_space, "free_bytes", lambda out_dir: 200_000_000_000)
    asked = [
        "--init_from=gpt2-medium",
        "--tokens=2000000",
        "--batch_size=1",
        "--device=cpu",
        "--dtype=bfloat16",
        "--quick=true",
    ]
    code, out, error = command("plan", *asked, "--memory=auto")
    assert code == 0, error
    config = GPTConfig(n_layer=24, n_head=16, n_embd=1024)
    recipe = Recipe(dataset="x", init_from="gpt2-medium", batch_size=1)
    for changes, told in (
        ({}, "unchanged"),
        ({"gradient_checkpointing": True}, "--gradient_checkpointing=true"),
        (
            {"gradient_checkpointing": True, "optimizer_dtype": "bfloat16"},
            "--gradient_checkpointing=true --optimizer_dtype=bfloat16",
        ),
        ({"lora_rank": 16}, "--lora_rank=16 (LoRA trains fewer weights, with another result)"),
    ):
        changed = dataclasses.replace(recipe, **changes)
        work = memory.Workload(changed, config, 1024, "cpu", base_rss=memory.BASE_RSS, max_eval_rows=196)
        needed = memory.estimate_memory(work).peak
        assert f"{needed / 1e9:.2f} GB {told}\n" in out, out
    assert "memory=auto: gradient_checkpointing=true, estimated " in out


@pytest.mark.parametrize(
    "flags, told",
    [
        (["--gradient_checkpointing=selective"], "--gradient_checkpointing: expected true or false, got 'selective'"),
        (["--chunked_loss=maybe"], "--chunked_loss: expected one of auto, true, false"),
        (["--optimizer_dtype=float16"], "--optimizer_dtype: expected one of float32, bfloat16"),
        (["--memory=much"], "--memory: expected one of recipe, auto"),
        (["--memory=auto", "--batch_size=auto"], "--memory: auto chooses batch_size too"),
    ],
)
def test_values_that_cannot_be_are_told_in_one_line(command, flags, told):
    code, _, error = command("train", "--dataset=d", *flags)
    assert code == 2 and error.startswith(told) and error.count("\n") == 1


def test_the_table_of_the_docs_is_what_is_predicted():
    page = (Path(__file__).parents[1] / "docs" / "lora.md").read_text()
    full = {"gradient_checkpointing": True}
    for name, (L, H, C) in SHAPES.items():
        config, cells = GPTConfig(n_layer=L, n_head=H, n_embd=C), [f"`{name}`"]
        for mode in ({}, full, full | {"optimizer_dtype": "bfloat16"}, {"lora_rank": 16}, full | {"lora_rank": 16}):
            recipe = Recipe(dataset="x", batch_size=1, **mode)
            work = memory.Workload(recipe, config, 1024, compiled=True, max_eval_rows=1)
            cells.append(f"{memory.estimate_memory(work).peak / 1e9:.1f}")
        adapters = lora.num_adapter_parameters(config, 16)
        assert f"| {' | '.join(cells)} | {adapters:,} ({adapters / size.num_parameters(config):.2%}) |" in page


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the compiler's own
def test_a_compiled_block_keeps_what_is_predicted():
    """Apart from weights as products read them, which it reads anew when it saves, and on a CPU the probabilities of
    attention."""
    config = GPTConfig(block_size=256, vocab_size=64, n_layer=1, n_head=4, n_embd=256)
    x = torch.randn(2, 256, 256, generator=torch.Generator().manual_seed(0)).requires_grad_()
    network = GPT.from_scratch(config).train()
    torch._dynamo.reset()
    compiler.compile_model(network, False, torch.device("cpu"))
    with torch.autocast("cpu", torch.bfloat16):
        kept = saved_bytes(network.h[0], x)
    plain = memory.activations_of_layer(memory.Workload(Recipe(batch_size=2), config, 256, compiled=True))
    casts, probabilities = 2 * 12 * 256 * 256, 2 * 2 * 4 * 256 * 256
    assert kept == pytest.approx(plain + casts + probabilities, rel=0.02)
