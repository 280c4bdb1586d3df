"""Train or finetune a GPT-2 as a recipe says.

accelerate launch -m finetune.train recipes/small.yaml --dataset=data/mine --out_dir=out-mine
"""

from finetune.common.errors import Failure, UsageError
from finetune.config.cli import die_with_launcher, parse, run
from finetune.config.recipe import Recipe
from finetune.config.recipe_file import comments_by_key

USAGE = """usage: accelerate launch -m finetune.train [RECIPE.yaml] [--key=value ...]
       python -m finetune.train [RECIPE.yaml] [--key=value ...]

Trains a GPT-2 on prepared data. Values come from the recipe, then from the flags; the last mention wins.
In brackets the default; "derived" values follow from the others and are shown when training starts."""


def main(argv):
    recipe, origins = parse(Recipe, argv, USAGE)
    die_with_launcher()
    from finetune.tools.report.after_training import report_after
    from finetune.training.trainer import train

    with report_after(recipe):
        setup, _ = train(recipe, comments_by_key(origins))
    if recipe.push_to_hub and not recipe.eval_only and setup.device.accelerator.is_main_process:
        _push(recipe)


def _push(recipe):
    """Export the best model into the run and push it there, which is the same as doing it by hand."""
    import shlex
    from pathlib import Path

    out_dir, to = Path(recipe.out_dir), Path(recipe.out_dir) / "export"
    by_hand = (
        "python -m finetune.export"
        f" {shlex.join([f'--out_dir={out_dir}', f'--to={to}', f'--push_to_hub={recipe.push_to_hub}'])}"
    )
    if not recipe.push:
        print(f"nothing is pushed to {recipe.push_to_hub} without --push=true; by hand: {by_hand}")
        return
    from finetune.publishing import export, hub

    try:
        exported = export.export(out_dir / "best", to, name=recipe.push_to_hub)
    except (UsageError, Failure) as error:  # all is done but this
        raise Failure(
            f"{recipe.push_to_hub} was not pushed: {error}. The model is in {out_dir}/best; again: {by_hand}", 4
        ) from error
    hub.push(exported, recipe.push_to_hub, again=by_hand)


if __name__ == "__main__":
    run(main)
