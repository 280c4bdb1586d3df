"""Train or finetune a GPT-2 as a recipe says.

finetune train small --dataset=data/mine --out_dir=out-mine
"""

from __future__ import annotations

import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.common import console
from finetune.common.commands import command
from finetune.common.errors import Failure, UsageError
from finetune.config.cli import die_with_launcher, parse, run
from finetune.config.gate import EXIT_CODE, unmet
from finetune.config.options import option
from finetune.config.recipe import Recipe
from finetune.config.recipe_file import comments_by_key

if TYPE_CHECKING:
    from finetune.training.state import Hooks

USAGE = """usage: finetune train [RECIPE ...] [DATA] [--key=value ...]
       accelerate launch -m finetune.train [RECIPE ...] [DATA] [--key=value ...]

Trains a GPT-2 on all GPUs of this machine. RECIPE is a .yaml file or a name that `finetune recipes` lists; DATA is a
text or what finetune prepare wrote. Later recipes replace values of earlier ones, FINETUNE_KEY in the environment
replaces those, flags replace all, and the last mention of a flag counts. Defaults are in brackets; "derived" values
follow from other keys and are shown when training starts."""


@dataclass(frozen=True)
class Options(Recipe):
    num_processes: int | None = option(
        None, "processes of this machine [one for each GPU, or one]", ge=1, resume="free", derived=True, flag_only=True
    )
    launch: str | None = option(
        None, "a configuration of accelerate launch: fsdp2, another name or a file", resume="free", flag_only=True
    )
    dry_run: bool = option(False, "print the plan, as finetune plan does; nothing is written", resume="free")


def main(argv: list[str]) -> int | None:
    began = time.perf_counter()
    options, origins = parse(Options, argv, USAGE)
    recipe = options.as_recipe()
    origins = {field.name: origins[field.name] for field in fields(Recipe) if field.name in origins}
    die_with_launcher()
    console.go_on_without_output()
    from finetune.runtime import launcher

    launch = launcher.choose(recipe, options.num_processes, options.launch)
    if options.dry_run:
        return _print_plan(recipe, origins, launch.processes if launch else 1, began)
    if launch:
        return launcher.start(launch, argv)
    train_and_push(recipe, origins)
    return None


def _print_plan(recipe: Recipe, origins: dict[str, str], processes: int, began: float) -> int:
    """Print what finetune plan would; return its exit code."""
    from finetune.runs.datasets import temporary_texts
    from finetune.tools.plan import estimate, report, timing

    with temporary_texts():
        plan = timing.timed(estimate.plan(recipe, origins, processes=processes), began)
    shortage = report.shortage(plan)
    print(report.report(plan) + (f"\n\n{shortage}" if shortage else ""))
    return 1 if shortage else 0


def train_and_push(recipe: Recipe, origins: dict[str, str], hooks: Hooks | None = None) -> None:
    """Train, write the report, and push the best model if the recipe says so. Raises UsageError and Failure."""
    from finetune.runs.uploads import uploading
    from finetune.tools.report.after_training import report_after
    from finetune.training.state import Hooks
    from finetune.training.trainer import train
    from finetune.training.validation import figures

    with uploading(recipe) as uploads:  # whose failure is told last, and keeps nothing else from being done
        with report_after(recipe):
            hooks = uploads.after(hooks or Hooks()) if uploads else hooks
            with_hooks = {"hooks": hooks} if hooks else {}
            setup, state = train(recipe, comments_by_key(origins), **with_hooks)
        if lines := unmet(recipe.require, figures(state)):  # nothing is pushed then
            raise Failure("\n".join(f"require: {line}" for line in lines), EXIT_CODE)
        if recipe.push_to_hub and not recipe.eval_only and setup.device.accelerator.is_main_process:
            _export_and_push(recipe, recipe.push_to_hub)


def _export_and_push(recipe: Recipe, repository: str) -> None:
    """Export the best model to out_dir/export and push it, as finetune export would."""
    out_dir, to = Path(recipe.out_dir), Path(recipe.out_dir) / "export"
    by_hand = command("export", out_dir=out_dir, to=to, push_to_hub=repository)
    if not recipe.push:
        print(f"nothing is pushed to {repository} without --push=true; by hand: {by_hand}")
        return
    from finetune.publishing import export, hub

    try:
        exported = export.export(out_dir / "best", to, repository=repository)
    except (UsageError, Failure, OSError) as error:  # the model itself is saved
        place = f"The model is in {out_dir}/best; again: {by_hand}"
        raise Failure(f"{repository} was not pushed: {error}. {place}", 4) from error
    hub.push(exported, repository, again=by_hand)


if __name__ == "__main__":
    run(main)
