"""Every format of GPT-2 weights is read without running code in it, and files are those that transformers writes."""

import json
import os
import re
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from finetune import GPT, GPTConfig
from finetune.common.errors import UsageError

IDX = torch.arange(20).view(1, 20) % 7


def same(directory, theirs):
    torch.testing.assert_close(GPT.from_pretrained(directory).eval()(IDX), theirs(IDX).logits, rtol=1e-5, atol=1e-4)


def test_safetensors_whole_and_sharded(hf_model, tmp_path):
    theirs = hf_model()
    theirs.save_pretrained(tmp_path / "whole")
    theirs.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert (tmp_path / "shards" / "model.safetensors.index.json").exists()
    same(tmp_path / "whole", theirs)
    same(tmp_path / "shards", theirs)


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="Linux tells which files are mapped")
def test_a_loaded_model_does_not_keep_its_file_in_memory(hf_model, tmp_path):
    # a vocabulary of 64 has no padding, which would copy the embedding
    hf_model(vocab_size=64, bos_token_id=None, eos_token_id=None).save_pretrained(tmp_path)
    model = GPT.from_pretrained(tmp_path)
    with open("/proc/self/maps") as maps:
        assert str(tmp_path) not in maps.read()
    assert model.wte.weight.dtype == torch.float32


def test_hub_spelling_without_prefix_and_with_attention_buffers(hf_model, tmp_path):
    theirs = hf_model()
    theirs.save_pretrained(tmp_path)
    state = {
        name.removeprefix("transformer."): tensor.contiguous()
        for name, tensor in load_file(tmp_path / "model.safetensors").items()
    }
    for layer in range(2):
        state[f"h.{layer}.attn.bias"] = torch.tril(torch.ones(1, 1, 32, 32))
        state[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(state, tmp_path / "model.safetensors")
    same(tmp_path, theirs)


def test_legacy_pytorch_model_bin(hf_model, tmp_path):
    theirs = hf_model()
    theirs.config.save_pretrained(tmp_path)
    torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")  # has lm_head.weight too
    same(tmp_path, theirs)


def test_bfloat16_files_are_read_as_float32(hf_model, tmp_path):
    hf_model().to(torch.bfloat16).save_pretrained(tmp_path)
    assert all(parameter.dtype == torch.float32 for parameter in GPT.from_pretrained(tmp_path).parameters())


def test_what_is_written_is_what_transformers_writes(hf_model, tmp_path):
    theirs = hf_model()
    theirs.save_pretrained(tmp_path / "theirs")
    GPT.from_pretrained(tmp_path / "theirs").save_pretrained(tmp_path / "ours")
    written, expected = ((tmp_path / who / "model.safetensors").read_bytes() for who in ("ours", "theirs"))
    assert written == expected
    config, wanted = (json.loads((tmp_path / who / "config.json").read_text()) for who in ("ours", "theirs"))
    shape = ("model_type", "n_layer", "n_head", "n_embd", "n_positions", "vocab_size")
    for name in (*shape, "bos_token_id", "eos_token_id", "layer_norm_epsilon"):
        assert config[name] == wanted[name]


@pytest.mark.parametrize(
    "adapters, instead",
    [("given", "export their run without --format=peft"), ("out/best/adapter", "use out/best, where they are merged")],
)
def test_adapters_alone_are_no_model_and_one_line_says_what_is(hf_model, command, adapters, instead):
    hf_model().save_pretrained("out/best")
    os.makedirs(adapters)
    with open(f"{adapters}/adapter_config.json", "w") as file:
        file.write("{}")
    for verb, *flags in (("sample",), ("eval", "--dataset=d"), ("train", "--dataset=d", "--out_dir=new")):
        if verb != "sample":
            os.makedirs("d", exist_ok=True)
            for split in ("train", "val"):
                torch.zeros(400, dtype=torch.int16).numpy().tofile(f"d/{split}.bin")
        code, _, error = command(verb, f"--init_from={adapters}", *flags)
        assert code == 2 and error.count("\n") == 1, error
        assert f"{adapters}: holds adapters alone" in error and instead in error
    assert not os.path.exists("new/metrics.jsonl")


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of peft, about transformers
def test_what_trainer_and_peft_leave_is_refused_with_a_way_that_works(hf_model, command, monkeypatch):
    """An output_dir of checkpoints alone, and one of axolotl, where config.json lies beside the adapters."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # peft would look there for a tokenizer
    peft = pytest.importorskip("peft")
    for step in (500, 1000):
        hf_model().save_pretrained(f"out/checkpoint-{step}")
        Path(f"out/checkpoint-{step}/trainer_state.json").write_text("{}")
    with pytest.raises(UsageError, match="holds checkpoints of Trainer; the newest is --init_from=(.*)") as refused:
        GPT.from_pretrained("out")
    way = re.search("--init_from=(.*)", str(refused.value))[1]
    assert way == "out/checkpoint-1000" and GPT.from_pretrained(way)
    code, _, error = command("train", "--dataset=x.txt", "--init_from=resume", "--out_dir=out")
    assert code == 2 and f"--init_from={way} and another out_dir begin with that" in error
    base = hf_model()
    base.save_pretrained("base")
    base.name_or_path = "base"
    config = peft.LoraConfig(r=2, target_modules=["c_attn"], init_lora_weights=False, fan_in_fan_out=True)
    config.task_type = "CAUSAL_LM"
    adapted = peft.get_peft_model(base, config)
    adapted.save_pretrained("axolotl")
    base.config.save_pretrained("axolotl")
    merged = adapted.merge_and_unload().eval()
    for directory in ("axolotl", "alone"):
        with pytest.raises(UsageError, match="from_pretrained") as refused:
            GPT.from_pretrained(directory)
        expression = re.search(r"AutoPeft\S+", str(refused.value))[0].strip(",")
        names = {"AutoPeftModelForCausalLM": peft.AutoPeftModelForCausalLM, "DIR": directory, "NEW": "new"}
        eval(expression, names)
        same("new", merged)
        if directory == "axolotl":
            os.rename(directory, "alone")
            Path("alone/config.json").unlink()


def test_a_runs_out_dir_means_its_best_model(hf_model, tmp_path):
    theirs = hf_model()
    theirs.save_pretrained(tmp_path / "out" / "best")
    same(tmp_path / "out", theirs)


class NanoGPT(torch.nn.Module):
    """nanoGPT's arithmetic from its documented structure, written independently of ours: exact GELU, optional
    biases."""

    def __init__(self, state, n_layer, n_head):
        super().__init__()
        self.state, self.n_layer, self.n_head = state, n_layer, n_head

    def forward(self, idx):
        F, get = torch.nn.functional, self.state.get
        x = get("transformer.wte.weight")[idx] + get("transformer.wpe.weight")[: idx.size(1)]
        for i in range(self.n_layer):
            p = f"transformer.h.{i}."
            y = F.layer_norm(x, x.shape[-1:], get(p + "ln_1.weight"), get(p + "ln_1.bias"))
            q, k, v = (F.linear(y, get(p + "attn.c_attn.weight"), get(p + "attn.c_attn.bias"))).chunk(3, -1)
            q, k, v = (t.unflatten(-1, (self.n_head, -1)).transpose(1, 2) for t in (q, k, v))
            scores = (q @ k.mT) / q.size(-1) ** 0.5
            scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -torch.inf)
            y = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
            x = x + F.linear(y, get(p + "attn.c_proj.weight"), get(p + "attn.c_proj.bias"))
            y = F.layer_norm(x, x.shape[-1:], get(p + "ln_2.weight"), get(p + "ln_2.bias"))
            y = F.gelu(F.linear(y, get(p + "mlp.c_fc.weight"), get(p + "mlp.c_fc.bias")))
            x = x + F.linear(y, get(p + "mlp.c_proj.weight"), get(p + "mlp.c_proj.bias"))
        x = F.layer_norm(x, x.shape[-1:], get("transformer.ln_f.weight"), get("transformer.ln_f.bias"))
        return x @ get("transformer.wte.weight").T


def nanogpt_state(config, bias):
    model = GPT.from_scratch(config, seed=2)
    state = {f"transformer.{name}": tensor.detach() * 3 for name, tensor in model.state_dict().items()}
    state["transformer.wte.weight"] = torch.randn(
        config.vocab_size, config.n_embd, generator=torch.Generator().manual_seed(0)
    )
    for name in [name for name in state if name.endswith("bias")]:
        state[name] = torch.randn(state[name].shape, generator=torch.Generator().manual_seed(len(name)))
        if not bias:
            del state[name]
    return state


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("compiled", [True, False])
def test_nanogpt_checkpoint(tmp_path, bias, compiled):
    config = GPTConfig(block_size=20, vocab_size=65, n_layer=2, n_head=2, n_embd=16)
    state = nanogpt_state(config, bias)
    args = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 20, "bias": bias, "vocab_size": 65, "dropout": 0.1}
    saved = {("_orig_mod." if compiled else "") + name: tensor for name, tensor in state.items()}
    saved[("_orig_mod." if compiled else "") + "lm_head.weight"] = state["transformer.wte.weight"]
    extra = {"optimizer": {}, "iter_num": 10, "best_val_loss": torch.tensor(1.5), "config": {"device": "cpu"}}
    torch.save({"model": saved, "model_args": args, **extra}, tmp_path / "ckpt.pt")
    expected = NanoGPT(state, 2, 2)(IDX)
    for source in (tmp_path / "ckpt.pt", tmp_path):  # the file, or nanoGPT's out_dir
        torch.testing.assert_close(GPT.from_pretrained(source).eval()(IDX), expected, rtol=1e-5, atol=1e-4)
    # and on to Hugging Face, whose "gelu" is the exact one too
    torch.testing.assert_close(GPT.from_pretrained(tmp_path).to_hf()(IDX).logits, expected, rtol=1e-5, atol=1e-4)


def test_nanogpts_padded_vocabulary_is_cut(tmp_path):
    config = GPTConfig(block_size=8, vocab_size=50304, n_layer=1, n_head=1, n_embd=4)
    args = {"n_layer": 1, "n_head": 1, "n_embd": 4, "block_size": 8, "bias": True, "vocab_size": 50304}
    torch.save({"model": nanogpt_state(config, True), "model_args": args}, tmp_path / "ckpt.pt")
    model = GPT.from_pretrained(tmp_path / "ckpt.pt")
    assert model.config.vocab_size == 50257 and model(IDX[:, :8]).shape[-1] == 50257


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_files_that_would_run_code_are_refused_and_do_not(hf_model, tmp_path):
    torch.save({"model": {}, "model_args": Payload(tmp_path / "ran")}, tmp_path / "ckpt.pt")
    hf_model().config.save_pretrained(tmp_path / "hf")
    torch.save({"x": Payload(tmp_path / "ran")}, tmp_path / "hf" / "pytorch_model.bin")
    for source in (tmp_path / "ckpt.pt", tmp_path / "hf"):
        with pytest.raises(UsageError, match="could run code"):
            GPT.from_pretrained(source)
    assert not (tmp_path / "ran").exists()


def test_damaged_directories_are_named(hf_model, tmp_path):
    theirs = hf_model()

    def broken(change, message):
        theirs.save_pretrained(tmp_path / "m", max_shard_size="20KB")
        change(tmp_path / "m")
        with pytest.raises(UsageError, match=message):
            GPT.from_pretrained(tmp_path / "m")

    def replace(path, old, new):
        path.write_text(path.read_text().replace(old, new))

    index = "model.safetensors.index.json"
    broken(lambda d: next(d.glob("model-00001-*")).unlink(), "names model-00001.* which is not there")
    broken(lambda d: replace(d / index, "model-00001", "../model-00001"), "outside its directory")
    broken(lambda d: (d / "config.json").write_text("{"), "config.json")
    broken(lambda d: replace(d / "config.json", '"n_layer": 2', '"n_layer": 3'), "missing")
    broken(lambda d: replace(d / "config.json", '"n_embd": 32', '"n_embd": 64'), "shape")


def test_an_untied_head_is_refused(hf_model, tmp_path):
    theirs = hf_model()
    theirs.config.save_pretrained(tmp_path)
    state = theirs.state_dict()
    torch.save({**state, "lm_head.weight": state["lm_head.weight"] + 1}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UsageError, match="lm_head"):
        GPT.from_pretrained(tmp_path)


def test_an_unknown_hub_model_without_network_is_answered_in_seconds(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    began = time.perf_counter()
    with pytest.raises(UsageError, match="hf download nobody/nothing"):
        GPT.from_pretrained("nobody/nothing")
    assert time.perf_counter() - began < 30


@pytest.mark.heavy
def test_a_hub_that_accepts_and_never_answers_is_given_up_in_seconds(monkeypatch):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        began = time.perf_counter()
        with pytest.raises(UsageError, match="cannot be reached"):
            GPT.from_pretrained("nobody/nothing")
        assert time.perf_counter() - began < 30


@pytest.mark.parametrize("source", ["./missing", "/missing/dir", "a/b/c", "missing.pt"])
def test_a_missing_path_is_not_taken_for_a_hub_model(source):
    with pytest.raises(UsageError, match="no such file or directory"):
        GPT.from_pretrained(source)


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_weights_are_for_whom_other_files_are_for(tmp_path, umask):
    before = os.umask(umask)
    try:
        GPT(GPTConfig(n_layer=1, n_head=1, n_embd=4, vocab_size=8, block_size=4)).save_pretrained(tmp_path / "copy")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "copy").iterdir()} == {0o666 & ~umask}
