"""A run learns, tells the truth about it, and leaves what it promises."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from finetune import GPT
from finetune.common.errors import Failure, UsageError
from finetune.common.lock import lock
from finetune.config.cli import parse
from finetune.config.recipe import Recipe
from finetune.data.tokenizer import from_directory, prompt_ids
from finetune.gpt.sampling import draw_samples
from finetune.runs.events import read_metrics
from finetune.runtime import device as devices
from finetune.training.state import Hooks
from finetune.training.trainer import Clock, train


def events(out_dir, kind):
    return [event for event in read_metrics(Path(out_dir) / "metrics.jsonl") if event["event"] == kind]


def data_of(out_dir, split):
    directory = next(Path("data").iterdir())
    return np.fromfile(directory / f"{split}.bin", dtype="<u2").astype(np.int64)


def independent_loss(directory, ids, block_size):
    """Mean nats per token by transformers, block after block, one at a time."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory).eval()
    total = 0.0
    with torch.no_grad():
        for first in range(0, len(ids) - 1, block_size):
            block = torch.from_numpy(ids[first : first + block_size + 1])
            logits = model(block[None, :-1]).logits[0].double()
            total += torch.nn.functional.cross_entropy(logits, block[1:], reduction="sum").item()
    return total / (len(ids) - 1)


def test_a_run_leaves_what_it_promises(tiny_run, pictures):
    out = Path(tiny_run("out", "--eval_interval=5"))
    assert {path.name for path in out.iterdir()} >= {"recipe.yaml", "metrics.jsonl", "best", "last", "loss.png"}
    best = {path.name for path in (out / "best").iterdir()}
    assert best >= {
        "config.json",
        "model.safetensors",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "README.md",
    }
    assert [event["step"] for event in events(out, "eval")] == [0, 5, 10]
    assert [event["iter"] for event in events(out, "iter")] == list(range(10))  # exactly max_iters updates
    losses = [event["val_loss"] for event in events(out, "eval")]
    assert losses[-1] < losses[0]
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert not list(out.glob(".tmp*"))


def test_the_console_speaks_as_the_guide_does(command, corpus):
    import re

    code, out, _ = command(
        "train",
        "--init_from=scratch",
        f"--dataset={corpus()}",
        "--tokenizer=char",
        "--n_layer=1",
        "--n_head=1",
        "--n_embd=16",
        "--block_size=16",
        "--batch_size=2",
        "--gradient_accumulation_steps=1",
        "--max_iters=3",
        "--log_interval=1",
        "--num_samples=2",
        "--max_new_tokens=20",
        "--start=Abc",
    )
    assert code == 0
    assert re.search(r"^iter 2: loss \d\.\d{4}, time \d+\.\d\dms, mfu \d+\.\d\d%, [\d,]+ tok/s, \d+s left$", out, re.M)
    assert re.search(r"^step 3: train loss \d\.\d{4}, val loss \d\.\d{4}$", out, re.M)
    assert re.search(r"^saving checkpoint to out$", out, re.M)
    assert re.search(r"^number of parameters: 0\.\d\dM$", out, re.M)
    assert out.count("---------------\nAbc") == 2


def test_the_printed_validation_loss_is_an_independent_sum_over_val_bin(tiny_run):
    tiny_run("out", "--eval_interval=10")
    best = events("out", "best")[-1]
    assert best["val_loss"] == pytest.approx(independent_loss("out/best", data_of("out", "val"), 32), abs=1e-4)
    facts = json.loads(Path("out/best/finetune.json").read_text())
    assert (facts["val_loss"], facts["step"]) == (best["val_loss"], best["step"])


def test_validation_loss_is_the_same_for_every_batch_size(tiny_run, command, corpus):
    tiny_run("out")
    losses = []
    for batch_size in (1, 3, 64):
        flags = (
            f"--dataset={corpus()} --init_from=out --dtype=float32 --eval_only=true --batch_size={batch_size}"
            " --out_dir=other".split()
        )
        code, out, error = command("train", *flags)
        assert code == 0, error
        losses.append(float(out.split("val loss ")[1].split()[0]))
    assert max(losses) - min(losses) <= 1e-4
    assert not Path("other").exists()  # eval_only writes nothing


def test_eight_by_one_equals_two_by_four(tiny_run):
    """Accumulation changes nothing: the same rows give the same updates."""
    plain = ["--max_iters=5", "--epochs=100", "--grad_clip=0.5"]
    tiny_run("a", *plain, "--batch_size=8", "--gradient_accumulation_steps=1")
    tiny_run("b", *plain, "--batch_size=2", "--gradient_accumulation_steps=4")
    for one, other in zip(events("a", "iter"), events("b", "iter"), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-5)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)
    a, b = (GPT.from_pretrained(out).state_dict() for out in "ab")
    assert (
        max((a[name] - b[name]).abs().max().item() for name in a) <= 1e-4
    )  # Adam divides rounding by itself where gradients vanish


def test_gradients_of_eight_by_one_equal_two_by_four(corpus):
    """The same on the level of one update, where Adam cannot blow up rounding."""
    from finetune.config.recipe import Recipe
    from finetune.runtime import device
    from finetune.training import setup
    from finetune.training.state import Hooks
    from finetune.training.step import update

    gradients = []
    for batch_size, steps in ((8, 1), (2, 4)):
        recipe = Recipe(
            dataset=corpus(),
            init_from="scratch",
            tokenizer="char",
            n_layer=2,
            n_head=2,
            n_embd=32,
            block_size=32,
            dtype="float32",
            batch_size=batch_size,
            gradient_accumulation_steps=steps,
            grad_clip=0.0,
        )
        Path("out").mkdir(exist_ok=True)
        seen = {}

        def keep(setup, state, seen=seen):
            seen.update({name: p.grad.clone() for name, p in setup.model.named_parameters()})

        made = setup.setup_run(recipe, device.start(recipe), print, Hooks(after_backward=keep))
        update(*made, 1e-3)
        gradients.append(seen)
    for name in gradients[0]:
        torch.testing.assert_close(gradients[0][name], gradients[1][name], rtol=1e-5, atol=1e-6)


def test_one_update_is_the_textbook_update(tiny_run, corpus):
    """Rows, loss, clipping, schedule and AdamW against a plain loop over transformers' model and torch's own
    optimizer."""
    from finetune.data import dataset as datasets
    from finetune.data.sampler import BlockSampler

    flags = [
        "--max_iters=4",
        "--eval_interval=4",
        "--warmup_iters=0",
        "--decay_lr=false",
        "--grad_clip=0.1",
        "--always_save_checkpoint=true",
    ]
    tiny_run("out", *flags)
    theirs = GPT.from_pretrained("out/iter_000000").to_hf().train()
    for module in theirs.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    dataset = datasets.load(next(Path("data").iterdir()))
    ids = data_of("out", "train")
    rows = -(-(len(ids) - 1) // 32)
    order = BlockSampler(rows, 8, 1337)
    groups = [
        {"params": [p for p in theirs.parameters() if p.dim() >= 2], "weight_decay": 0.1},
        {"params": [p for p in theirs.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95))
    for iteration in range(4):
        total, count = 0.0, 0
        for row in order.rows(iteration):
            block = torch.from_numpy(ids[row * 32 : row * 32 + 33])
            logits = theirs(block[None, :-1]).logits[0]
            total = total + torch.nn.functional.cross_entropy(logits, block[1:], reduction="sum")
            count += len(block) - 1
        loss = total / count
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.1)
        logged = events("out", "iter")[iteration]
        assert logged["loss"] == pytest.approx(loss.item(), abs=2e-4)
        assert logged["grad_norm"] == pytest.approx(norm.item(), rel=5e-3)
        optimizer.step()
        optimizer.zero_grad()
    assert dataset.num_tokens("train") == len(ids)


def test_a_finetune_starts_lower_than_scratch_and_improves(tiny_run, command, corpus):
    from finetune.data.prepare import prepare

    tiny_run("first", "--max_iters=150", "--eval_interval=150")
    other = corpus("other.txt", words=1600, seed=7)
    prepare([other], "data/second", "first")  # the run's own characters
    flags = (
        "--dataset=second --max_iters=30 --eval_interval=30 --learning_rate=3e-3 --batch_size=4"
        " --gradient_accumulation_steps=2 --dtype=float32".split()
    )
    code, _, error = command("train", "--init_from=first", "--out_dir=second", *flags)
    assert code == 0, error
    code, _, error = command(
        "train",
        "--init_from=scratch",
        "--out_dir=scratch",
        "--n_layer=2",
        "--n_head=2",
        "--n_embd=32",
        "--block_size=32",
        *flags,
    )
    assert code == 0, error
    finetuned, scratch = ([event["val_loss"] for event in events(out, "eval")] for out in ("second", "scratch"))
    assert finetuned[0] < scratch[0] - 0.3
    assert finetuned[-1] < finetuned[0]
    assert "first" in Path("second/best/README.md").read_text()


def test_finetuning_a_hugging_face_directory_with_its_own_tokenizer(hf_model, bpe_directory, command, corpus):
    """The guide's road: a text file, a pretrained model with BPE, a finetuned model that pipeline() loads."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

    path = corpus()
    directory = bpe_directory(Path(path).read_text(), "model", vocab_size=330)
    vocab = json.loads((directory / "tokenizer.json").read_text())["model"]["vocab"]
    theirs = hf_model(vocab_size=len(vocab), bos_token_id=0, eos_token_id=0)
    theirs.save_pretrained(directory)
    code, out, error = command(
        "train",
        "--init_from=model",
        f"--dataset={path}",
        "--out_dir=out",
        "--batch_size=4",
        "--gradient_accumulation_steps=1",
        "--max_iters=20",
        "--learning_rate=1e-3",
        "--num_samples=1",
        "--max_new_tokens=5",
        "--start=Ab",
        "--dtype=float32",
    )
    assert code == 0, error
    tokenizer = AutoTokenizer.from_pretrained("out/best")
    model = AutoModelForCausalLM.from_pretrained("out/best")
    assert tokenizer("Abc de")["input_ids"] == AutoTokenizer.from_pretrained(directory)("Abc de")["input_ids"]
    assert model.config.n_positions == 32
    text = pipeline("text-generation", "out/best")("Abc")[0]["generated_text"]
    assert text.startswith("Abc") and len(text) > 3
    assert events("out", "eval")[-1]["val_loss"] < events("out", "eval")[0]["val_loss"]


def test_the_best_model_of_a_character_run_is_a_hugging_face_model(tiny_run):
    from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

    tiny_run("out")
    tokenizer, model = AutoTokenizer.from_pretrained("out/best"), AutoModelForCausalLM.from_pretrained("out/best")
    ours = GPT.from_pretrained("out").eval()
    ids = torch.tensor([tokenizer("Abcd efg")["input_ids"]])
    torch.testing.assert_close(ours(ids), model(ids).logits, rtol=1e-5, atol=1e-5)
    assert pipeline("text-generation", "out/best")("Abc")[0]["generated_text"].startswith("Abc")


def test_nanogpts_own_bins_train(command, corpus):
    """Bins and a meta.pkl made by the guide's own code, and bins alone as its BPE script leaves them."""
    import pickle

    from conftest import write_bins

    text = Path(corpus()).read_text()
    chars = sorted(set(text))
    ids = [chars.index(char) for char in text]
    directory = write_bins(Path("data/nano"), ids[: int(len(ids) * 0.9)], ids[int(len(ids) * 0.9) :])
    content = {
        "vocab_size": len(chars),
        "itos": dict(enumerate(chars)),
        "stoi": {char: i for i, char in enumerate(chars)},
    }
    (directory / "meta.pkl").write_bytes(pickle.dumps(content))
    flags = (
        "--init_from=scratch --dataset=nano --n_layer=1 --n_head=1 --n_embd=16 --block_size=16 --batch_size=4"
        " --gradient_accumulation_steps=1 --max_iters=5 --eval_iters=1 --num_samples=1"
    )
    code, out, error = command("train", *flags.split())
    assert code == 0, error
    assert GPT.from_pretrained("out").config.vocab_size == len(chars)
    (directory / "meta.pkl").unlink()
    code, out, error = command("train", *flags.split(), "--out_dir=bare", "--n_embd=4")
    assert code == 0, error
    assert GPT.from_pretrained("bare").config.vocab_size == 50257
    assert "no samples: these bins came without their tokenizer" in out


def test_cropping_the_context_of_a_pretrained_model(tiny_run, command, corpus):
    tiny_run("first")
    code, _, error = command(
        "train",
        "--init_from=first",
        f"--dataset={corpus()}",
        "--block_size=16",
        "--max_iters=2",
        "--out_dir=short",
        "--batch_size=2",
    )
    assert code == 0, error
    assert GPT.from_pretrained("short").config.block_size == 16


def test_best_keeps_the_best_and_last_the_newest(tiny_run):
    """With a learning rate that ruins the model, best/ stays at the start."""
    tiny_run("out", "--learning_rate=3", "--grad_clip=0", "--eval_interval=5", "--warmup_iters=0")
    losses = {event["step"]: event["val_loss"] for event in events("out", "eval")}
    best = json.loads(Path("out/best/finetune.json").read_text())
    assert best["step"] == min(losses, key=losses.get) == 0
    assert [path.name for path in sorted(Path("out/last").iterdir())] == ["step-00000005", "step-00000010"]


def test_always_save_checkpoint_keeps_every_evaluations_model(tiny_run):
    tiny_run("out", "--eval_interval=5", "--always_save_checkpoint=true")
    assert sorted(path.name for path in Path("out").glob("iter_*")) == ["iter_000000", "iter_000005", "iter_000010"]
    assert json.loads(Path("out/iter_000005/finetune.json").read_text())["step"] == 5


def test_a_resumed_run_equals_the_uninterrupted_one(tiny_run):
    flags = ["--eval_interval=4", "--dropout=0.2", "--warmup_iters=2"]
    tiny_run("whole", *flags, "--max_iters=12", "--lr_decay_iters=12")
    tiny_run("parts", *flags, "--max_iters=8", "--lr_decay_iters=12")
    tiny_run("parts", *flags, "--max_iters=12", "--lr_decay_iters=12", "--init_from=resume")
    for name in ("model", "optimizer"):
        whole, parts = (Path(f"{out}/last/step-00000012/{name}.safetensors").read_bytes() for out in ("whole", "parts"))
        assert whole == parts, name
    whole, parts = ([(e["iter"], e["loss"], e["lr"]) for e in events(out, "iter")] for out in ("whole", "parts"))
    assert whole == parts


def test_a_resumed_run_saves_at_the_same_steps(tiny, monkeypatch):
    from finetune.runs import checkpoints

    save, steps = checkpoints.save_state, []
    monkeypatch.setattr(checkpoints, "save_state", lambda *args: (steps.append(args[-1]["iteration"]), save(*args)))
    train(tiny(max_iters=8, save_interval=4))
    train(tiny(max_iters=16, save_interval=4, init_from="resume"))
    assert steps == [4, 8, 12, 16]


def test_samples_while_training_are_those_of_the_model_at_that_step(tiny, capsys):
    """Drawn again from the model that was kept there; training is the same without them, and a resumed run does not
    tell of them twice."""
    sampling = {"num_samples": 2, "max_new_tokens": 12, "sample_interval": 4}
    shape = {"eval_interval": 4, "always_save_checkpoint": True, "lr_decay_iters": 12, "warmup_iters": 1}
    train(tiny("plain", max_iters=12, **shape))
    train(tiny(max_iters=9, **shape, **sampling))
    train(tiny(max_iters=12, **shape, **sampling, init_from="resume", n_layer=None, n_head=None, n_embd=None))
    said, drawn = capsys.readouterr().out, [(event["step"], event["texts"]) for event in events("out", "samples")]
    assert [step for step, _ in drawn if step in (4, 8)] == [4, 8]
    tokenizer = from_directory(Path("out/best"))
    prompt = prompt_ids(tokenizer, "\n")
    for step in (4, 8):
        model = GPT.from_pretrained(f"out/iter_{step:06d}")
        texts = [
            "\n" + sample.text
            for sample in draw_samples(
                model, tokenizer, prompt, num_samples=2, max_new_tokens=12, temperature=0.8, top_k=200
            )
        ]
        assert (step, texts) in drawn and f"---------------\n{texts[0]}" in said
    for name in ("model", "optimizer"):
        assert (
            Path(f"plain/last/step-00000012/{name}.safetensors").read_bytes()
            == Path(f"out/last/step-00000012/{name}.safetensors").read_bytes()
        )


def test_samples_after_a_rollback_are_of_the_updates_that_stay(tiny):
    sampling = {"num_samples": 1, "max_new_tokens": 3, "sample_interval": 2, "save_interval": 4, "max_iters": 9}
    bad = []

    def after_backward(setup, state):
        if state.step == 7 and not bad:
            bad.append(setup.model.ln_f.bias.grad.fill_(math.nan))

    train(tiny(**sampling), hooks=Hooks(after_backward=after_backward))
    assert [event["step"] for event in events("out", "rollback")] == [4]
    assert [event["step"] for event in events("out", "samples")][:4] == [2, 4, 6, 8]  # then those of best/


def test_a_new_learning_rate_has_its_own_rollbacks(tiny):
    bad = [3, 3, 6]  # two harm the first rate, one the second

    def after_backward(setup, state):
        if bad and state.step == bad[0]:
            setup.model.ln_f.bias.grad.fill_(math.nan)
            bad.pop(0)

    hooks = Hooks(after_backward=after_backward)
    with pytest.raises(Failure, match="after 1 rollbacks.* A lower learning_rate") as problem:
        train(tiny(max_iters=9, max_rollbacks=1), hooks=hooks)
    assert problem.value.code == 3
    _, state = train(tiny(max_iters=9, max_rollbacks=1, learning_rate=5e-3, init_from="resume"), hooks=hooks)
    assert (state.step, state.rollbacks, state.lr_scale) == (9, 1, 0.5)


def test_the_peak_is_that_of_the_best_product_and_says_how_sure_it_is(monkeypatch):
    seconds = iter([0.4, 0.1, 0.3, 0.2, 0.3, *[0.2] * 1000])
    ends = iter(())

    def clock():
        nonlocal ends
        if (now := next(ends, None)) is None:
            now, ends = 0.0, iter([next(seconds)])
        return now

    devices.peak_flops.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(time, "perf_counter", clock)
        peak, source = devices.peak_flops(torch.device("cpu"), torch.float32)
    devices.peak_flops.cache_clear()
    assert peak == pytest.approx(2 * 1024**3 / 0.1)
    assert f"{peak / 1e12:.2f} TFLOP/s, the best of " in source and "longer" in source


@pytest.mark.parametrize(
    "name, card",
    [
        ("NVIDIA H200", "H200"),
        ("NVIDIA GH200 480GB", "GH200"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H200 NVL", "H200 NVL"),
        ("NVIDIA A10G", "A10G"),
        ("NVIDIA H200 MIG 1g.18gb", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("NVIDIA GeForce GTX 1080", None),
    ],
)
def test_the_data_sheet_is_that_of_the_card(name, card):
    """Where it is None a product is timed: of a slice of a card, and of one that is not known."""
    assert devices.card_of(name) == card


def test_time_left_counts_the_evaluations_that_are_left(tiny):
    """By listing the steps at which the loop evaluates: at multiples of eval_interval and at the end."""
    for length, interval in ((20, 7), (21, 7), (5, 100)):
        out_dir = f"out{length}"
        setup, _ = train(tiny(out_dir, max_iters=length, eval_interval=interval, save_interval=100))
        assert [e["step"] for e in events(out_dir, "eval")] == sorted({*range(0, length + 1, interval), length})
        clock = Clock(setup, 0, 1e12)
        clock.evaluation_seconds = 1000.0
        for done in range(1, length + 1):
            clock.restart(done - 1)
            eta = clock.lap(done).eta
            assert eta // 1000 == sum(e["step"] >= done for e in events(out_dir, "eval"))


def test_a_run_that_is_done_says_so_when_it_is_resumed(tiny_run, command):
    tiny_run("out", "--max_iters=2")
    code, out, _ = command("train", "out/recipe.yaml", "--init_from=resume")
    assert code == 0 and "this run is done: it has made its 2 updates; a larger max_iters" in out


@pytest.mark.parametrize(("rate", "noticed"), [(3e-5, True), (3e-4, False)])
def test_a_rate_for_pretrained_weights_is_noticed_from_scratch(tiny, capsys, rate, noticed):
    train(tiny(max_iters=1, learning_rate=rate))
    assert (f"learning_rate {rate:g} suits pretrained weights" in capsys.readouterr().out) == noticed


def test_resuming_as_another_run_is_refused_with_the_difference(tiny_run, command, corpus):
    tiny_run("out")
    code, _, error = command(
        "train",
        "--init_from=resume",
        f"--dataset={corpus()}",
        "--tokenizer=char",
        "--seed=1",
        "--n_layer=3",
        "--batch_size=5",
        "--block_size=32",
    )
    assert code == 2
    assert (
        "seed: 1337 in the run, 1 now" in error
        and "n_layer: 2 in the run, 3 now" in error
        and "rows per iteration" in error
    )


def test_a_prompt_from_a_file_is_kept_with_the_run(tiny_run, command):
    """A recipe must not name a file to read, so the run's own has the text."""
    text = 'Once: "é" # 東\n\ttwo'
    Path("prompt.txt").write_text(text, encoding="utf-8")
    corpus = Path("text.txt")
    corpus.write_text(3 * text + "abcdefgh " * 200, encoding="utf-8")
    tiny_run("out", "--start=FILE:prompt.txt", "--num_samples=1", "--max_new_tokens=2", text=corpus)
    Path("prompt.txt").unlink()
    recipe, _ = parse(Recipe, ["out/recipe.yaml"], "")
    assert recipe.start == text
    for again in (["out/recipe.yaml"], ["--out_dir=out"]):
        code, out, err = command("train", *again, "--init_from=resume", "--max_iters=12", "--overwrite=false")
        assert code == 0 and "two" in out, err
    code, _, err = command("train", "out/recipe.yaml", "--out_dir=other", f"--start={'x' * 50_000}")
    assert code == 2 and err.startswith("start: 50,000 bytes; a run keeps its prompt"), err


def test_the_resolved_recipe_runs_again(tiny_run, command):
    tiny_run("out")
    code, _, error = command("train", "out/recipe.yaml", "--out_dir=again")
    assert code == 0, error
    first, second = ([event["loss"] for event in events(out, "iter")] for out in ("out", "again"))
    assert first == second


def test_overwrite_removes_what_a_run_wrote_and_nothing_else(tiny_run):
    tiny_run("out", "--always_save_checkpoint=true")
    Path("out/notes.txt").write_text("mine")
    tiny_run("out", "--overwrite=true", "--max_iters=2")
    assert Path("out/notes.txt").read_text() == "mine"
    assert not list(Path("out").glob("iter_*"))
    assert [event["iter"] for event in events("out", "iter")] == [0, 1]


def test_wandb_that_is_absent_or_offline_never_stops_a_run(tiny_run, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    tiny_run("out", "--wandb_log=true", "--max_iters=2")
    assert list(Path("out/wandb").glob("offline-run-*"))
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    tiny_run("other", "--wandb_log=true", "--max_iters=2")
    assert not Path("other/wandb").exists()


def test_two_runs_cannot_share_an_out_dir(tiny_run, command, corpus):
    Path("out").mkdir()
    code = (
        "from finetune.common.lock import lock\nimport sys\nwith lock('out'):\n print('locked', flush=True)\n"
        " sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "locked\n"
        status, _, error = command("train", "--init_from=scratch", f"--dataset={corpus()}", "--tokenizer=char")
        other.stdin.close()
    assert status == 2 and f"is in use by process {other.pid}" in error
    tiny_run("out", "--max_iters=1")  # the lock went with its process


def is_free(out_dir):
    try:
        with lock(out_dir):
            return True
    except UsageError:
        return False


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_killed_run_frees_its_out_dir_though_its_child_lives():
    code = (
        "import os, time\nfrom finetune.common.lock import lock\nwith lock('out'):\n"
        " child = os.fork() or time.sleep(60)\n print(child, flush=True)\n time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as owner:
        child = int(owner.stdout.readline())
        for _ in range(2):  # a refused run takes nothing from the owner
            with pytest.raises(UsageError, match=f"is in use by process {owner.pid} on "), lock("out"):
                pass
        owner.kill()
        owner.wait()
        until = time.monotonic() + 60  # for the child to get as far as closing what it inherited
        try:
            while not is_free("out"):
                assert time.monotonic() < until
            assert psutil.pid_exists(child)
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_run_without_updates_still_evaluates_and_saves(tiny_run):
    tiny_run("out", "--max_iters=0")
    assert [event["step"] for event in events("out", "eval")] == [0]
    assert Path("out/best/model.safetensors").exists()


def test_a_run_says_that_max_iters_ends_it_before_its_epochs(corpus, command):
    flags = ["--init_from=scratch", f"--dataset={corpus()}", "--tokenizer=char", "--n_layer=1", "--n_head=1"]
    flags += ["--n_embd=16", "--block_size=32", "--batch_size=4", "--gradient_accumulation_steps=1", "--eval_iters=1"]
    code, out, err = command("train", *flags, "--epochs=1", "--max_iters=2", "--out_dir=out")
    assert code == 0, err
    [line] = [line for line in out.splitlines() if line.startswith("2 updates of")]
    blocks = int(line.partition(" blocks")[0].split()[-1])
    assert f"\nmax_iters=2 ends it before epochs=1, which are {math.ceil(blocks / 4)} updates\n" in out
