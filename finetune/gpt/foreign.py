"""Weight files that are not read: what they are, and what makes a model directory of them."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path

MADE_FROM = "give the model that it was made from"
BY_TRANSFORMERS = "GPT.from_hf(GPT2LMHeadModel.from_pretrained(DIR, gguf_file=FILE)).save_pretrained(NEW) converts it"
BY_TRANSFORMERS_4 = "transformers 4 converts it: GPT2LMHeadModel.from_pretrained(DIR, {}=True).save_pretrained(NEW)"
MERGE = (
    "to merge them, with peft: AutoPeftModelForCausalLM.from_pretrained(DIR).merge_and_unload().save_pretrained(NEW),"
    " and copy DIR's tokenizer files to NEW"
)
# patterns of names, what such a file is, and the way out; the first that fits counts
KINDS = (
    ("*.gguf", "GGUF, for llama.cpp", BY_TRANSFORMERS),
    ("*.h5", "TensorFlow weights", BY_TRANSFORMERS_4.format("from_tf")),
    ("*.ckpt*.index", "a TensorFlow checkpoint", BY_TRANSFORMERS_4.format("from_tf")),
    ("*.ckpt*.data-*", "a TensorFlow checkpoint", BY_TRANSFORMERS_4.format("from_tf")),
    ("*.msgpack", "Flax weights", BY_TRANSFORMERS_4.format("from_flax")),
    ("*.onnx", "ONNX", MADE_FROM),
    ("openvino_model.*", "OpenVINO", MADE_FROM),
    ("*.tflite", "TensorFlow Lite", MADE_FROM),
    ("rust_model.ot", "Rust weights", MADE_FROM),
    ("weights*.npz", "NumPy or MLX weights", MADE_FROM),
    ("*.distcp", "shards of FSDP", "`accelerate merge-weights DIR NEW` merges them"),
    ("zero_to_fp32.py", "shards of DeepSpeed", "`python zero_to_fp32.py . NEW` in it merges them"),
    ("*_model_states.pt", "shards of DeepSpeed", "`python zero_to_fp32.py . NEW` beside them merges them"),
    ("adapter_model.*", "adapters of PEFT", MERGE),
    ("*.ckpt", "a checkpoint of Lightning", "save its state_dict as pytorch_model.bin beside the model's config.json"),
    ("*-of-*.safetensors", "a shard", "give its directory, with model.safetensors.index.json"),
    ("*-of-*.bin", "a shard", "give its directory, with pytorch_model.bin.index.json"),
    ("*.safetensors", "weights alone", "give a directory with them as model.safetensors and the model's config.json"),
    ("*model*.bin", "weights alone", "give a directory with them as pytorch_model.bin and the model's config.json"),
    ("*.pth", "weights alone", "give a directory with them as pytorch_model.bin and the model's config.json"),
)
MAGIC = {b"GGUF": "x.gguf", b"\x89HDF": "x.h5"}  # first bytes, and a name with that pattern


def kind(names: Iterable[str]) -> str | None:
    """`NAME is ..., which is not read; ...` of the first of the names that is known, None if there is none."""
    names = sorted(names)
    for pattern, what, way in KINDS:
        if found := next((name for name in names if fnmatch(name, pattern)), None):
            return f"{found} is {what}, which is not read; {way}"
    return None


def newest_of_trainer(directory: Path) -> Path | None:
    """The last of the checkpoint-500 that Trainer wrote into a directory, if there are any."""
    found = [path for path in directory.glob("checkpoint-*") if (path / "trainer_state.json").is_file()]
    steps = {int(path.name.partition("-")[2]): path for path in found if path.name.partition("-")[2].isdecimal()}
    return steps[max(steps)] if steps else None


def kind_of_bytes(path: Path) -> str | None:
    """The same of a file by its first bytes alone, also where its name promises something else."""
    with path.open("rb") as file:
        first = file.read(40)
    if first.startswith(b"version https://git-lfs.github.com/"):
        return f"{path.name} is a pointer of Git LFS, and not the weights; `git lfs pull` fetches them"
    stands_for = MAGIC.get(first[:4])
    found = kind([stands_for]) if stands_for else None
    return found.replace(stands_for or "", path.name, 1) if found else None
