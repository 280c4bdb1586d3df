"""What a run will take and come to, before it is run.

python -m finetune.plan recipes/small.yaml --dataset=data/mine
"""

import dataclasses
import math
import time
from dataclasses import dataclass
from pathlib import Path

from finetune.config.cli import option, parse, run
from finetune.config.recipe import Recipe

USAGE = """usage: python -m finetune.plan [RECIPE.yaml] [--key=value ...]

Tells what training as the recipe says takes: updates, passes over the data, memory, disk and time, and whether it makes
sense. Takes the keys of finetune.train and, at the end of this list, its own. The model's weights are not needed. Ends
with exit code 1 when memory or disk do not suffice."""


@dataclass
class Options(Recipe):
    tokens: int | None = option(
        None, "plan for so many tokens of text, of which val_fraction validate, instead of the dataset"
    )
    num_processes: int = option(1, "processes of the run, each with a device like this one, or all on this CPU")
    quick: bool = option(False, "count and time nothing")
    explain: bool = option(False, "list every key with its value, where that is from and its help")
    suggest: bool = option(False, "write a recipe for this data and this machine")
    to: str | None = option(None, "with suggest: the file to write; without, it is printed")
    find_lr: bool = option(False, "try some learning rates in short runs, judged by validation loss")
    trial_minutes: float = option(5.0, "with find_lr: the longest all of them may take together")

    def problems(self):
        for name, message in super().problems():
            if name != "dataset" or self.tokens is None:
                yield name, message
        if self.tokens is not None and self.tokens < 2:
            yield "tokens", f"must be at least 2, got {self.tokens}"
        if self.num_processes < 1:
            yield "num_processes", f"must be at least 1, got {self.num_processes}"
        elif self.gradient_accumulation_steps % self.num_processes:
            more = -(-self.gradient_accumulation_steps // self.num_processes) * self.num_processes
            advice = f"cannot be shared among {self.num_processes}; --gradient_accumulation_steps={more} can"
            yield "num_processes", f"gradient_accumulation_steps={self.gradient_accumulation_steps} {advice}"
        if not 0 < self.trial_minutes < math.inf:
            yield "trial_minutes", f"must be above 0, got {self.trial_minutes}"
        elif self.trial_minutes != 5.0 and not self.find_lr:
            yield "trial_minutes", "has no effect without --find_lr=true"
        if self.to is not None and not self.suggest:
            yield "to", "has no effect without --suggest=true"
        if self.eval_only:
            yield "eval_only", "there is nothing to plan in a single evaluation"
        if self.find_lr and (self.tokens is not None or self.quick):
            yield (
                "find_lr",
                (
                    "trains on data that is there, and takes its time; remove"
                    f" {'tokens' if self.tokens is not None else 'quick'}"
                ),
            )
        elif self.find_lr and self.init_from == "resume":
            yield "find_lr", "a resumed run has its rate already; give the model it began with as init_from"

    def recipe(self):
        """The part that is finetune.train's."""
        return Recipe(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Recipe)})


def main(argv):
    began = time.perf_counter()
    options, origins = parse(Options, argv, USAGE)
    from finetune.tools.plan import estimate, lr_finder, report
    from finetune.tools.plan import suggest as suggests

    if options.to:
        suggests.check_target(options.to)
    plan = estimate.plan(options.recipe(), origins, options.tokens, options.num_processes)
    if not options.quick:
        from finetune.tools.plan import timing

        plan = timing.timed(plan, began)
    print(report.report(plan))
    if options.explain:
        print(f"\n{report.explanation(plan)}")
    learning_rate = None
    if options.find_lr:
        tried = lr_finder.find_lr(plan, options.trial_minutes)
        print(f"\n{tried.report()}")
        learning_rate = tried.best
    if options.suggest:
        text = suggests.recipe(plan, options.to or "FILE.yaml", learning_rate)
        if options.to:
            Path(options.to).write_text(text, encoding="utf-8")
        print(f"\nwrote {options.to}" if options.to else f"\n{text.rstrip()}")
    if shortage := report.shortage(plan):
        print(f"\n{shortage}")
        return 1
    return 0


if __name__ == "__main__":
    run(main)
