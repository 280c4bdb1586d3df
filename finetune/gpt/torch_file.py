"""What torch.save wrote, read without running code in it."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch

from finetune.common.errors import first_line

INNER_KEYS = ("state_dict", "model_state_dict", "module")  # where Lightning, training loops and DeepSpeed keep weights


def weights(found: Any) -> Any:
    """The weights in the contents of a file: a part of them, or all."""
    if not isinstance(found, dict):
        return found
    return next((found[key] for key in INNER_KEYS if isinstance(found.get(key), dict)), found)


def read(path: Path) -> Any:
    """The contents of a torch file. Raises ValueError if it holds more than tensors and plain values."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as parts:
                if any(part.compress_type != zipfile.ZIP_STORED for part in parts.infolist()):
                    raise ValueError("it is compressed, and torch writes such files without")
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # from the pickle, zipfile and torch modules
        unsafe = "Weights only" in str(error)
        reason = "it holds more than weights, which could run code" if unsafe else first_line(error)
        raise ValueError(f"{path.name} cannot be read as weights only: {reason}") from None
