"""The configurations that the card of a dataset of the Hub lists, and the files of the one that is read."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from finetune.common.errors import UsageError
from finetune.data.row_shape import shortened

FRONT = re.compile(r"\A\s*---\n(.*?\n)??---(?:\n|\Z)", re.S)  # YAML at the beginning of a card, as the Hub finds it
MOST = 1 << 20  # characters of a card


def files_of_default(name: str, base: Path, data: list[Path]) -> list[Path]:
    """The files of the default configuration in the card of a directory, as `datasets` reads them; all if the card
    lists none. Several configurations often hold the same rows. Raises UsageError if there are several and no
    default."""
    listed = _configs(base, data)
    configs = {config: files for config, files in listed.items() if files}
    if len(listed) < 2 or not configs:
        return data
    if "default" not in configs:
        if len(configs) == 1:
            return next(iter(configs.values()))
        first, files = next(iter(configs.items()))
        folder = files[0].parent
        raise UsageError(
            f"{name}: its README.md lists the configurations {shortened([*configs])}; name the files of one, such as"
            f" {folder if folder != base else files[0]} for {first}"
        )
    return configs["default"]


def _configs(base: Path, data: list[Path]) -> dict[str, list[Path]]:
    """The files of each configuration; the default one is called so."""
    found = {}
    names = {path: path.relative_to(base).as_posix() for path in data if path.is_relative_to(base)}
    for config in _listed(base):
        patterns = _patterns(config.get("data_files"))
        folder = str(config.get("data_dir") or "").removeprefix("./").strip("/")
        patterns += [f"{folder}/*"] if folder and not patterns else []
        key = "default" if config.get("default") is True else str(config.get("config_name", "default"))
        found[key] = [path for path in names if any(fnmatch(names[path], pattern) for pattern in patterns)]
    return found


def _listed(base: Path) -> list[dict[str, Any]]:
    import yaml

    try:
        with open(base / "README.md", encoding="utf-8") as file:
            front = FRONT.match(file.read(MOST))
        card = yaml.safe_load(front[1] or "") if front else None
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return []
    configs = card.get("configs") if isinstance(card, dict) else None
    return [config for config in configs if isinstance(config, dict)] if isinstance(configs, list) else []


def _patterns(value: Any) -> list[str]:
    """The paths of `data_files`: a path, a list of paths, or such by split."""
    if isinstance(value, str):
        return [value.removeprefix("./").replace("**/", "*").replace("**", "*")]
    if isinstance(value, dict):
        value = [value["path"]] if "path" in value else list(value.values())
    return [one for part in value for one in _patterns(part)] if isinstance(value, list) else []
