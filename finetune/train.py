"""Train or finetune a GPT-2 as a recipe says.

accelerate launch -m finetune.train recipes/small.yaml --dataset=data/mine --out_dir=out-mine
"""

from finetune.cli import Failure, UsageError, die_with_launcher, parse, reasons, run
from finetune.recipe import Recipe

USAGE = """usage: accelerate launch -m finetune.train [RECIPE.yaml] [--key=value ...]
       python -m finetune.train [RECIPE.yaml] [--key=value ...]

Trains a GPT-2 on prepared data. Values come from the recipe, then from the flags; the last mention wins.
In brackets the default; "derived" values follow from the others and are shown when training starts."""


def main(argv):
    recipe, origins = parse(Recipe, argv, USAGE)
    die_with_launcher()
    from finetune.reporting.ending import told
    from finetune.training.loop import train

    with told(recipe):
        done = train(recipe, reasons(origins))
    if recipe.push_to_hub and not recipe.eval_only and done.machine.accelerator.is_main_process:
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
    from finetune.publishing import directory, hub

    try:
        exported = directory.export(out_dir / "best", to, name=recipe.push_to_hub)
    except (UsageError, Failure) as error:  # all is done but this
        raise Failure(
            f"{recipe.push_to_hub} was not pushed: {error}. The model is in {out_dir}/best; again: {by_hand}", 4
        ) from error
    hub.push(exported, recipe.push_to_hub, again=by_hand)


if __name__ == "__main__":
    run(main)
