"""Train or finetune a GPT-2 as a recipe says.

accelerate launch -m finetune.train recipes/small.yaml --dataset=data/mine --out_dir=out-mine
"""

from finetune.cli import die_with_launcher, parse, reasons, run
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
        train(recipe, reasons(origins))


if __name__ == "__main__":
    run(main)
