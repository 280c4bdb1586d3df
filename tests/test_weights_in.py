"""An export is compared with its source; wrapped models are unwrapped; what would compute something else is refused."""

import copy
import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from finetune import GPT, GPTConfig
from finetune.common.errors import UsageError
from finetune.gpt import convert, pretrained

IDX = torch.arange(32)[None] * 7 % 101


@pytest.fixture
def model(hf_model, byte_tokenizer):
    """A function that writes a model with a tokenizer to `m`, as transformers does."""

    def make(**shape):
        theirs = hf_model(vocab_size=257, bos_token_id=0, eos_token_id=0, **shape)
        theirs.save_pretrained("m")
        shutil.copy(byte_tokenizer[0] / "tokenizer.json", "m")
        Path("m/tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))
        return theirs

    return make


def verification(directory="new"):
    return json.loads(Path(directory, "verification.json").read_text())


def set_keys(**keys):
    path = Path("m/config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


SCALES = {"scale_attn_by_inverse_layer_idx": True, "scale_attn_weights": False, "n_layer": 3}


def test_an_export_with_other_scales_is_its_source(model, command):
    from transformers import AutoModelForCausalLM

    theirs = model(**SCALES, reorder_and_upcast_attn=True)
    code, out, error = command("export", "--init_from=m", "--to=new")
    assert code == 0 and "not compared" not in out, error
    found = verification()["source"]
    assert found["logits_compared"] == 32 * 257 and found["max_difference"] <= 1e-4 * found["largest_logit"]
    exported = AutoModelForCausalLM.from_pretrained("new", local_files_only=True)
    torch.testing.assert_close(exported(IDX).logits, theirs(IDX).logits, rtol=1e-5, atol=1e-5)
    assert all(getattr(exported.config, key) == value for key, value in SCALES.items())
    assert exported.config.reorder_and_upcast_attn
    for flag in ("--format=gguf", "--gguf_type=f16"):
        code, _, error = command("export", "--init_from=m", "--to=other", flag)
        assert code == 2 and "scale_attn" in error and error.count("\n") == 1, error
        assert not Path("other").exists()
    ours = GPT.from_hf(theirs)
    with pytest.raises(ValueError, match="scale_attn"):
        convert.to_nanogpt(ours.state_dict(), ours.config)


def test_generation_uses_the_scales(hf_model):
    theirs = hf_model(**SCALES)
    ours = GPT.from_hf(theirs).eval()
    for length in (1, 5):
        made = ours.generate(IDX[:, :length], 20, temperature=0.0, eos_token_id=None)
        wanted = theirs.generate(IDX[:, :length], max_new_tokens=20, do_sample=False, eos_token_id=None, pad_token_id=0)
        assert torch.equal(made, wanted)


@pytest.mark.parametrize("wrong", [{"n_head": 2}, {"layer_norm_epsilon": 1e-2}, {"scale_attn_weights": False}])
def test_a_model_that_was_read_wrong_is_not_exported(wrong, model, command, monkeypatch):
    model()
    honest = convert.config_from_hf
    monkeypatch.setattr(convert, "config_from_hf", lambda found: dataclasses.replace(honest(found), **wrong))
    code, _, error = command("export", "--init_from=m", "--to=new")
    assert code == 1 and "logits of its source in transformers differ" in error and not Path("new").exists(), error


def test_an_export_says_when_its_source_was_not_compared(model, command):
    model()
    state = load_file("m/model.safetensors")
    save_file({f"_orig_mod.{name}": tensor for name, tensor in state.items()}, "m/model.safetensors")
    code, out, error = command("export", "--init_from=m", "--to=new")
    assert code == 0 and "not compared with its source: transformers finds" in out, error
    assert "missing keys" in verification()["source"]["not_compared"]


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "experts_implementation"])
def test_a_kernel_of_the_hub_is_neither_loaded_nor_copied_on(key, model, command):
    model()
    set_keys(**{key: "evil/kernel"})
    code, out, error = command("export", "--init_from=m", "--to=new")
    assert code == 0 and "not compared" not in out, error
    assert "evil" not in Path("new/config.json").read_text()


# models in memory


def wrapped(model):
    class Wrapper(torch.nn.Module):  # DDP, FSDP and DeepSpeed keep what they wrap under this name
        def __init__(self):
            super().__init__()
            self.module = model

    return Wrapper()


def adapted(model, **more):
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(**({"r": 4, "target_modules": ["c_attn", "c_fc"], "init_lora_weights": False} | more))
    return get_peft_model(model, lora).eval()


WRAPPED = {
    "compiled": torch.compile,
    "DataParallel": torch.nn.DataParallel,
    "in module": wrapped,
    "compiled in module": lambda model: wrapped(torch.compile(model)),
    "in module, compiled": lambda model: torch.compile(wrapped(model)),
    "LoRA": adapted,
    "DoRA": lambda model: adapted(model, use_dora=True),
    "LoRA in module": lambda model: wrapped(adapted(model)),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", WRAPPED)
def test_a_wrapped_model_is_unwrapped(case, hf_model):
    from peft import PeftModel
    from transformers import GPT2LMHeadModel

    theirs = WRAPPED[case](hf_model())
    before = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    inner = next((one for one in theirs.modules() if isinstance(one, PeftModel)), None)
    plain = inner or next(one for one in theirs.modules() if isinstance(one, GPT2LMHeadModel))
    torch.testing.assert_close(GPT.from_hf(theirs).eval()(IDX), plain(IDX).logits, rtol=1e-5, atol=1e-5)
    after = theirs.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)


def prompt_tuned(model):
    from peft import PromptTuningConfig, get_peft_model

    return get_peft_model(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))


def with_adapter(model):
    from peft import LoraConfig, inject_adapter_in_model

    return inject_adapter_in_model(LoraConfig(r=2, target_modules=["c_attn"]), model)  # as transformers' add_adapter


def switched_off(model):
    theirs = adapted(model)
    theirs.disable_adapter_layers()
    return theirs


NOT_UNWRAPPED = {
    "adapters that are switched off": (switched_off, "switched off"),
    "prompt tuning": (prompt_tuned, "cannot be merged"),
    "adapters without a PeftModel": (with_adapter, "merge"),
    "adapters of the embedding": (lambda model: adapted(model, target_modules=["wte"]), "share their weights"),
    "adapters of the head": (lambda model: adapted(model, target_modules=["lm_head"]), "share their weights"),
    "another network": (lambda model: torch.nn.Linear(2, 2), "Linear is not a model of transformers"),
    "nothing": (lambda model: None, "NoneType is not a model of transformers"),
    "a name": (lambda model: "gpt2", "str is not a model of transformers; GPT.from_pretrained takes a name"),
    "a part of it": (lambda model: model.transformer.h[0], "GPT2Block is not a model of transformers"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", NOT_UNWRAPPED)
def test_what_cannot_be_unwrapped_is_refused(case, hf_model):
    make, words = NOT_UNWRAPPED[case]
    with pytest.raises(ValueError, match=words):
        GPT.from_hf(make(hf_model()))


# files


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("model.gguf", b"GGUF", "GGUF, for llama.cpp"),
        ("model.bin", b"GGUF\3\0\0\0", "model.bin is GGUF"),
        ("weights.pt", b"\x89HDF\r\n\x1a\n", "weights.pt is TensorFlow weights"),
        ("epoch=1.ckpt", b"", "a checkpoint of Lightning"),
        ("model.safetensors", b"", "the model's config.json"),
        ("model-00001-of-00002.safetensors", b"", "a shard"),
        ("adapter_model.safetensors", b"", "adapters of PEFT"),
        ("ckpt.pt", b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
    ],
)
def test_a_file_of_another_kind_is_named(name, content, words, command):
    Path(name).write_bytes(content)
    code, _, error = command("sample", f"--init_from={name}")
    assert code == 2 and words in error and error.count("\n") == 1, error


@pytest.mark.parametrize(
    "name", ["best.pth", "model.bin", "m.ckpt", "last.ckpt", "adapter_model.pt", "a-of-b.bin", "x.h5"]
)
def test_a_nanogpt_checkpoint_may_have_any_name(name):
    nanogpt()
    Path("ckpt.pt").rename(name)
    assert pretrained.load(name)[0].vocab_size == 11
    torch.save({"weight": torch.zeros(2)}, name)
    with pytest.raises(UsageError, match=f"^{name}: not a nanoGPT checkpoint: it has no 'model' and 'model_args'; "):
        pretrained.load(name)
    Path(name).write_bytes(b"\x80\2nothing")
    with pytest.raises(UsageError, match=f"^{name}: {name} cannot be read as weights only: "):
        pretrained.load(name)


@pytest.mark.filterwarnings("ignore")
def test_the_way_out_of_a_gguf_file_leads_out(model, command):
    pytest.importorskip("gguf")
    from transformers import GPT2LMHeadModel

    theirs = model()
    assert command("export", "--init_from=m", "--to=new", "--gguf_type=f32")[0] == 0
    file = next(Path("new").glob("*.gguf")).name
    Path("alone").mkdir()
    shutil.copy(f"new/{file}", "alone")
    assert "gguf_file=FILE" in command("export", "--init_from=alone", "--to=other")[2]
    GPT.from_hf(GPT2LMHeadModel.from_pretrained("alone", gguf_file=file, n_positions=32)).save_pretrained("read")
    torch.testing.assert_close(GPT.from_pretrained("read").eval()(IDX), theirs(IDX).logits, rtol=1e-5, atol=1e-4)


def test_prepared_data_are_not_taken_for_weights():
    Path("data").mkdir()
    for name in ("train.bin", "val.bin", "meta.json", "table.npz"):
        Path("data", name).write_bytes(bytes(8))
    with pytest.raises(UsageError, match="data: no model here; expected config.json"):
        pretrained.load("data")


def nanogpt(more=None, **shape):
    shape = {"block_size": 8, "vocab_size": 11, "n_layer": 1, "n_head": 1, "n_embd": 4} | shape
    state = GPT.from_scratch(GPTConfig(block_size=8, vocab_size=11, n_layer=1, n_head=1, n_embd=4)).state_dict()
    model = {f"transformer.{name}": tensor for name, tensor in state.items()}
    torch.save({"model": model, "model_args": {**shape, "bias": True, **(more or {})}}, "ckpt.pt")


@pytest.mark.parametrize("args", [{"n_kv_head": 2}, {"rope_theta": 1e4}, {"mlp_hidden": 8}, {"n_query_groups": 1}])
def test_a_fork_of_nanogpt_is_not_taken_for_it(args):
    nanogpt(dict.fromkeys(args))
    nanogpt(args)
    with pytest.raises(UsageError, match=next(iter(args))):
        pretrained.load("ckpt.pt")


def test_a_checkpoint_cannot_ask_for_more_memory_than_it_has(hf_model):
    wide = {"n_embd": 4096, "vocab_size": 50000}
    config = GPTConfig(block_size=8, n_layer=1, n_head=1, **wide)
    one = torch.zeros(1)
    state = {f"transformer.{name}": one.expand(shape) for name, shape in pretrained.size.shapes(config).items()}
    args = {"block_size": 8, "n_layer": 1, "n_head": 1, "bias": True, **wide}
    torch.save({"model": state, "model_args": args}, "ckpt.pt")
    assert Path("ckpt.pt").stat().st_size < 10_000
    with pytest.raises(UsageError, match="and its weights have"):
        pretrained.load("ckpt.pt")


def test_weights_of_a_byte_are_named_by_their_type(hf_model):
    theirs = hf_model(n_embd=64)
    theirs.save_pretrained("m")
    state = {name: tensor.to(torch.int8) for name, tensor in load_file("m/model.safetensors").items()}
    save_file(state, "m/model.safetensors")
    with pytest.raises(UsageError, match="is int8, and weights are floats"):
        pretrained.load("m")


@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants")  # of torch 2.14
def test_sparse_weights_and_a_head_of_another_type(hf_model):
    theirs = hf_model()
    theirs.config.save_pretrained("m")
    state = copy.copy(theirs.state_dict())
    torch.save({**state, "lm_head.weight": state["lm_head.weight"].double()}, "m/pytorch_model.bin")
    torch.testing.assert_close(GPT.from_pretrained("m").eval()(IDX), theirs(IDX).logits, rtol=1e-5, atol=1e-4)
    torch.save({**state, "transformer.wpe.weight": state["transformer.wpe.weight"].to_sparse()}, "m/pytorch_model.bin")
    with pytest.raises(UsageError, match="is a sparse tensor"):
        pretrained.load("m")
