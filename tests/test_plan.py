"""A plan is what the run then is: counts against real runs, memory against what PyTorch keeps, advice with its
numbers."""

import dataclasses
import json
import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_bins

from finetune import GPT, GPTConfig
from finetune.common import disk_space
from finetune.common.errors import UsageError
from finetune.config.cli import parse
from finetune.config.recipe import Recipe
from finetune.gpt.model import SHAPES
from finetune.gpt.size import num_parameters
from finetune.plan import Options
from finetune.runs import inputs
from finetune.runs.events import read_metrics
from finetune.runtime import device as devices
from finetune.runtime import memory, memory_modes
from finetune.tools.plan import estimate, lr_finder, timing
from finetune.training import setup, step, trainer

RECIPES = Path(__file__).parents[1] / "recipes"


@pytest.fixture(autouse=True)
def offline_with_much_memory(monkeypatch):
    """No network, so that no weights are needed; and as much memory and disk as a large machine has."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(memory, "available_bytes", lambda device: 80_000_000_000)
    monkeypatch.setattr(disk_space, "free_bytes", lambda out_dir: 200_000_000_000)
    monkeypatch.setattr(timing, "ENOUGH", 0.2)
    monkeypatch.setattr(timing, "PROBE_BYTES", 1 << 20)


def bins_of(train, val=36_059, name="mine"):
    """Prepared data of so many tokens."""
    write_bins(Path("data") / name, np.arange(train) % 50256, np.arange(val) % 50256)
    return f"--dataset={name}"


def planned(recipe):
    return estimate.plan(recipe, {})


def fact(out, name):
    return next(line[15:] for line in out.splitlines() if line.startswith(f"{name:<15}"))


def test_a_plan_counts_what_the_run_then_does(tiny, monkeypatch):
    recipe = tiny(
        max_iters=20,
        epochs=2.5,
        warmup_iters=None,
        eval_interval=7,
        save_interval=5,
        always_save_checkpoint=True,
        num_samples=1,
        max_new_tokens=3,
        sample_interval=4,
    )
    plan, saves = planned(recipe), []
    save_state = trainer.save_state
    monkeypatch.setattr(
        trainer,
        "save_state",
        lambda run, state, *args, **more: (saves.append(state.step), save_state(run, state, *args, **more)),
    )
    run, _ = trainer.train(recipe)
    events = read_metrics("out/metrics.jsonl")
    assert plan.schedule == run.schedule
    assert (plan.data.rows["train"], plan.data.rows["val"]) == (run.train.num_rows, run.val.num_rows)
    assert (plan.data.tokens["train"], plan.data.tokens["val"]) == (run.train.num_tokens, run.val.num_tokens)
    assert num_parameters(plan.config) == run.model.num_parameters()
    assert plan.evaluations == sum(event["event"] == "eval" for event in events)
    assert plan.saves == len(saves)
    assert plan.samplings + 1 == sum(event["event"] == "samples" for event in events) > 2
    assert plan.disk_needed >= sum(path.stat().st_size for path in Path("out").rglob("*.safetensors"))


def test_a_resumed_run_is_planned_from_where_it_is(tiny, command):
    trainer.train(tiny(max_iters=9))
    recipe = tiny(init_from="resume", n_layer=None, n_head=None, n_embd=None, max_iters=20)
    plan = planned(recipe)
    before = len(read_metrics("out/metrics.jsonl"))
    run, _ = trainer.train(recipe)
    events = read_metrics("out/metrics.jsonl")[before - 1 :]
    assert (plan.done, plan.remaining) == (9, 11) == (9, sum(event["event"] == "iter" for event in events))
    assert plan.evaluations == sum(event["event"] == "eval" for event in events) and plan.config == run.model.config


@pytest.mark.parametrize("has_targets_at_the_end", [False, True])
def test_isolated_documents_are_packed_as_training_packs_them(has_targets_at_the_end, tiny, capsys):
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        ids = rng.integers(0, 50256, 3000)
        ids[rng.integers(0, 3000, 200)] = 50256
        Path("data/d").mkdir(parents=True, exist_ok=True)
        ids.astype(np.uint16).tofile(f"data/d/{split}.bin")
        mask = ids == 50256
        mask[:-1] |= mask[1:]  # long questions, of which the first blocks have no target, and short answers
        if has_targets_at_the_end:
            mask.astype(np.uint8).tofile(f"data/d/{split}_mask.bin")
    recipe = tiny(dataset="data/d", isolate_documents="true", max_iters=1)
    Path("out").mkdir()
    plan, (run, _) = planned(recipe), trainer.train(recipe)
    assert (plan.data.rows["train"], plan.data.rows["val"]) == (run.train.num_rows, run.val.num_rows)
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("documents are isolated: "))
    targets = sum(int((run.train.batch([row])[1] >= 0).sum()) for row in range(run.train.num_rows))
    share = targets / (run.train.num_rows * 32)
    told = f"{run.train.num_rows:,} blocks hold {targets:,} targets, {share:.1%} of their tokens"
    assert line == f"documents are isolated: {told}"


@pytest.mark.parametrize(
    "size, count",
    [("gpt2", 124_439_808), ("gpt2-medium", 354_823_168), ("gpt2-large", 774_030_080), ("gpt2-xl", 1_557_611_200)],
)
def test_the_four_sizes_are_known_without_a_network(size, count, command):
    code, out, _ = command("plan", f"--init_from={size}", "--tokens=335518", "--quick=true")
    assert code == 0 and fact(out, "model").startswith(f"{size}: {count:,} parameters")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_activations_are_what_pytorch_keeps_for_the_backward_pass(dtype, dropout):
    """The second layer's share of what autograd saves, counted storage by storage."""

    def saved(n_layer):
        network = GPT.from_scratch(
            GPTConfig(block_size=128, vocab_size=64, n_layer=n_layer, n_head=2, n_embd=64, dropout=dropout)
        )
        weights, kept, storages = {p.untyped_storage().data_ptr() for p in network.parameters()}, [], {}

        def pack(tensor):
            kept.append(tensor)
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                storages[storage.data_ptr()] = storage.nbytes()
            return tensor

        idx = torch.zeros(2, 128, dtype=torch.int64)
        with (
            torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
            torch.autocast("cpu", dtype, enabled=dtype != torch.float32),
        ):
            network(idx, idx)
        return sum(storages.values()), network.config

    (more, config), (less, _) = saved(2), saved(1)
    work = memory.Workload(Recipe(batch_size=2, dropout=dropout), config, 128, "cpu", dtype)
    counted = memory.activations_of_layer(work)
    casts = memory.estimate_memory(work).parts["cast weights"] // 2
    assert counted + casts == pytest.approx(more - less, rel=0.005)


def test_the_advice_after_oom_uses_the_same_estimate():
    L, H, C = SHAPES["gpt2-xl"]
    config = GPTConfig(n_layer=L, n_head=H, n_embd=C)
    least = Recipe(batch_size=1, gradient_checkpointing=True)
    needed = memory.estimate_memory(memory.Workload(least, config, 1024)).peak / 1e9
    assert (
        f"estimated {needed:.2f} GB" in memory_modes.oom_advice(config, 1024, Recipe(dataset="x")) and 25 < needed < 40
    )


def test_an_absurd_plan_is_reported(command):
    data = bins_of(301_966)
    code, out, _ = command("plan", RECIPES / "small.yaml", data, "--epochs=none", "--quick=true")
    assert code == 0
    assert (
        "5,000 iterations are 1,085 passes over 301,966 tokens; best validation is expected within the first 5 passes"
        in out
    )
    code, out, _ = command("plan", RECIPES / "small.yaml", data, "--quick=true")
    assert code == 0 and "what stands out" not in out
    assert fact(out, "length") == "24 updates, 5.2 passes over the data; epochs=5 ends it before max_iters=5,000"
    assert fact(out, "learning rate") == "3e-05 after 2 updates of warmup, cosine to 3e-06 at 24"
    _, out, _ = command("plan", RECIPES / "small.yaml", data, "--max_iters=20", "--quick=true")
    cut = "20 updates, 4.3 passes over the data; max_iters=20 ends it before epochs=5, which are 24 updates"
    assert fact(out, "length") == cut


@pytest.mark.parametrize(
    "flag, line",
    [
        (
            "--learning_rate=1e-3",
            (
                r"learning_rate 0.001: for pretrained weights and 301,966 tokens 3e-05 to 5e-05 is usual; higher ones"
                r" forget"
            ),
        ),
        ("--learning_rate=1e-6", r"lower ones hardly move"),
        ("--init_from=gpt2-large", r"gpt2-large for 301,966 tokens: gpt2 is usual \(recipes/small.yaml\)"),
        ("--gradient_accumulation_steps=64", r"524,288 tokens an iteration: 8,192 to 65,536 is usual"),
        ("--max_iters=2", r"2 iterations read 43% of 301,966 tokens; --max_iters=5 reads them once"),
        ("--max_iters=5", r"5 iterations in all leave the optimizer few steps"),
    ],
)
def test_what_stands_out_has_its_numbers(flag, line, command):
    code, out, _ = command("plan", RECIPES / "small.yaml", bins_of(301_966), "--quick=true", flag)
    assert code == 0 and re.search(line, out.split("what stands out:")[1]), out


@pytest.mark.parametrize(
    "name, tokens, length",
    [
        ("small_domain", 500_000, 39),
        ("medium_general", 5_000_000, 763),
        ("large_diverse", 20_000_000, 3000),
        ("style", 301_966, 24),
        ("code", 3_000_000, 458),
    ],
)
def test_each_scenario_makes_sense_for_a_dataset_of_its_size(name, tokens, length, command):
    code, out, _ = command("plan", RECIPES / f"{name}.yaml", bins_of(tokens), "--quick=true")
    assert code == 0 and fact(out, "length").startswith(f"{length:,} updates,")
    stands_out = (
        [line for line in out.split("what stands out:")[-1].splitlines() if line.startswith("- ")]
        if "what stands out" in out
        else []
    )
    assert [line for line in stands_out if "on a CPU" not in line] == []


def test_memory_that_does_not_suffice_ends_with_1_and_a_way_out_that_fits(command, monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda device: 4_000_000_000)
    argv = [RECIPES / "small.yaml", "--tokens=335518", "--device=cpu", "--dtype=bfloat16"]
    code, out, _ = command("plan", *argv)  # not quick: what does not fit is not timed
    assert code == 1 and "time           not measured: it does not fit into memory" in out
    last = out.strip().splitlines()[-1]
    assert last.startswith("NOT ENOUGH MEMORY: IT TAKES ") and "4.00 GB ARE FREE" in last
    code, out, _ = command("plan", *argv, "--quick=true", *re.findall(r"--\w+=\w+", last))
    assert code == 0 and "= 65,536 tokens" in fact(out, "update")
    monkeypatch.setattr(memory, "available_bytes", lambda device: 1_000_000_000)
    code, out, _ = command("plan", *argv, "--quick=true")
    assert code == 1 and "Take a smaller model" in out.strip().splitlines()[-1]


def test_disk_that_does_not_suffice_ends_with_1_where_training_would_refuse(command, monkeypatch, tiny):
    recipe = tiny()
    needed = planned(recipe).disk_needed
    Path("out").mkdir()
    for free, refused in ((needed, False), (needed - 1, True)):
        monkeypatch.setattr(disk_space, "free_bytes", lambda out_dir, free=free: free)
        flags = [
            f"--{name}={getattr(recipe, name)}"
            for name in "init_from dataset out_dir n_layer n_head n_embd block_size batch_size".split()
        ]
        code, out, _ = command("plan", *flags, "--gradient_accumulation_steps=3", "--quick=true")
        assert (code, "NOT ENOUGH DISK SPACE: CHECKPOINTS TAKE" in out) == (int(refused), refused)
        if refused:
            with pytest.raises(UsageError, match="GB are free"):
                setup.setup_run(recipe, devices.start(recipe), print)


def test_every_key_is_explained_with_where_it_is_from(command):
    Path("r.yaml").write_text("dataset: mine\nepochs: 3\nwarmup_iters: 100\n")
    code, out, _ = command("plan", "r.yaml", bins_of(301_966), "--seed=7", "--quick=true", "--explain=true")
    assert code == 0
    rows = {
        line.split()[0]: re.split(r"  +", line)
        for line in out.splitlines()
        if line.split() and line.split()[0] in Recipe.__dataclass_fields__
    }
    assert {name: row[3] for name, row in rows.items()} == {
        field.name: field.metadata["help"] for field in dataclasses.fields(Recipe)
    }
    assert (
        rows["epochs"][1:3] == ["3", "r.yaml:2"]
        and rows["seed"][1:3] == ["7", "--seed"]
        and rows["beta1"][1:3] == ["0.9", "default"]
    )
    assert rows["warmup_iters"][1:3] == ["1", "derived"]  # 100 are for a longer run
    assert rows["min_lr"][1:3] == ["3e-06", "derived"] and rows["block_size"][1:3] == ["1024", "derived"]


def test_a_suggested_recipe_is_one_that_nothing_can_be_said_against(command):
    code, out, _ = command(
        "plan", RECIPES / "xl.yaml", bins_of(301_966), "--suggest=true", "--to=new.yaml", "--quick=true", "--device=cpu"
    )
    assert code == 0 and out.strip().endswith("wrote new.yaml")
    text = Path("new.yaml").read_text()
    assert text.startswith("# finetune train new.yaml\n")
    assert all("  # " in line for line in text.splitlines() if line and not line.startswith("#"))
    recipe, _ = parse(Recipe, ["new.yaml"], "")
    assert (recipe.init_from, recipe.dataset, recipe.device, recipe.learning_rate, recipe.epochs) == (
        "gpt2",
        "mine",
        "cpu",
        5e-5,
        5,
    )
    assert recipe.batch_size * recipe.gradient_accumulation_steps == 8  # 8,192 tokens an update, 37 updates a pass
    code, out, _ = command("plan", "new.yaml", "--quick=true")
    assert code == 0 and "what stands out" not in out
    code, out, _ = command("plan", "new.yaml", "--quick=true", "--suggest=true", "--num_processes=2")
    assert code == 0 and "\n# finetune train FILE.yaml --num_processes=2\n" in out
    assert (
        command("plan", RECIPES / "xl.yaml", "--tokens=9999", "--suggest=true", "--to=new.yaml")[0] == 2
    )  # is there already


@pytest.mark.parametrize("init_from", [["--init_from=scratch", "--n_layer=1", "--n_head=1", "--n_embd=8"], []])
def test_a_suggested_recipe_makes_the_epochs_that_were_asked_for(command, init_from):
    flags = ["--epochs=400", "--suggest=true", "--to=new.yaml", "--quick=true", "--device=cpu"]
    assert command("plan", bins_of(301_966), *init_from, *flags)[0] == 0
    code, out, _ = command("plan", "new.yaml", "--quick=true", "--json=true")
    plan = json.loads(out)
    assert code == 0 and plan["recipe"]["epochs"] == 400 and plan["passes"] >= 400


@pytest.mark.parametrize(
    ("flags", "sizes"),
    [
        (["--batch_size=2"], (2, 4)),
        (["--gradient_accumulation_steps=4"], (2, 4)),
        (["--batch_size=3", "--gradient_accumulation_steps=6"], (3, 6)),
    ],
)
def test_what_is_suggested_goes_with_sizes_that_were_asked_for(command, flags, sizes):
    code, _, error = command(
        "plan", "--tokens=301966", *flags, "--suggest=true", "--to=new.yaml", "--quick=true", "--device=cpu"
    )
    assert code == 0, error
    recipe, _ = parse(Recipe, ["new.yaml"], "")
    assert recipe.dataset == "data/mine"
    text, tokens = Path("new.yaml").read_text(), sizes[0] * sizes[1] * 1024
    assert (recipe.batch_size, recipe.gradient_accumulation_steps) == sizes
    updates = -(-266 * 5 // (sizes[0] * sizes[1]))  # of 266 blocks five times
    assert f"{updates:,} updates;" in text and ("accumulation" in flags[-1] or f"{tokens:,} tokens an update" in text)


def test_a_text_is_prepared_for_a_plan_as_for_training_or_not_at_all(tiny):
    trainer.train(tiny(max_iters=1))
    choice = lambda **values: inputs.tokenizer_choice(Recipe(dataset="t.txt", **values), shape_only=True)  # noqa: E731
    assert choice(init_from="scratch") == choice(init_from="gpt2-xl") == "gpt2"
    assert choice(init_from="someone/model", tokenizer="char") == "char"
    assert choice(init_from="out").kind == "char"
    with pytest.raises(UsageError, match="finetune prepare t.txt --tokenizer=someone/model"):
        choice(init_from="someone/model")


def test_a_resumed_run_from_scratch_is_judged_as_one(tiny, command):
    trainer.train(tiny(max_iters=4, learning_rate=1e-3, warmup_iters=0))
    code, out, error = command(
        "plan", "out/recipe.yaml", "--init_from=resume", "--max_iters=30", "--quick=true", "--explain=true"
    )
    assert code == 0, error
    assert "pretrained weights" not in out and "forget" not in out
    assert re.search(r"^val_fraction +0.1 ", out, re.M)


def test_a_small_network_from_scratch_is_suggested_many_small_updates(command):
    flags = [
        "--init_from=scratch",
        "--n_layer=4",
        "--n_head=4",
        "--n_embd=128",
        "--block_size=64",
        "--tokenizer=char",
        "--device=cpu",
    ]
    code, out, _ = command("plan", "--tokens=1115394", *flags, "--suggest=true", "--to=new.yaml", "--quick=true")
    recipe, _ = parse(Recipe, ["new.yaml", "--dataset=d"], "")
    assert code == 0 and (recipe.n_embd, recipe.learning_rate, recipe.tokenizer) == (128, 1e-3, "char")
    assert recipe.batch_size * recipe.gradient_accumulation_steps * 64 == 4096
    assert recipe.epochs == 16  # 20 tokens for each of 814,336 parameters, of 1,003,855


def test_what_is_suggested_fits_the_machine(command, monkeypatch, tmp_path):
    for free, model, checkpointing in (
        (80e9, "gpt2-large", False),
        (15e9, "gpt2-large", True),
        (8e9, "gpt2-medium", False),
        (3e9, "gpt2", False),
    ):
        monkeypatch.setattr(memory, "available_bytes", lambda device, free=int(free): free)
        monkeypatch.setattr(devices, "choose_device", lambda choice: torch.device("cuda"))
        monkeypatch.setattr(devices, "best_dtype", lambda choice, device: torch.bfloat16)
        monkeypatch.setattr("finetune.tools.plan.report.device_name", lambda plan: "a card")
        to = f"{free / 1e9:g}.yaml"
        command("plan", RECIPES / "small.yaml", "--tokens=20000000", "--suggest=true", f"--to={to}", "--quick=true")
        recipe, _ = parse(Recipe, [to], "")
        assert (recipe.init_from, recipe.gradient_checkpointing) == (model, checkpointing)
        assert command("plan", to, "--tokens=20000000", "--quick=true")[0] == 0


def test_a_batch_size_that_is_found_is_shared_by_blocks(command):
    flags = [
        "--init_from=scratch",
        "--tokens=335518",
        "--num_processes=4",
        "--quick=true",
        "--gradient_accumulation_steps=2",
    ]
    assert command("plan", *flags, "--batch_size=4")[0] == 2
    assert command("plan", *flags, "--batch_size=auto")[0] == 0


def test_communication_is_that_of_a_ring(command):
    code, out, _ = command("plan", RECIPES / "small.yaml", "--tokens=335518", "--num_processes=4", "--quick=true")
    assert code == 0
    assert 2 * 3 / 4 * 4 * 124_439_808 == 746_638_848  # each sends 2 (N - 1) / N of its float32 gradients
    assert fact(out, "communication").startswith("each of 4 processes sends 0.75 GB an update")


def test_time_is_measured_and_scaled(tiny):
    """A plan's seconds an update are those that training then logs, as far as a busy machine allows."""
    recipe = tiny(
        n_layer=2, n_embd=64, block_size=64, batch_size=8, max_iters=30, dropout=0.0, num_samples=1, max_new_tokens=20
    )
    for out_dir in ("out", "second", "third", "fourth", "fifth"):  # others may come or go between the two
        plan = timing.timed(planned(recipe), time.perf_counter())
        trainer.train(dataclasses.replace(recipe, out_dir=out_dir))
        updates = [event["seconds"] for event in read_metrics(f"{out_dir}/metrics.jsonl") if event["event"] == "iter"]
        parts = plan.seconds()
        assert min(parts.values()) > 0 and plan.timing.rows == 8
        ratio = parts["updates"] / plan.remaining / sorted(updates)[15]
        if 0.4 < ratio < 2.5:
            return
    raise AssertionError(ratio)


def test_a_large_micro_batch_on_a_slow_device_is_timed_by_a_part_of_it(tiny, monkeypatch):
    monkeypatch.setattr(timing, "PATIENCE", 0.0)
    whole = dataclasses.replace(planned(tiny(batch_size=8)), program=1)
    plan = timing.timed(whole, time.perf_counter())
    assert plan.timing.rows == 1 and plan.timing.peak is None and plan.timing.micro_batch > 0


def test_find_lr_judges_as_a_run_of_that_rate_ends(tiny, monkeypatch, capsys):
    recipe = tiny(dropout=0.0, learning_rate=1e-3, max_iters=8)
    made, update = [], step.update
    plan = timing.timed(planned(recipe), time.perf_counter())
    with monkeypatch.context() as patched:
        patched.setattr(step, "update", lambda run, *args: (made.append(1), update(run, *args))[1])
        tried = lr_finder.find_lr(plan, 1.0)
    assert "trying at most 5 learning rates, 8 updates each" in capsys.readouterr().out
    assert tried.updates == 8 and len(made) == 8 * len(tried.results) <= 40
    _, state = trainer.train(dataclasses.replace(recipe, learning_rate=max(tried.results), out_dir="again"))
    assert tried.results[max(tried.results)] == pytest.approx(state.evaluations[-1]["val_loss"], abs=1e-5)
    assert tried.best == min(tried.results, key=tried.results.get) > 1e-3  # so far from trained, faster is better
    assert f"suggestion: --learning_rate={tried.best:g}; it is at the edge" in tried.report()


def test_find_lr_compares_by_the_blocks_with_targets(tiny):
    ids = np.random.default_rng(0).integers(0, 50256, 3000)
    write_bins(Path("data/d"), ids, ids)
    (np.arange(3000) < 2000).astype(np.uint8).tofile("data/d/train_mask.bin")
    (np.arange(3000) // 10 == 17).astype(np.uint8).tofile("data/d/val_mask.bin")  # in the sixth of 94 blocks alone
    recipe = tiny(dataset="data/d", isolate_documents="false", max_iters=1)
    times = dict.fromkeys((field.name for field in dataclasses.fields(estimate.Timing)), 1e-4)
    plan = dataclasses.replace(planned(recipe), timing=estimate.Timing(**times))
    tried = lr_finder.find_lr(plan, 1.0)
    assert all(5 < loss < 20 for loss in (tried.before, *tried.results.values()))


def test_find_lr_says_how_long_it_would_take_where_that_is_too_long(tiny):
    plan = timing.timed(planned(tiny()), time.perf_counter())
    slow = dataclasses.replace(plan, timing=dataclasses.replace(plan.timing, update=1000.0, start=0.0, row=0.0))
    with pytest.raises(
        UsageError, match=r"5 runs of 5 updates take 6h 5\dm here; allow that with --trial_minutes=41\d"
    ):
        lr_finder.find_lr(slow, 5.0)


def test_a_rate_as_good_as_the_best_stays():
    assert lr_finder.Trial({1e-4: 2.003, 3e-4: 2.0, 3e-5: 2.1}, 3.0, 10, given=1e-4).best == 1e-4
    assert lr_finder.Trial({1e-4: 2.03, 3e-4: 2.0, 9e-4: float("inf")}, 3.0, 10, given=1e-4).best == 3e-4


SCRATCH = ["--init_from=scratch", "--n_layer=1", "--n_head=1", "--n_embd=8", "--block_size=8"]


@pytest.mark.parametrize(
    "argv, line",
    [
        ([], "nothing to train on"),
        (["--dataset=gone"], "dataset gone: no such directory or text file"),
        (["--tokens=1"], "--tokens: must be at least 2"),
        (["--tokens=3000"], "--tokens: 300 of 3,000 tokens would be val, and a block of 1,024 needs 1,025"),
        (["--tokens=99999", "--block_size=2048"], "more than the 1,024 positions of gpt2"),
        (["--tokens=99999", "--num_processes=3"], "gradient_accumulation_steps=8 cannot be shared among 3"),
        (["--tokens=99999", "--to=x.yaml"], "--to: has no effect without --suggest=true"),
        (["--tokens=99999", "--suggest=true", "--to=x.txt"], "its name ends with .yaml"),
        (["--tokens=99999", "--suggest=true", "--to=gone/x.yaml"], "there is no directory"),
        (["--tokens=99999", "--find_lr=true"], "remove tokens"),
        (["--dataset=x", "--find_lr=true", "--quick=true"], "remove quick"),
        (["--dataset=x", "--find_lr=true", "--learning_rate=0"], "--find_lr: tries rates around learning_rate"),
        (["--tokens=99999", "--trial_minutes=3"], "--trial_minutes: has no effect without --find_lr=true"),
        (["--tokens=99999", "--eval_only=true"], "nothing to plan in a single evaluation"),
        (["--tokens=99999", "--init_from=nobody/nothing"], "nobody/nothing: no such directory, not in the local cache"),
        (["--tokens=99999", "--init_from=./gone"], "./gone: no such file or directory"),
        (["--tokens=99999", "--init_from=resume"], "out: nothing to resume"),
        (["--tokens=99999", "--quik=true"], "Did you mean '--quick'?"),
    ],
)
def test_bad_input_is_one_line(argv, line, command):
    code, out, error = command("plan", *argv)
    assert (code, out) == (2, "") and line in error and len(error.strip().splitlines()) == 1
    assert not list(Path(".").iterdir())


def test_a_bad_dataset_is_refused_as_training_refuses_it(command):
    write_bins(Path("data/d"), np.arange(40) + 60_000, np.arange(40))
    errors = [command(verb, "--dataset=d", *SCRATCH, "--out_dir=out")[2] for verb in ("plan", "train")]
    assert errors[0] == errors[1] and "token 60,000 at offset 0" in errors[0]


def test_options_are_the_recipe_and_more():
    assert {field.name for field in dataclasses.fields(Recipe)} < {field.name for field in dataclasses.fields(Options)}


@pytest.mark.slow
def test_time_and_memory_of_a_real_run(tmp_path):
    """The benchmark behind docs/planning.md, on a toy in place of the larger shape."""
    import subprocess
    import sys

    script = [
        sys.executable,
        Path(__file__).parents[1] / "scripts" / "bench.py",
        "plan",
        "--size=tiny",
        "--rounds=1",
        f"--out={tmp_path}",
    ]
    done = subprocess.run(script, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (result,) = (json.loads(path.read_text()) for path in tmp_path.glob("*.json"))
    assert [row["what"] for row in result["rows"]] == ["wall time", "peak memory"] * 2
    assert all(
        abs(float(row["off by"].strip("%"))) < (50 if row["what"] == "wall time" else 25) for row in result["rows"]
    )
