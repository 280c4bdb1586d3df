"""Train or finetune a GPT-2 as a recipe says.

accelerate launch -m finetune.train recipes/small.yaml --dataset=data/mine --out_dir=out-mine
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.common.errors import Failure, UsageError
from finetune.config.cli import die_with_launcher, parse, run
from finetune.config.recipe import Recipe
from finetune.config.recipe_file import comments_by_key

if TYPE_CHECKING:
    from finetune.training.state import Hooks

USAGE = """usage: accelerate launch -m finetune.train [RECIPE.yaml] [--key=value ...]
       python -m finetune.train [RECIPE.yaml] [--key=value ...]

Trains a GPT-2 on prepared data. Flags replace values of the recipe, and the last mention of a key counts. Defaults are
in brackets; "derived" values follow from other keys and are shown when training starts."""


def main(argv: list[str]) -> None:
    recipe, origins = parse(Recipe, argv, USAGE)
    die_with_launcher()
    train_and_push(recipe, origins)


def train_and_push(recipe: Recipe, origins: dict[str, str], hooks: Hooks | None = None) -> None:
    """Train, write the report, and push the best model if the recipe says so. Raises UsageError and Failure."""
    from finetune.tools.report.after_training import report_after
    from finetune.training.trainer import train

    with_hooks = {"hooks": hooks} if hooks else {}
    with report_after(recipe):
        setup, _ = train(recipe, comments_by_key(origins), **with_hooks)
    if recipe.push_to_hub and not recipe.eval_only and setup.device.accelerator.is_main_process:
        _export_and_push(recipe, recipe.push_to_hub)


def _export_and_push(recipe: Recipe, repository: str) -> None:
    """Export the best model to out_dir/export and push it, as finetune.export would."""
    out_dir, to = Path(recipe.out_dir), Path(recipe.out_dir) / "export"
    flags = shlex.join([f"--out_dir={out_dir}", f"--to={to}", f"--push_to_hub={repository}"])
    by_hand = f"python -m finetune.export {flags}"
    if not recipe.push:
        print(f"nothing is pushed to {repository} without --push=true; by hand: {by_hand}")
        return
    from finetune.publishing import export, hub

    try:
        exported = export.export(out_dir / "best", to, repository=repository)
    except (UsageError, Failure) as error:  # the model itself is saved
        place = f"The model is in {out_dir}/best; again: {by_hand}"
        raise Failure(f"{repository} was not pushed: {error}. {place}", 4) from error
    hub.push(exported, repository, again=by_hand)


if __name__ == "__main__":
    run(main)
