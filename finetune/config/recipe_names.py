"""The recipes and launch files that come with finetune, found by name: `small` is recipes/small.yaml."""

from __future__ import annotations

import difflib
from pathlib import Path

from finetune.common.errors import UsageError

PACKAGE = Path(__file__).parents[1]
SUFFIXES = (".yaml", ".yml")


def recipe_names() -> list[str]:
    return _names(recipes_directory())


def launch_names() -> list[str]:
    return _names(recipes_directory() / "accelerate")


def find_recipe(name: str) -> Path:
    """The recipe that `name` means: a file, or a recipe that comes with finetune. A path that ends in .yaml need not
    exist. Raises UsageError."""
    return _find(name, recipes_directory(), "recipe")


def find_launch_file(name: str) -> Path:
    """The configuration of accelerate that `name` means, as `find_recipe`. Raises UsageError."""
    return _find(name, recipes_directory() / "accelerate", "launch file")


def recipes_directory() -> Path:
    """The installed recipes, or those of the repository. Raises UsageError if the installation has lost them."""
    for directory in (PACKAGE / "packaged_recipes", PACKAGE.parent / "recipes"):
        if (directory / "small.yaml").is_file():
            return directory
    raise UsageError(f"no recipes in {PACKAGE / 'packaged_recipes'}; install finetune-gpt2 again")


def _find(name: str, directory: Path, kind: str) -> Path:
    path, names = Path(name), _names(directory)
    if path.is_file():
        return path
    if path.is_fifo():  # a recipe is read more than once
        raise UsageError(f"{name}: is a pipe; write the {kind} into a .yaml file and give that")
    is_bare = path.name == name and path.suffix not in SUFFIXES
    if is_bare and name in names:
        return directory / f"{name}.yaml"
    if path.suffix in SUFFIXES:
        if path.stem in names and not path.exists():
            raise UsageError(
                f"{name}: cannot be read: no such file; the {kind} that comes with finetune is {path.stem}"
            )
        return path
    if name and path.is_dir():
        recipe = path / "recipe.yaml"
        raise UsageError(f"{name}: is a directory" + (f"; its recipe is {recipe}" if recipe.is_file() else ""))
    if path.suffix == ".py":  # a config of nanoGPT, which no recipe that comes with finetune is like
        close = difflib.get_close_matches(str(path), sorted(map(str, path.parent.glob("*.py"))), 1, 0.8)
    else:
        close = difflib.get_close_matches(path.name.lower(), names, n=1)
    hint = f"Did you mean {close[0]}?" if close else f"There are {', '.join(names)}"
    raise UsageError(f"{name or 'an empty name'}: no such {kind} and no such file. {hint}")


def _names(directory: Path) -> list[str]:
    return sorted(path.stem for path in directory.glob("*.yaml"))
