"""Predict updates, memory, disk and time of a run before it starts.

finetune plan recipes/small.yaml --dataset=data/mine
"""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.common.errors import UsageError
from finetune.common.files import write_file
from finetune.common.json_output import other_output_to_stderr, print_json
from finetune.config.cli import parse, run
from finetune.config.options import option
from finetune.config.recipe import Recipe

USAGE = """usage: finetune plan [RECIPE.yaml] [--key=value ...]

Predicts updates, passes over the data, memory, disk and time of a training run, and gives advice. Takes the keys of
finetune train and, at the end of this list, its own. Does not need the model's weights. Exit code 1 if memory or disk
are too small."""


@dataclass(frozen=True)
class Options(Recipe):
    tokens: int | None = option(
        None, "plan for this many tokens of text instead of the dataset; val_fraction of them validate", ge=2
    )
    num_processes: int = option(1, "processes of the run, each with a device like this one, or all on this CPU", ge=1)
    quick: bool = option(False, "skip counting tokens and timing")
    explain: bool = option(False, "list every key with its value, its origin and its help")
    json: bool = option(False, "print one JSON document instead of text")
    suggest: bool = option(False, "write a recipe for this data and this machine")
    to: str | None = option(None, "with suggest: the file to write; without it the recipe is printed")
    find_lr: bool = option(False, "try some learning rates in short runs, compared by validation loss")
    trial_minutes: float = option(5.0, "with find_lr: time limit of all short runs together", gt=0)

    def problems(self) -> Iterator[tuple[str, str]]:
        for name, message in super().problems():
            if name != "dataset" or self.tokens is None:
                yield name, message
        steps, processes = self.gradient_accumulation_steps, self.num_processes
        if processes >= 1 and steps % processes:
            advice = f"--gradient_accumulation_steps={-(-steps // processes) * processes} can"
            yield "num_processes", f"gradient_accumulation_steps={steps} cannot be shared among {processes}; {advice}"
        if self.trial_minutes != 5.0 and not self.find_lr:
            yield "trial_minutes", "has no effect without --find_lr=true"
        if self.to is not None and not self.suggest:
            yield "to", "has no effect without --suggest=true"
        elif self.to is not None and not self.to.endswith((".yaml", ".yml")):
            yield "to", f"{self.to} is no recipe; its name ends with .yaml"
        elif self.to is not None and os.path.lexists(self.to):
            yield "to", f"{self.to} exists; name another file"
        elif self.to is not None and not (folder := Path(self.to).resolve().parent).is_dir():
            yield "to", f"there is no directory {folder}"
        if self.eval_only:
            yield "eval_only", "there is nothing to plan in a single evaluation"
        if self.find_lr and (self.tokens is not None or self.quick):
            other = "tokens" if self.tokens is not None else "quick"
            yield "find_lr", f"trains on real data, and that takes time; remove {other}"
        elif self.find_lr and self.init_from == "resume":
            yield "find_lr", "a resumed run has its rate already; give the model it began with as init_from"
        elif self.find_lr and self.learning_rate == 0:
            yield "find_lr", "tries rates around learning_rate, and there are none around 0; give another learning_rate"


def main(argv: list[str]) -> int:
    began = time.perf_counter()
    options, origins = parse(Options, argv, USAGE)
    with other_output_to_stderr(options.json):
        facts = make_plan(options, origins, began)
    if options.json:
        print_json(facts)
    return 1 if facts["shortage"] else 0


def make_plan(options: Options, origins: dict[str, str], began: float) -> dict[str, Any]:
    """Print the plan and what else was asked for; return it as JSON. Raises UsageError."""
    from finetune.tools.plan import estimate, lr_finder, report
    from finetune.tools.plan import suggest as suggests

    plan = estimate.plan(options.as_recipe(), origins, options.tokens, options.num_processes)
    if not options.quick:
        from finetune.tools.plan import timing

        plan = timing.timed(plan, began)
    print(report.report(plan))
    facts = report.facts(plan)
    if options.explain:
        print(f"\n{report.explanation(plan)}")
    learning_rate = None
    if options.find_lr:
        tried = lr_finder.find_lr(plan, options.trial_minutes)
        print(f"\n{tried.report()}")
        learning_rate = facts["learning_rate"] = tried.best
    if options.suggest:
        text = facts["suggestion"] = suggests.recipe(plan, options.to or "FILE.yaml", learning_rate)
        if options.to:
            try:
                write_file(options.to, text)
            except OSError as error:
                raise UsageError(f"to: {options.to} cannot be written: {error.strerror}") from None
        print(f"\nwrote {options.to}" if options.to else f"\n{text.rstrip()}")
    if shortage := report.shortage(plan):
        print(f"\n{shortage}")
    return facts


if __name__ == "__main__":
    run(main)
