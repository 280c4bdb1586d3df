"""Model files: find them on disk or on the Hub, read them without running code in them, write them."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from finetune.common.commands import join
from finetune.common.direct_file import write_summed
from finetune.common.errors import UsageError
from finetune.common.files import read_json, write_json
from finetune.common.formatting import shown
from finetune.common.opened import refuse_links_out
from finetune.gpt import convert, foreign, hub_model, size, torch_file
from finetune.gpt.hub_model import MODEL_FILES
from finetune.gpt.model import GPTConfig

DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
LINKED = (*MODEL_FILES, "pytorch_model*.bin", "adapter/*", "additional_chat_templates/*")  # that are read or copied


def find(source: str | Path) -> Path:
    """The directory or ckpt.pt of a model: `source` itself, `best/` of a run's out_dir, or the cached copy of a Hub
    model, downloaded if needed. Raises UsageError, within seconds also without a network."""
    path = Path(os.path.expanduser(source))
    if path.is_file():
        return path
    if path.is_dir():
        return _find_in(path, source)
    if not is_hub_id(source):
        raise UsageError(f"{source}: no such file or directory")
    return hub_model.download(str(source), _is_whole, _has_weights)


def _find_in(path: Path, source: str | Path) -> Path:
    for candidate in (path / "best", path):
        if (candidate / "config.json").is_file():
            if (candidate / "adapter_config.json").is_file():
                problem = (
                    "has adapters of PEFT in one directory with config.json, which transformers would put over them"
                )
                apart = "move adapter_config.json and its adapters elsewhere"
                way = apart if _weight_files(candidate) else foreign.MERGE
                raise UsageError(f"{source}: {problem}; {way}")
            refuse_links_out(candidate, (file for pattern in LINKED for file in candidate.glob(pattern)))
            return candidate
    if (path / "ckpt.pt").is_file():
        return path / "ckpt.pt"
    if (path / "adapter_config.json").is_file():
        instead = f"export their run without --format=peft and use that; or, {foreign.MERGE}"
        if path.name == "adapter" and (path.parent / "config.json").is_file():
            instead = f"use {path.parent}, where they are merged"
        raise UsageError(f"{source}: holds adapters alone, without the model they belong to; {instead}")
    if (path / "state.json").is_file() and path.parent.name == "last":
        model = join([f"--init_from={path.parent.parent}"])
        raise UsageError(f"{source}: a checkpoint to resume from; the best model of its run is {model}")
    if saved := foreign.newest_of_trainer(path):
        model = join([f"--init_from={saved}"])
        raise UsageError(f"{source}: holds checkpoints of Trainer; the newest is {model}")
    found = foreign.kind(file.name for file in path.iterdir())
    raise UsageError(f"{source}: {found or 'no model here'}; expected config.json, best/config.json or ckpt.pt")


def is_hub_id(source: str | Path) -> bool:
    """Whether `source` can only be the id of a Hub model, with or without a revision."""
    if Path(os.path.expanduser(source)).exists():
        return False
    name = hub_model.split_revision(str(source))[0]
    return name.count("/") <= 1 and not name.startswith((".", "/", "~")) and not name.endswith((".pt", ".safetensors"))


def load_config(source: str | Path) -> GPTConfig:
    """The GPTConfig of a model that `find` finds; reads its weights only from a ckpt.pt. Raises UsageError."""
    path = find(source)
    if path.is_file():
        return load(path)[0]
    config = _read_config(path / "config.json")
    _check_size(path, config, _weight_files(path))
    return config


def load_hub_config(source: str) -> GPTConfig:
    """The GPTConfig of a Hub model, of which at most config.json is downloaded. Raises UsageError."""
    return _read_config(hub_model.config_file(source))


def pinned(source: str, path: Path) -> str:
    """`source`, which was found at `path`; a branch or a tag of the Hub as the commit that it means now."""
    has_revision = is_hub_id(source) and "@" in source
    return f"{hub_model.split_revision(source)[0]}@{path.name}" if has_revision else source


def load(source: str | Path) -> tuple[GPTConfig, dict[str, Tensor]]:
    """`(config, weights)` of a model that `find` finds. Weights are named as ours, float32, on the CPU, without
    padding. Raises UsageError."""
    path = find(source)
    try:
        if path.is_file():
            config, weights = _load_nanogpt(path)
        else:
            config, tensors = _read_config(path / "config.json"), _read_tensors(path)
            _check_size(path, config, _weight_files(path))
            weights = convert.from_hf(tensors, config)
            del tensors
            # Copied, because one tensor that is still mapped keeps the whole file in memory; Conv1D is copied already
            for name in weights:
                weights[name] = weights[name].to(torch.float32, copy=not name.endswith(convert.CONV1D))
        check_finite(weights)
    except UsageError:
        raise
    except KeyError as error:
        raise UsageError(f"{path}: {error} is missing in it") from None
    except (ValueError, TypeError, AttributeError, OverflowError, RuntimeError, SafetensorError) as error:
        raise UsageError(f"{path}: {error}") from None
    return config, weights


def _check_size(source: Path, config: GPTConfig, files: list[Path]) -> None:
    """Raise UsageError if the weights are too small for the configuration, with less than a byte for each parameter."""
    files = [file for file in files if file.is_file()]
    for file in files:
        if found := foreign.kind_of_bytes(file):
            raise UsageError(f"{source}: {found}")
    parameters, num_bytes = size.num_parameters(config), sum(file.stat().st_size for file in files)
    if files and num_bytes < parameters:
        described = f"its configuration describes {parameters:,} parameters"
        raise UsageError(f"{source}: {described}, and its weights have {num_bytes:,} bytes")


def check_finite(weights: dict[str, Tensor], what: str = "weights") -> None:
    """Raise ValueError naming the tensors with values that are NaN or infinite."""
    found = []
    for name, tensor in weights.items():
        if not tensor.sum().isfinite() and (count := int((~tensor.isfinite()).sum())):  # a sum alone may overflow
            found.append(f"{name} has {count:,} of {tensor.numel():,}")
    if found:
        more = f" and {len(found) - 3:,} more tensors" if len(found) > 3 else ""
        raise ValueError(f"{what} that are NaN or infinite: {', '.join(found[:3])}{more}; this model is broken")


def save(directory: str | Path, weights: dict[str, Tensor], config: GPTConfig) -> str:
    """Write `model.safetensors`, `config.json` and `generation_config.json` into an existing directory, in the dtype of
    the weights and without the padding of the vocabulary. Return the sha256 of the first."""
    directory = Path(directory)
    # to the CPU first: transposed copies need memory that a GPU may lack
    weights = {name: tensor.detach().cpu() for name, tensor in weights.items()}
    sha256 = write_tensors(directory / "model.safetensors", convert.to_hf(weights, config))
    dtype = str(weights["wte.weight"].dtype).removeprefix("torch.")
    write_json(directory / "config.json", convert.config_to_hf(config, dtype))
    write_json(directory / "generation_config.json", convert.generation_config(config))
    return sha256


def _read_config(path: Path) -> GPTConfig:
    try:
        config = convert.config_from_hf(read_json(path))
        path = path.with_name("generation_config.json")
        if path.is_file():
            config.generation_config = convert.generation_config_from_hf(read_json(path))
        return config
    except (ValueError, TypeError, ArithmeticError, AttributeError, OSError) as error:
        raise UsageError(f"{path}: {error}") from None


def _read_tensors(directory: Path) -> dict[str, Tensor]:
    """All tensors of a Hugging Face directory."""
    files = _weight_files(directory)
    if not files:
        found = foreign.kind(file.name for file in directory.iterdir())
        raise ValueError(f"no model.safetensors and no pytorch_model.bin{f'; {found}' if found else ''}")
    tensors = {}
    for file in files:
        if not file.is_file():
            raise ValueError(f"its index names {file.name}, which is not there")
        more = load_file(file) if file.suffix == ".safetensors" else torch_file.weights(torch_file.read(file))
        if not isinstance(more, dict) or not all(map(torch.is_tensor, more.values())):
            raise ValueError(f"{file.name} holds no tensors by name")
        if twice := tensors.keys() & more.keys():
            raise ValueError(f"{shown(min(twice))} is in two files")
        tensors |= more
    return tensors


def _weight_files(directory: Path) -> list[Path]:
    """model.safetensors, or else pytorch_model.bin, or the shards in the index of one; [] if there are none. Raises
    ValueError for an index that names files elsewhere."""
    for path in (directory / "model.safetensors", directory / "pytorch_model.bin"):
        index = path.with_name(f"{path.name}.index.json")
        if path.is_file():
            return [path]
        if index.is_file():
            return [directory / shard for shard in _shards(index)]
    return []


def _shards(index: Path) -> list[str]:
    """The names of the files in an index. Raises UsageError for one that cannot be read, or names files elsewhere."""
    try:
        found = read_json(index)
    except (OSError, ValueError) as error:
        raise UsageError(f"{index}: {error}") from None
    shards = found.get("weight_map") if isinstance(found, dict) else None
    if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
        raise UsageError(f"{index}: has no weight_map of tensors to files")
    if any(Path(shard).name != shard for shard in shards.values()):
        raise UsageError(f"{index}: names files outside its directory")
    return sorted(set(shards.values()))


def _load_nanogpt(path: Path) -> tuple[GPTConfig, dict[str, Tensor]]:
    if found := foreign.kind_of_bytes(path):
        raise ValueError(found)
    found = foreign.kind([path.name])  # only when it cannot be read: a nanoGPT checkpoint may have any name
    try:
        checkpoint = torch_file.read(path)
    except ValueError as error:
        raise ValueError(f"{error}; {found}" if found else error) from None
    if not isinstance(checkpoint, dict) or not {"model", "model_args"} <= checkpoint.keys():
        way = found or "weights without them are read as pytorch_model.bin in a directory with the model's config.json"
        raise ValueError(f"not a nanoGPT checkpoint: it has no 'model' and 'model_args'; {way}")
    config, weights = convert.from_nanogpt(checkpoint)
    _check_size(path, config, [path])
    return config, {name: tensor.float() for name, tensor in weights.items()}


def _has_weights(folder: Path) -> bool:
    """Whether configuration and weights are there."""
    files = _weight_files(folder)
    return (folder / "config.json").exists() and bool(files) and all(file.exists() for file in files)


def _is_whole(folder: Path) -> bool:
    return _has_weights(folder) and _has_tokenizer(folder)


def _has_tokenizer(folder: Path) -> bool:
    vocab_and_merges = (folder / "vocab.json").exists() and (folder / "merges.txt").exists()
    return vocab_and_merges or any((folder / name).exists() for name in ("tokenizer.json", "vocab.txt", "spiece.model"))


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write a safetensors file, to the byte as transformers does; return its sha256, summed while it is written. Raises
    OSError."""
    ordered = dict(sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0])))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in ordered.items():
        first, end = end, end + tensor.nbytes
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [first, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    begin = np.frombuffer(len(text).to_bytes(8, "little") + text, np.uint8)
    return write_summed(path, itertools.chain([begin], map(bytes_of, ordered.values())))


def bytes_of(tensor: Tensor) -> np.ndarray:
    return tensor.detach().contiguous().view(-1).view(torch.uint8).numpy()
