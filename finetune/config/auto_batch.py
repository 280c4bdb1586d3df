"""batch_size=auto: keys that count micro-batches become keys that count blocks."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from finetune.config.options import convert

if TYPE_CHECKING:
    from finetune.config.recipe_file import Entry

COUNTS = ("gradient_accumulation_steps", "eval_iters")  # of micro-batches


def count_blocks(values: dict[str, Any], entries: Iterable[Entry], defaults: type) -> None:
    """Change parsed `values` with batch_size=auto, so that updates and evaluations keep their blocks: counts are
    multiplied by the number that `auto` replaces. Beside an `auto` in a recipe file they are blocks already."""
    size, are_blocks = None, False
    for entry in entries:
        name, text, _ = entry
        if name == "batch_size" and str(text).lower() == "auto":
            are_blocks |= size is None and entry.in_recipe
        elif name == "batch_size":
            with suppress(ValueError):  # reported as a problem already
                size = convert(text, int)
    for name in COUNTS:
        count = values.get(name, getattr(defaults, name))
        if count is not None and (size or name not in values or not are_blocks):
            values[name] = count * (size or defaults.batch_size)
