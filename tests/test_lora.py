"""Adapters compute what peft and transformers compute, resume to the bit, and are exported merged or alone."""

import dataclasses
import json
import sys
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_trust import events, final, harness

from finetune.common import files
from finetune.common.errors import UsageError
from finetune.config.options import find_problems
from finetune.config.recipe import Recipe
from finetune.gpt import GPT, GPTConfig, convert, lora
from finetune.runtime import device, memory, memory_modes
from finetune.training import recovery, setup, trainer

# a warning of peft about transformers 5
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
ADAPTERS = {"lora_rank": 4, "lora_alpha": 12, "learning_rate": 5e-2}


@pytest.fixture
def adapted(tiny, hf_model, data):
    """A function that makes the recipe of a run that adapts a small model of random, trained-like weights."""
    from finetune.data import dataset

    vocab_size = dataset.load(Path(data)).tokenizer.vocab_size

    def make(out_dir="out", **values):
        if not Path("base").exists():
            hf_model(vocab_size=vocab_size, bos_token_id=None, eos_token_id=None).save_pretrained("base")
        pretrained = {"init_from": "base", "n_layer": None, "n_head": None, "n_embd": None}
        return tiny(out_dir, **{**pretrained, **ADAPTERS, **values})

    return make


def set_up(recipe):
    Path(recipe.out_dir).mkdir(exist_ok=True)
    return setup.setup_run(recipe, device.start(recipe), lambda line: None)


def over_base(directory, **options):
    from peft import PeftModel
    from transformers import GPT2LMHeadModel

    return PeftModel.from_pretrained(GPT2LMHeadModel.from_pretrained("base"), directory, **options).eval()


def test_merged_weights_compute_what_the_adapters_compute_and_peft_loads_them_over_transformers(adapted):
    from transformers import GPT2LMHeadModel

    run, state = trainer.train(adapted(max_iters=8, eval_interval=8, lora_dropout=0.1))
    assert state.best["step"] == 8, "best/ is not of adapters that have learned"
    network, idx = run.model.eval(), torch.arange(24).reshape(2, 12) % 20
    logits, before = network(idx), GPT.from_pretrained("base").eval()(idx)
    assert (logits - before).abs().max() > 0.1
    merged, beside = GPT2LMHeadModel.from_pretrained("out/best").eval(), over_base("out/best/adapter")
    for theirs in (merged(idx).logits, beside(idx).logits, beside.merge_and_unload()(idx).logits):
        torch.testing.assert_close(theirs, logits, rtol=0, atol=1e-5 * max(1.0, logits.abs().max().item()))
    written = {path.name for path in Path("out/best/adapter").iterdir()}
    assert written == {"adapter_config.json", "adapter_model.safetensors"}
    manifest = json.loads(Path("out/best/manifest.json").read_text())["files"]
    assert "adapter/adapter_model.safetensors" in manifest
    card = Path("out/best/README.md").read_text()
    assert "LoRA adapters of rank 4, alpha 12, were trained on c_attn, c_proj and c_fc and merged" in card


def test_only_adapters_are_trained_and_kept_in_states(adapted, capsys):
    run, state = trainer.train(adapted(max_iters=3))
    before = convert.with_padding(GPT.from_pretrained("base").state_dict(), run.model.config)
    trained = {name for name, parameter in run.model.named_parameters() if parameter.requires_grad}
    assert trained and all(".lora_" in name for name in trained)
    assert set(run.optimizer.state) == {parameter for parameter in run.model.parameters() if parameter.requires_grad}
    after = {name: tensor for name, tensor in lora.state(run.model).items() if ".lora_" not in name}
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in after)
    # rank x (in + out) for c_attn (32, 96), c_proj (32, 32), c_fc (32, 128) and c_proj (128, 32) of two layers
    count = 2 * 4 * (128 + 64 + 160 + 160)
    assert sum(parameter.numel() for parameter in run.optimizer.state) == count
    assert lora.num_adapter_parameters(run.model.config, 4) == count
    assert f"LoRA: rank 4, alpha 12: {count:,} trainable parameters" in capsys.readouterr().out
    state = sorted(Path("out/last").glob("step-*"))[-1]
    for name, expected in (("model", count), ("optimizer", 2 * count)):
        assert sum(tensor.numel() for tensor in load_file(state / f"{name}.safetensors").values()) == expected
    held = {name: tuple(tensor.shape) for name, tensor in load_file(state / "model.safetensors").items()}
    assert held == lora.shapes(run.model.config, 4)


def test_adapters_are_counted_with_any_mlp_width():
    config = GPTConfig(block_size=8, vocab_size=64, n_layer=3, n_head=3, n_embd=48, n_inner=100)
    model = GPT.from_scratch(config)
    lora.add_adapters(model, Recipe(dataset="x", lora_rank=5))
    assert sum(tensor.numel() for tensor in lora.trained(model).values()) == lora.num_adapter_parameters(config, 5)


def test_training_is_what_peft_does_over_transformers(adapted):
    """Losses and adapters after four updates against a plain loop over peft's own model of transformers' GPT-2."""
    recipe = adapted(
        max_iters=4,
        dropout=0.0,
        grad_clip=0.0,
        decay_lr=False,
        warmup_iters=0,
        always_save_checkpoint=True,
        learning_rate=1e-2,
    )
    run, state = trainer.train(recipe)
    theirs = over_base("out/iter_000000/adapter", is_trainable=True)
    trained = [parameter for parameter in theirs.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1)
    for iteration in range(4):
        idx, targets, _ = run.train.batch(run.sampler.rows(iteration))
        loss = torch.nn.functional.cross_entropy(theirs(idx).logits.flatten(0, 1), targets.flatten(), ignore_index=-100)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        assert events("out", "iter")[iteration]["loss"] == pytest.approx(loss.item(), abs=2e-4)
    theirs = {name: parameter for name, parameter in theirs.named_parameters() if parameter.requires_grad}
    theirs = {name.split("transformer.")[1].replace(".default", ""): theirs[name] for name in theirs}
    ours = lora.trained(run.model)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():  # Adam's steps of 1e-2 divide rounding errors by themselves
        torch.testing.assert_close(tensor, theirs[name].detach(), rtol=0, atol=2e-3)


@pytest.mark.heavy
def test_killed_and_resumed_on_two_processes_equals_a_whole_run_on_one_to_the_bit(adapted):
    """With dropout of the adapters as well, and moments in bfloat16."""
    recipe = adapted(max_iters=12, gradient_accumulation_steps=2, lora_dropout=0.2, optimizer_dtype="bfloat16")
    trainer.train(dataclasses.replace(recipe, out_dir="whole"))
    outcome = harness(recipe, world=2, kills=2, seed=3, slowest=0.03)
    assert outcome["codes"] == [0, 0] and outcome["acknowledged"] >= 2
    assert outcome["lost"] == 0 and outcome["broken"] == []
    assert final("whole") == final("out")  # weights and moments; evaluations are sums in another order
    moments = load_file(sorted(Path("out/last").glob("step-*"))[-1] / "optimizer.safetensors")
    assert {tensor.dtype for tensor in moments.values()} == {torch.bfloat16}


def test_adapters_are_not_resumed_over_other_weights(adapted, hf_model):
    trainer.train(adapted(max_iters=2))
    resumed = adapted(init_from="resume", max_iters=4)
    wpe = GPT.from_pretrained("base")
    with torch.no_grad():
        wpe.wpe.weight[3, 5] += 1e-3
    wpe.save_pretrained("base")
    differ = r"weights under the adapters \(sha256\): [0-9a-f]{64} in the run, [0-9a-f]{64} now"
    with pytest.raises(UsageError, match=differ):
        trainer.train(resumed)
    Path("base").rename("moved")
    missing = "out: holds adapters and not the weights they were trained over: base: no such directory"
    with pytest.raises(UsageError, match=missing):
        trainer.train(resumed)


def test_a_run_of_adapters_that_begins_again_begins_with_the_same(adapted):
    run, state = set_up(adapted())
    first = {name: tensor.clone() for name, tensor in lora.state(run.model).items()}
    with torch.no_grad():
        for parameter in run.optimizer.state:
            parameter.add_(1.0)
    recovery.reset_to_initial(run, state)
    assert all(torch.equal(tensor, first[name]) for name, tensor in lora.state(run.model).items())


def test_the_seed_decides_where_adapters_begin(adapted):
    name = "h.0.attn.c_attn.lora_A.weight"
    first, again, seeded = (
        lora.state(set_up(adapted(f"out{i}", seed=seed))[0].model)[name] for i, seed in enumerate((1, 1, 3))
    )
    assert torch.equal(first, again) and not torch.allclose(first, seeded, atol=0.1)


def test_another_rank_is_another_run(adapted):
    trainer.train(adapted(max_iters=2))
    for changed in ({"lora_rank": 8}, {"lora_alpha": 8}, {"lora_rank": 0, "lora_alpha": None}):
        with pytest.raises(UsageError, match=r"lora_(rank|alpha): \d+ in the run"):
            trainer.train(adapted(init_from="resume", max_iters=4, **changed))
    with pytest.raises(UsageError, match="lora_rank: 33 is above n_embd=32"):
        trainer.train(adapted("other", lora_rank=33))


def test_an_export_for_peft_is_the_adapters_alone_and_is_read_back_over_the_base(adapted, command):
    run, state = trainer.train(adapted(max_iters=8, eval_interval=8))
    code, out, error = command("export", "--out_dir=out", "--to=mine", "--format=peft")
    assert code == 0 and "logits differ by at most" in out, error
    assert not Path("mine/model.safetensors").exists() and Path("mine/tokenizer.json").is_file()
    for found in (json.loads(Path("mine/verification.json").read_text())[of] for of in ("source", "base")):
        assert found["logits_compared"] and found["max_difference"] < 1e-4 * found["largest_logit"]
    described = json.loads(Path("mine/adapter_config.json").read_text())
    assert (described["base_model_name_or_path"], described["r"], described["fan_in_fan_out"]) == ("./base", 4, True)
    idx = torch.arange(24).reshape(2, 12) % 20
    torch.testing.assert_close(over_base("mine")(idx).logits, run.model.eval()(idx), rtol=0, atol=1e-4)
    card = Path("mine/README.md").read_text()
    assert "library_name: peft" in card
    assert "from_pretrained(AutoModelForCausalLM.from_pretrained('PATH_OF_THE_BASE_MODEL'), 'mine')" in card
    flags = ("--format=peft", "--dtype=bfloat16", "--interpolate=auto")
    code, _, error = command("export", "--out_dir=out", "--to=half", *flags)
    assert code == 2 and "writes only adapters" in error and "in float32" in error


def test_an_export_over_the_best_of_another_run_names_what_can_be_loaded_and_no_stranger(adapted, tiny, command):
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id
    from peft import AutoPeftModelForCausalLM

    trainer.train(tiny("first", n_embd=32, n_head=4, max_iters=2))
    run, state = trainer.train(adapted(init_from="first", max_iters=8, eval_interval=8))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        code, out, error = command("export", "--out_dir=out", "--to=mine", "--format=peft")
    assert code == 0, error
    assert not [warning for warning in told if warning.category is FutureWarning]
    base = json.loads(Path("mine/adapter_config.json").read_text())["base_model_name_or_path"]
    assert Path(base).resolve() == Path("first/best").resolve()
    with pytest.raises(HFValidationError):
        validate_repo_id(base)
    theirs, idx = AutoPeftModelForCausalLM.from_pretrained("mine").eval(), torch.arange(24).reshape(2, 12) % 20
    torch.testing.assert_close(theirs(idx).logits, run.model.eval()(idx), rtol=0, atol=1e-4)
    card = Path("mine/README.md").read_text()
    assert "from_pretrained('PATH_OF_THE_BASE_MODEL')" in card and "from_pretrained('first" not in card
    assert "need the base model they were trained from, first. It is not on the Hub" in card
    code, _, error = command("export", "--out_dir=out", "--to=pushed", "--format=peft", "--push_to_hub=me/mine")
    assert code == 2 and error.count("\n") == 1
    assert "that of this run is not on the Hub; push format=hf instead" in error
    assert not Path("pushed").exists()


def test_an_export_over_a_model_of_the_hub_names_it(adapted, command, monkeypatch):
    """As finetune.json says of a run from the Hub, whose files this test has beside it."""
    trainer.train(adapted(max_iters=8, eval_interval=8))
    facts = json.loads(Path("out/best/finetune.json").read_text())
    Path("out/best/finetune.json").write_text(json.dumps(facts | {"base_model": "someone/base"}))
    path = Path("out/best/finetune.json")
    fresh = {"bytes": path.stat().st_size, "sha256": files.sha256_of(path)}
    manifest = json.loads(Path("out/best/manifest.json").read_text())
    manifest["files"]["finetune.json"] = fresh
    Path("out/best/manifest.json").write_text(json.dumps(manifest))
    monkeypatch.setenv("HF_TOKEN", "")
    code, _, error = command("export", "--out_dir=out", "--to=mine", "--format=peft", "--push_to_hub=me/mine")
    assert code == 4, error  # no token: it came as far as the Hub
    assert json.loads(Path("mine/adapter_config.json").read_text())["base_model_name_or_path"] == "someone/base"
    card = Path("mine/README.md").read_text()
    assert "AutoModelForCausalLM.from_pretrained('someone/base')" in card and "PATH_OF" not in card


def test_an_export_for_peft_needs_adapters_and_their_base(adapted, command, hf_model):
    trainer.train(adapted("plain", max_iters=2, lora_rank=0, lora_alpha=None))
    code, _, error = command("export", "--out_dir=plain", "--to=mine", "--format=peft")
    assert code == 2 and "plain/best has none" in error and not Path("mine").exists()
    trainer.train(adapted(max_iters=8, eval_interval=8))
    other = GPT.from_pretrained("base")
    with torch.no_grad():
        other.wpe.weight.mul_(1.1)
    other.save_pretrained("base")
    code, _, error = command("export", "--out_dir=out", "--to=mine", "--format=peft")
    assert code == 1 and "nothing was exported" in error and not Path("mine").exists()


def test_a_plan_tells_of_adapters(adapted, command):
    recipe = adapted()
    given = [
        f"--{name}={getattr(recipe, name)}"
        for name in ("init_from", "dataset", "lora_rank", "lora_alpha", "learning_rate", "block_size", "batch_size")
    ]
    code, out, error = command("plan", *given, "--compile=false", "--device=cpu", "--num_processes=2", "--quick=true")
    assert code == 0, error
    assert "LoRA           rank 4, alpha 12: 4,096 trainable parameters" in out
    assert "lora_rank=16" not in out
    assert "learning_rate 0.05: for LoRA 0.0001 to 0.0005 is usual; higher ones forget what the model knew" in out
    code, out, _ = command("plan", *given, "--compile=false", "--device=cpu", "--explain=true")
    assert code == 0 and "from three timed micro-batches" in out


def test_without_peft_one_line_names_the_extra(command, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    monkeypatch.setattr("finetune.config.recipe.find_spec", lambda name: None)
    for verb in ("train", "plan"):
        code, _, error = command(verb, "--dataset=d", "--lora_rank=4")
        install = "pip install 'finetune-gpt2[lora]'"
        assert code == 2 and error == f"--lora_rank: adapters need the package peft: {install}\n"


def test_a_frozen_head_has_no_gradient_and_leaves_the_others_as_they_were():
    from finetune.gpt import loss as gpt_loss

    torch.manual_seed(0)
    x, weight, targets = torch.randn(50, 8, requires_grad=True), torch.randn(64, 8), torch.randint(0, 60, (50,))
    gpt_loss.chunked_linear_cross_entropy(x, weight, targets, 60).backward()
    expected = torch.autograd.grad(gpt_loss.linear_cross_entropy(x, weight, targets, 60), x)[0]
    torch.testing.assert_close(x.grad, expected)
    assert weight.grad is None


@pytest.mark.parametrize(
    "values, told",
    [
        ({"lora_rank": 4, "init_from": "scratch"}, "would leave random weights"),
        ({"lora_alpha": 4}, "no effect without lora_rank"),
        ({"lora_dropout": 0.1}, "no effect without lora_rank"),
        ({"lora_rank": -1}, "must be at least 0"),
    ],
)
def test_contradictions_are_told(values, told):
    (found,) = find_problems(Recipe(**{"dataset": "x"} | values))
    assert told in found[1]


def test_xl_fits_a_card_of_12_gb(command):
    """As predicted: recipes/xl_lora.yaml on a GPU with 11.5 GB free."""
    from finetune.config.cli import parse

    recipe, _ = parse(Recipe, [str(Path(__file__).parents[1] / "recipes" / "xl_lora.yaml")], "")
    config = GPTConfig(n_layer=48, n_head=25, n_embd=1600)

    def takes(recipe):
        work = memory.Workload(recipe, config, 1024, compiled=True, max_eval_rows=1)
        return memory.estimate_memory(work).peak

    chosen, needed, line = memory_modes.choose_mode_that_fits(recipe, takes, 11.5e9)
    assert chosen.lora_rank == 16 and needed < 10.35e9 and "gradient_checkpointing=true" in line
