"""A model that cannot be right is refused in one line that says what is wrong with it, and nothing is written."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest
import torch
from conftest import write_bins
from safetensors.torch import load_file, save_file

from finetune import GPT, GPTConfig
from finetune.common.errors import UsageError
from finetune.gpt import pretrained

SHARDED = "model.safetensors.index.json"


@pytest.fixture
def model(hf_model):
    """A function that writes a small model with transformers, its tensors changed by `change(tensors)`."""

    def make(change=None, directory="m", **shape):
        hf_model(**shape).save_pretrained(directory)
        if change:
            path = Path(directory, "model.safetensors")
            tensors = load_file(path)
            change(tensors)
            save_file(tensors, path)
        return Path(directory)

    return make


def refusal(source):
    """The message of the UsageError that loading ends with; one line without control characters."""
    with pytest.raises(UsageError) as refused:
        pretrained.load(source)
    message = str(refused.value)
    assert "\n" not in message and len(message) < 500, message
    return message


WTE, FC = "transformer.wte.weight", "transformer.h.1.mlp.c_fc.weight"


def poisoned(name, value, count=1):
    def change(tensors):
        tensors[name].view(-1)[:count] = value

    return change


def retyped(dtype):
    def change(tensors):
        tensors[FC] = tensors[FC].to(dtype)

    return change


def doubled(tensors):
    tensors["wte.weight"] = tensors[WTE].clone() + 1


BROKEN = {
    "a NaN": (poisoned(WTE, float("nan")), "wte.weight has 1 of 3,232"),
    "infinity": (poisoned(FC, float("inf"), 3), "h.1.mlp.c_fc.weight has 3 of 4,096"),
    "both infinities": (poisoned(FC, torch.tensor([float("inf"), -float("inf")]), 2), "c_fc.weight has 2 of"),
    "a layer norm": (poisoned("transformer.ln_f.weight", float("-inf"), 32), "ln_f.weight has 32 of 32"),
    "float64 above float32": (lambda t: t.update({FC: t[FC].double() * 1e300}), "c_fc.weight has 4,096 of 4,096"),
    "int8": (retyped(torch.int8), "c_fc.weight is int8, and weights are floats"),
    "int32": (retyped(torch.int32), "is int32"),
    "bool": (retyped(torch.bool), "is bool"),
    "complex": (retyped(torch.complex64), "is complex64"),
    "float8": (retyped(torch.float8_e4m3fn), "is float8_e4m3fn"),
    "two spellings": (doubled, "wte.weight is there a second time"),
    "an unknown tensor": (lambda t: t.update({"a\x1b[2J\nb": torch.zeros(1)}), r"such as a\x1b[2J\nb"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_weights_that_cannot_be_right_are_named(case, model):
    change, message = BROKEN[case]
    assert message in refusal(model(change))


def test_large_weights_whose_sum_overflows_are_finite(model):
    pretrained.load(model(lambda tensors: tensors[FC].fill_(3e38)))


@pytest.mark.parametrize("verb, flags", [("sample", []), ("eval", ["--dataset=d"]), ("export", ["--to=new"])])
def test_every_verb_refuses_them(model, command, byte_tokenizer, verb, flags):
    write_bins(Path("d"), range(100), range(100))
    model(poisoned(WTE, float("nan")), vocab_size=257)
    shutil.copy(byte_tokenizer[0] / "tokenizer.json", "m")
    code, out, error = command(verb, "--init_from=m", *flags)
    assert code == 2 and error.count("\n") == 1 and "NaN or infinite" in error, error
    assert not Path("new").exists()


def test_weights_whose_logits_overflow_have_no_loss(model, command, byte_tokenizer):
    write_bins(Path("d"), range(100), range(100))
    model(lambda tensors: tensors[WTE].fill_(1e38), vocab_size=257)
    shutil.copy(byte_tokenizer[0] / "tokenizer.json", "m")
    code, out, error = command("eval", "--init_from=m", "--dataset=d", "--dtype=float32")
    assert code == 2 and error == "m: its loss is not finite in float32; its weights are too large\n", out + error
    code, _, error = command("export", "--init_from=m", "--to=new")
    assert code == 1 and error.count("\n") == 1 and "~" not in error and not Path("new").exists(), error


def test_an_export_that_transformers_cannot_load_is_named_as_it_was_given(model, command, byte_tokenizer):
    config = json.loads((model(vocab_size=257) / "config.json").read_text())
    Path("m/config.json").write_text(json.dumps({**config, "id2label": {"a": "\x1b[2J"}}))
    shutil.copy(byte_tokenizer[0] / "tokenizer.json", "m")
    code, _, error = command("export", "--init_from=m", "--to=new")
    assert code == 2 and error.startswith("new: transformers cannot load it ("), error
    assert error.count("\n") == 1 and error.strip().isprintable() and not Path("new").exists()


def test_a_tensor_in_two_shards_is_refused(hf_model):
    hf_model().save_pretrained("m", max_shard_size="20KB")
    index = json.loads(Path("m", SHARDED).read_text())
    first, second = sorted(set(index["weight_map"].values()))[:2]
    name = next(name for name, shard in index["weight_map"].items() if shard == first)
    tensors = load_file(f"m/{second}")
    save_file({**tensors, name: torch.zeros(3)}, f"m/{second}")
    assert "is in two files" in refusal("m")


def nanogpt(change):
    config = GPTConfig(block_size=8, vocab_size=11, n_layer=1, n_head=1, n_embd=4)
    state = {f"transformer.{name}": t.detach() for name, t in GPT.from_scratch(config).state_dict().items()}
    state["transformer.wte.weight"] = state["transformer.wte.weight"][:11]
    args = {"n_layer": 1, "n_head": 1, "n_embd": 4, "block_size": 8, "vocab_size": 11, "bias": True}
    checkpoint = {"model": state, "model_args": args}
    change(checkpoint)
    torch.save(checkpoint, "ckpt.pt")


CHECKPOINTS = {
    "a NaN": (lambda c: c["model"]["transformer.ln_f.bias"].fill_(float("nan")), "ln_f.bias has 4 of 4"),
    "two spellings": (lambda c: c["model"].update({"_orig_mod.transformer.ln_f.bias": torch.zeros(4)}), "second time"),
    "an untied head": (lambda c: c["model"].update({"lm_head.weight": torch.zeros(11, 4)}), "lm_head.weight differs"),
    "a list of layers": (lambda c: c["model_args"].update(n_layer=[1]), "n_layer must be a whole number"),
    "a million layers": (lambda c: c["model_args"].update(n_layer=10**9), "n_layer must be a whole number"),
    "a wide one": (lambda c: c["model_args"].update(n_embd=60000), "the configuration says"),
    "no arguments": (lambda c: c.update(model_args=[1]), "'model_args' no object"),
    "no tensors": (lambda c: c["model"].update({"transformer.ln_f.bias": "zeros"}), "does not hold tensors"),
}


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_a_nanogpt_checkpoint_that_cannot_be_right_is_refused(case):
    change, message = CHECKPOINTS[case]
    nanogpt(change)
    assert message in refusal("ckpt.pt")


def test_ddps_prefix_is_read():
    nanogpt(lambda c: c.update(model={f"_orig_mod.module.{name}": t for name, t in c["model"].items()}))
    assert len(pretrained.load("ckpt.pt")[1]) == 16


@pytest.mark.parametrize("content", [b"", b"\x80", b"PK\x03\x04", b"\x00" * 100, b"\x80\x02cos\nsystem\n."])
@pytest.mark.parametrize("name", ["ckpt.pt", "m/pytorch_model.bin", "m/model.safetensors"])
def test_files_of_nothing_are_one_line(name, content, model):
    model()
    os.rename("m/model.safetensors", "whole")
    Path(name).write_bytes(content)
    assert str(Path(name).parts[0]) in refusal(Path(name).parts[0])


def test_a_compressed_checkpoint_is_not_unpacked():
    import zipfile

    nanogpt(lambda c: None)
    with zipfile.ZipFile("ckpt.pt") as whole, zipfile.ZipFile("small.pt", "w", zipfile.ZIP_DEFLATED) as small:
        for part in whole.infolist():
            small.writestr(part.filename, whole.read(part) + b"\0" * 10_000_000 * part.filename.endswith("data.pkl"))
    assert "compressed" in refusal("small.pt")


@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
def test_cut_weights_are_one_line(share, model):
    path = model() / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    assert "m: " in refusal("m")


@pytest.mark.parametrize(
    "key, value", [("n_layer", 1_000_000), ("n_layer", 999), ("n_embd", 65536), ("vocab_size", 10**7)]
)
def test_a_huge_shape_over_a_small_file_is_refused_before_anything_is_built(key, value, model, command):
    directory = model()
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, key: value}))
    began = time.process_time()
    assert "n_layer must be" in refusal(directory) or "and its weights have 1" in refusal(directory)
    with pytest.raises(UsageError):
        pretrained.load_config(directory)
    assert time.process_time() - began < 10


@pytest.mark.parametrize(
    "flags", [{"temperature": 1e-320}, {"temperature": 1e-40}, {"temperature": 1e-25, "top_p": 0.9}]
)
def test_a_vanishing_temperature_is_greedy(hf_model, flags):
    hf_model().save_pretrained("m")
    model, idx = GPT.from_pretrained("m"), torch.arange(8).view(1, 8)
    greedy = model.generate(idx, 12, temperature=0.0)
    assert torch.equal(model.generate(idx, 12, generator=torch.Generator().manual_seed(1), **flags), greedy)
    assert torch.equal(model.generate(idx, 4, temperature=1e-19, repetition_penalty=1e-6)[:, :8], idx)


@pytest.mark.parametrize(
    "setting",
    [{"repetition_penalty": value} for value in (1e-300, 1e-40, 0.0, 1e300, float("nan"), -1.0)]
    + [{"temperature": value} for value in (float("nan"), float("inf"), -1e-320)],
)
def test_settings_that_leave_no_numbers_are_refused(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        GPT.from_scratch(GPTConfig(block_size=8, vocab_size=9, n_layer=1, n_head=1, n_embd=4)).generate(
            torch.zeros(1, 2, dtype=torch.long), 2, **setting
        )


def test_a_penalty_out_of_bounds_is_refused_by_sample(model, command):
    code, _, error = command("sample", "--init_from=m", "--repetition_penalty=1e-300")
    assert code == 2 and "repetition_penalty: must be at least 1e-06" in error
