"""The table in docs/models.md: what model directories of others are, built here with transformers. Each gives
transformers' logits, or is refused in one line; nothing is written then."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from finetune import GPT

PAGE = Path(__file__).parents[1] / "docs/models.md"
M, WEIGHTS = Path("m"), Path("m/model.safetensors")
FC = "transformer.h.1.mlp.c_fc.weight"


def save(tensors, path=WEIGHTS):
    save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})


def config(**changes):
    """A change of config.json; None removes a key."""

    def change(theirs):
        found = json.loads((M / "config.json").read_text()) | changes
        kept = {key: value for key, value in found.items() if value is not None or key not in changes}
        (M / "config.json").write_text(json.dumps(kept))

    return change


def renamed(pattern, other):
    """A change of the names of all tensors."""
    return lambda theirs: save({re.sub(pattern, other, name): tensor for name, tensor in load_file(WEIGHTS).items()})


def tensors(change):
    """A change of the tensors, a dict, in place."""

    def write(theirs):
        found = load_file(WEIGHTS)
        change(found)
        save(found)

    return write


def retyped(dtype):
    return lambda theirs: theirs.to(dtype).save_pretrained(M)


def other_names(**names):
    """A change of the names of keys in config.json."""

    def change(theirs):
        found = json.loads((M / "config.json").read_text())
        (M / "config.json").write_text(json.dumps({names.get(key, key): value for key, value in found.items()}))

    return change


def pickled(wrap=lambda state: state):
    """pytorch_model.bin in place of model.safetensors, as `wrap(state_dict)`."""

    def change(theirs):
        WEIGHTS.unlink()
        torch.save(wrap(theirs.state_dict()), M / "pytorch_model.bin")

    return change


def pickled_shards(theirs):
    WEIGHTS.unlink()
    names, state = [*theirs.state_dict()], theirs.state_dict()
    parts = {"pytorch_model-00001-of-00002.bin": names[:9], "pytorch_model-00002-of-00002.bin": names[9:]}
    for file, part in parts.items():
        torch.save({name: state[name].clone() for name in part}, M / file)
    index = {"metadata": {}, "weight_map": {name: file for file, part in parts.items() for name in part}}
    (M / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def shards(theirs):
    WEIGHTS.unlink()
    theirs.save_pretrained(M, max_shard_size="20KB")


def two_kinds(theirs):
    torch.save({name: tensor + 1 for name, tensor in theirs.state_dict().items()}, M / "pytorch_model.bin")


def buffers(found):
    for layer in range(2):
        found[f"transformer.h.{layer}.attn.bias"] = torch.ones(1, 1, 32, 32, dtype=torch.uint8).tril()
        found[f"transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)


def lightning(state):
    return {"epoch": 3, "state_dict": {f"model.{name}": tensor for name, tensor in state.items()}}


# what it is, the shape of the model, what makes it of transformers' own directory; with `theirs`, transformers cannot
# read the names, and the model in memory is the truth
READ = {
    "`model.safetensors`": ({}, []),
    "`model-00001-of-00002.safetensors` with its index": ({}, [shards]),
    "`pytorch_model.bin`": ({}, [pickled()]),
    "`pytorch_model-00001-of-00002.bin` with its index": ({}, [pickled_shards]),
    "both kinds of weights: `model.safetensors` counts, as in transformers": ({}, [two_kinds]),
    "float64": ({}, [retyped(torch.float64)]),
    "float16": ({}, [retyped(torch.float16)]),
    "bfloat16": ({}, [retyped(torch.bfloat16)]),
    "names of `GPT2Model`, without `transformer.`": ({}, [renamed(r"^transformer\.", "")]),
    "names with `module.` of DDP": ({}, [renamed("^", "module."), "theirs"]),
    "names with `_orig_mod.` of torch.compile": ({}, [renamed("^", "_orig_mod."), "theirs"]),
    "names with `_orig_mod.` around each block": ({}, [renamed(r"(h\.\d\.)", r"\1_orig_mod."), "theirs"]),
    "names with `model.` of Lightning": ({}, [renamed("^", "model."), "theirs"]),
    "names with `module._orig_mod.model.`": ({}, [renamed("^", "module._orig_mod.model."), "theirs"]),
    "`pytorch_model.bin` with a `state_dict` in it": ({}, [pickled(lightning), "theirs"]),
    "the head a second time, equal": (
        {},
        [tensors(lambda t: t.update({"lm_head.weight": t["transformer.wte.weight"]}))],
    ),
    "`attn.bias` and `attn.masked_bias` of old versions": ({}, [tensors(buffers)]),
    "`hidden_size`, `num_attention_heads`, `num_hidden_layers`, `max_position_embeddings`": (
        {},
        [
            other_names(
                n_embd="hidden_size",
                n_head="num_attention_heads",
                n_layer="num_hidden_layers",
                n_positions="max_position_embeddings",
            )
        ],
    ),
    "`intermediate_size`": ({}, [config(intermediate_size=128)]),
    "`n_inner` and `layer_norm_epsilon`": ({"n_inner": 100, "layer_norm_epsilon": 1e-3}, []),
    "`activation_function` `gelu`, as in Cerebras-GPT": ({"activation_function": "gelu"}, []),
    "`activation_function` `gelu_fast`": ({"activation_function": "gelu_fast"}, []),
    "`n_positions` 2048": ({"n_positions": 2048}, []),
    "`scale_attn_by_inverse_layer_idx` and `reorder_and_upcast_attn`, as in Mistral's GPT-2": (
        {"n_layer": 3, "scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True},
        [],
    ),
    "`scale_attn_weights` `false`": ({"scale_attn_weights": False}, []),
    "keys about other things, such as `author` and `n_ctx`": (
        {},
        [config(author="A", n_ctx=32, hidden_dropout_prob=0.1)],
    ),
}


def beside(name, content=b"\0" * 100):
    """A file in place of the weights."""

    def change(theirs):
        WEIGHTS.unlink()
        (M / name).write_bytes(content)

    return change


def alone(name):
    """A file without a directory."""
    return lambda theirs: (shutil.rmtree(M), M.mkdir(), (M / name).write_bytes(b"\0" * 100))


def moved(name):
    return lambda theirs: WEIGHTS.rename(M / name)


def linear_layout(found):
    for name in found:
        if name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
            found[name] = found[name].T


def unmerged(found):
    found[FC.replace("weight", "base_layer.weight")] = found.pop(FC)
    found[FC.replace("weight", "lora_A.default.weight")] = torch.zeros(2, 32)


# what it is, what makes it, words of the refusal
REFUSED = {
    "`model_type` `gpt_neo`, `opt`, `gpt_bigcode` and all others": (config(model_type="gpt_neo"), "not gpt2"),
    "no `model_type`": (config(model_type=None), "not gpt2"),
    "`activation_function` `relu` and others": (config(activation_function="relu"), "activation_function=relu"),
    "`tie_word_embeddings` `false`": (config(tie_word_embeddings=False), "tie_word_embeddings=False"),
    "`add_cross_attention`": (config(add_cross_attention=True), "add_cross_attention=True"),
    "no `n_head`": (config(n_head=None), "n_head is missing"),
    "`num_heads` and other names of sizes that transformers does not read": (config(num_heads=8), "num_heads=8"),
    "two names of a size with two values": (config(num_attention_heads=8), "n_head=4 and num_attention_heads=8"),
    "`layer_norm_eps`, `hidden_act`": (config(layer_norm_eps=1e-3), "layer_norm_eps=0.001"),
    "`rope_theta`, `alibi`, `sliding_window`": (config(rope_theta=1e4), "rope_theta=10000.0"),
    "`quantization_config`": (config(quantization_config={"bits": 4}), "its weights are quantized"),
    "a shape that the weights cannot fill": (config(vocab_size=10_000_000), "and its weights have"),
    "int8": (tensors(lambda t: t.update({FC: t[FC].to(torch.int8)})), "is int8, and weights are floats"),
    "float8": (tensors(lambda t: t.update({FC: t[FC].to(torch.float8_e4m3fn)})), "is float8_e4m3fn"),
    "NaN": (tensors(lambda t: t[FC].fill_(float("nan"))), "weights that are NaN or infinite"),
    "a head that is not the embedding": (
        tensors(lambda t: t.update({"lm_head.weight": t["transformer.wte.weight"] + 1})),
        "lm_head.weight differs from wte.weight",
    ),
    "two spellings of a tensor": (
        tensors(lambda t: t.update({FC.removeprefix("transformer."): t[FC] + 1})),
        "is there a second time",
    ),
    "tensors that are missing, such as biases": (
        tensors(lambda t: t.pop(FC)),
        "1 missing, such as h.1.mlp.c_fc.weight",
    ),
    "tensors that are unknown, such as another head": (
        tensors(lambda t: t.update({"score.weight": torch.zeros(2, 32)})),
        "1 unknown, such as score.weight",
    ),
    "matrices in the layout of nn.Linear": (tensors(linear_layout), "has shape (96, 32)"),
    "adapters that are not merged": (tensors(unmerged), "merge_and_unload() of peft"),
    "adapters of PEFT alone": (alone("adapter_config.json"), "holds adapters alone"),
    "adapters of PEFT beside config.json": (
        lambda theirs: (M / "adapter_config.json").write_text("{}"),
        "adapters of PEFT in one directory with config.json",
    ),
    "TensorFlow: `tf_model.h5`": (beside("tf_model.h5"), "from_tf=True"),
    "TensorFlow: `model.ckpt.index`": (beside("model.ckpt.index"), "a TensorFlow checkpoint"),
    "Flax: `flax_model.msgpack`": (beside("flax_model.msgpack"), "from_flax=True"),
    "GGUF": (alone("model-q8_0.gguf"), "gguf_file=FILE"),
    "ONNX": (beside("model.onnx"), "ONNX, which is not read"),
    "Lightning: `*.ckpt`": (beside("epoch=3.ckpt"), "save its state_dict as pytorch_model.bin"),
    "FSDP: `*.distcp`": (beside("__0_0.distcp"), "accelerate merge-weights"),
    "DeepSpeed: `zero_to_fp32.py`": (beside("zero_to_fp32.py"), "zero_to_fp32.py . NEW"),
    "other names of weights, such as `model.fp16.safetensors`": (
        moved("model.fp16.safetensors"),
        "as model.safetensors",
    ),
    "shards without their index": (moved("model-00001-of-00002.safetensors"), "with model.safetensors.index.json"),
    "weights without config.json": (alone("model.safetensors"), "the model's config.json"),
    "a pointer of Git LFS": (
        lambda theirs: WEIGHTS.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        "git lfs pull",
    ),
}


@pytest.mark.parametrize("case", READ)
def test_what_is_read_has_transformers_logits(case, hf_model):
    from transformers import AutoModelForCausalLM

    shape, changes = READ[case]
    theirs = hf_model(**shape)
    theirs.save_pretrained(M)
    for change in changes:
        if change != "theirs":
            change(theirs)
    if "theirs" not in changes:
        theirs = AutoModelForCausalLM.from_pretrained(M, dtype=torch.float32, local_files_only=True)
    idx = torch.arange(theirs.config.n_positions)[None] * 7919 % 101
    logits = theirs(idx).logits
    bound = 1e-5 * max(1.0, logits.abs().max().item())
    assert (GPT.from_pretrained(M).eval()(idx) - logits).abs().max().item() <= bound


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_read_is_refused_in_a_line(case, hf_model, command):
    change, words = REFUSED[case]
    theirs = hf_model()
    theirs.save_pretrained(M)
    change(theirs)
    code, _, error = command("export", "--init_from=m", "--to=new")
    assert code == 2 and error.count("\n") == 1 and words in error, error
    assert not Path("new").exists()


def test_the_page_has_these_rows():
    table = PAGE.read_text(encoding="utf-8").split("|---|---|\n")[1].split("\n\n")[0]
    rows = [tuple(line.strip("| ").split(" | ")) for line in table.splitlines()]
    wanted = [(what, "read") for what in READ] + [(what, f"`{words}`") for what, (_, words) in REFUSED.items()]
    assert rows == wanted and len(rows) >= 25
