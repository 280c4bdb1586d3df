"""The files of a model: finding them, from a Hub id to a nanoGPT checkpoint, reading them without executing anything,
writing them."""

import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from finetune.common.errors import UsageError
from finetune.common.files import read_json, write_json
from finetune.common.network import SECONDS, hub_file
from finetune.gpt import convert

MODEL_FILES = ["*.json", "*.safetensors", "merges.txt"]


def find(source):
    """The directory or ckpt.pt that `source` means: itself, the `best/` of a run's out_dir, or the local copy of a Hub
    model.

    Raises UsageError when there is none, within seconds also when the network is down.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        for candidate in (path / "best", path):
            if (candidate / "config.json").is_file():
                return candidate
        if (path / "ckpt.pt").is_file():
            return path / "ckpt.pt"
        if (path / "adapter_config.json").is_file():
            merged = path.parent if path.name == "adapter" and (path.parent / "config.json").is_file() else None
            instead = (
                f"use {merged}, where they are merged"
                if merged
                else "export their run without --format=peft and use that"
            )
            raise UsageError(f"{source}: holds adapters alone, without the model they belong to; {instead}")
        raise UsageError(f"{source}: no model here; expected config.json, best/config.json or ckpt.pt")
    if not is_hub_id(source):
        raise UsageError(f"{source}: no such file or directory")
    return _from_hub(str(source))


def is_hub_id(source):
    """Whether `source` can only mean a model of the Hub."""
    if Path(source).expanduser().exists():
        return False
    return (
        str(source).count("/") <= 1
        and not str(source).startswith((".", "/", "~"))
        and not str(source).endswith((".pt", ".safetensors"))
    )


def load_config(source):
    """The GPTConfig of anything `find` finds, without reading its weights where they lie in files of their own. Raises
    UsageError."""
    path = find(source)
    if path.is_file():
        return load(source)[0]
    return _read_config(path / "config.json")


def load_hub_config(repo):
    """The GPTConfig of a Hub model, from its config.json alone, or from the local cache. Raises UsageError."""
    from huggingface_hub.errors import HFValidationError

    try:
        return _read_config(Path(hub_file(repo, "config.json")))
    except HFValidationError:
        raise UsageError(f"{repo}: no such directory, and not the name of a Hub model either") from None
    except UsageError:
        raise
    except Exception as error:  # every way in which a network fails has its own class
        raise UsageError(
            f"{repo}: no such directory, not in the local cache, and its config.json cannot be had from the Hub"
            f" ({type(error).__name__}). Run `hf download {repo}` while online, or give the directory of a downloaded"
            " model"
        ) from None


def load(source):
    """`(config, weights)` of anything `find` finds; weights are ours, float32, on the CPU, without padding. Raises
    UsageError."""
    path = find(source)
    try:
        if path.is_file():
            return _load_nanogpt(path)
        config = load_config(path)
        weights = convert.from_hf(_read_tensors(path), config)
    except UsageError:
        raise
    except KeyError as error:
        raise UsageError(f"{path}: {error} is missing in it") from None
    except (ValueError, TypeError, AttributeError, SafetensorError) as error:
        raise UsageError(f"{path}: {error}") from None
    # copies, because one tensor of a safetensors file that is only mapped would keep all that was read of it in memory
    return config, {
        name: tensor.to(torch.float32, copy=not name.endswith(convert.CONV1D)) for name, tensor in weights.items()
    }


def save(directory, weights, config):
    """Write `model.safetensors`, `config.json` and `generation_config.json` into an existing directory, in the dtype of
    the weights.

    They may still carry the padding of the vocabulary; the files do not.
    """
    directory = Path(directory)
    weights = {
        name: tensor.detach().cpu() for name, tensor in weights.items()
    }  # before the transposed copies, which a GPU may have no room for
    write_tensors(directory / "model.safetensors", convert.to_hf(weights, config))
    dtype = str(weights["wte.weight"].dtype).removeprefix("torch.")
    write_json(directory / "config.json", convert.config_to_hf(config, dtype))
    # max_length keeps pipeline() from running past the last position of a short context
    generation = {
        "max_length": config.block_size,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
    }
    write_json(
        directory / "generation_config.json", {name: value for name, value in generation.items() if value is not None}
    )


def _read_config(path):
    try:
        return convert.config_from_hf(read_json(path))
    except (ValueError, TypeError, ArithmeticError, AttributeError, OSError) as error:
        raise UsageError(f"{path}: {error}") from None


def _read_tensors(directory):
    """All tensors of a Hugging Face directory: safetensors, sharded or whole, else pytorch_model.bin read as weights
    only."""
    for name, read in (("model.safetensors", load_file), ("pytorch_model.bin", _read_pickle)):
        index = directory / f"{name}.index.json"
        if (directory / name).is_file():
            return read(directory / name)
        if index.is_file():
            shards = _shards(index)
            missing = [shard for shard in shards if not (directory / shard).is_file()]
            if missing:
                raise ValueError(f"{index.name} names {missing[0]}, which is not there")
            return {name: tensor for shard in shards for name, tensor in read(directory / shard).items()}
    raise ValueError("no model.safetensors and no pytorch_model.bin")


def _load_nanogpt(path):
    checkpoint = _read_pickle(path)
    if not isinstance(checkpoint, dict) or not {"model", "model_args"} <= checkpoint.keys():
        raise ValueError("not a nanoGPT checkpoint: it has no 'model' and 'model_args'")
    config, weights = convert.from_nanogpt(checkpoint)
    return config, {name: tensor.float() for name, tensor in weights.items()}


def _read_pickle(path):
    """A torch file as plain tensors and values; anything in it that would run code is refused."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = (
            str(error).splitlines()[0]
            if "Weights only" not in str(error)
            else "it holds more than weights, which could run code"
        )
        raise ValueError(f"{path.name} cannot be read as weights only: {reason}") from None


def _from_hub(repo):
    """The local snapshot of a Hub model: from the cache when all is there, else downloaded."""
    from huggingface_hub import HfApi, snapshot_download, try_to_load_from_cache
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    try:
        cached = try_to_load_from_cache(repo, "config.json")
    except HFValidationError:
        raise UsageError(f"{repo}: no such directory, and not the name of a Hub model either") from None
    if isinstance(cached, str) and _is_complete(Path(cached).parent):
        return Path(cached).parent
    try:
        names = [file.rfilename for file in HfApi().model_info(repo, timeout=SECONDS).siblings]
        patterns = (
            MODEL_FILES
            if any(name.endswith(".safetensors") for name in names)
            else [*MODEL_FILES, "pytorch_model*.bin"]
        )
        return Path(snapshot_download(repo, allow_patterns=patterns, ignore_patterns=["*/*"], etag_timeout=SECONDS))
    except GatedRepoError:
        raise UsageError(
            f"{repo}: the Hub asks for permission; log in with `hf auth login` and accept its terms"
        ) from None
    except RepositoryNotFoundError:
        raise UsageError(
            f"{repo}: no such directory, and no such model on the Hub (or it is private: `hf auth login`)"
        ) from None
    except Exception as error:  # every way in which a network fails has its own class
        if isinstance(cached, str) and _has_weights(Path(cached).parent):
            return Path(cached).parent
        raise UsageError(
            f"{repo}: no such directory, not in the local cache, and the Hub cannot be reached"
            f" ({type(error).__name__}). Run `hf download {repo}` while online, or give the directory of a downloaded"
            " model"
        ) from None


def _is_complete(folder):
    """Whether a directory has configuration, weights and tokenizer."""
    tokenizer = (folder / "tokenizer.json").exists() or (
        (folder / "vocab.json").exists() and (folder / "merges.txt").exists()
    )
    return tokenizer and _has_weights(folder)


def _has_weights(folder):
    """Whether all files of the weights are there, beside a configuration."""
    if not (folder / "config.json").exists():
        return False
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).exists():
            return True
        if (folder / f"{name}.index.json").exists():
            return all((folder / shard).exists() for shard in _shards(folder / f"{name}.index.json"))
    return False


def _shards(index):
    """The files that a model.safetensors.index.json names. Raises ValueError when one lies elsewhere."""
    shards = sorted(set(read_json(index)["weight_map"].values()))
    if any(Path(shard).name != shard for shard in shards):
        raise ValueError(f"{index.name} names files outside its directory")
    return shards


def write_tensors(path, tensors):
    """Write a safetensors file as transformers does. Raises OSError when the disk does not take it."""
    try:
        save_file(tensors, path, metadata={"format": "pt"})
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(path, 0o666 & ~umask)  # safetensors leaves them to their owner alone
    except SafetensorError as error:
        raise OSError(str(error)) from error
