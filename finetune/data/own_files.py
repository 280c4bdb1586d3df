"""What finetune wrote, which is no text: prepared data, runs and models."""

from __future__ import annotations

import os
from pathlib import Path

from finetune.common.errors import UsageError
from finetune.common.files import MANIFEST, read_json_object
from finetune.config.run_directory import METRICS, RECIPE, SINGLE_FILES

OF_TOKENIZER = "tokenizer.json vocab.json merges.txt special_tokens_map.json added_tokens.json".split()


def check_not_ours(name: str, path: Path) -> None:
    """Raise UsageError for a directory that finetune wrote from texts."""
    if _is_prepared(path):
        raise UsageError(f"{name}: is prepared already; train on it with --dataset={name}")
    if _holds(path, METRICS, "best/config.json"):
        raise UsageError(f"{name}: is the directory of a run, not a text; its data are named in {name}/{RECIPE}")
    if _is_model(path):
        raise UsageError(f"{name}: is the directory of a model, not a text; --init_from={name} starts from it")


def _holds(folder: Path, *names: str) -> bool:
    """Whether these files are there; False too where that cannot be asked."""
    return all(os.path.isfile(folder / name) for name in names)


def _is_prepared(folder: Path) -> bool:
    return _holds(folder, "train.bin") and "splits" in read_json_object(folder / "meta.json")


def _is_model(folder: Path) -> bool:
    return _holds(folder, "config.json") and any(folder.glob("*.safetensors"))


def written(paths: list[Path], base: Path) -> set[Path]:
    """Those of the files below `base` that finetune wrote beside texts, or that belong to a model."""
    names = {folder: _names_written(folder) for folder in {path.parent for path in paths} - {base}}
    return {path for path in paths if path.name in names.get(path.parent, ())}


def _names_written(folder: Path) -> set[str]:
    listed = read_json_object(folder / MANIFEST).get("files")
    found = {MANIFEST, *listed} if isinstance(listed, dict) and {"finetune.json", "state.json"} & {*listed} else set()
    if _holds(folder, METRICS, RECIPE):
        found.update(SINGLE_FILES)
    if _is_prepared(folder):
        found.update(["meta.json", *OF_TOKENIZER])
    if _is_model(folder) or _holds(folder, "adapter_config.json"):
        found.update(["README.md", "adapter_config.json", *OF_TOKENIZER])
    return found
