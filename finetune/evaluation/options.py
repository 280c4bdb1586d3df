"""The options of `finetune eval`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from finetune.config.gate import problems_of_conditions
from finetune.config.options import option
from finetune.config.recipe import MANY
from finetune.config.run_directory import is_run, problem_of_model
from finetune.evaluation.metrics import SCORES, find_problem

FIGURES = ("val_loss", "loss", "perplexity", "bits_per_byte", "accuracy")


@dataclass
class Options:
    out_dir: str | None = option(None, "run directory; its best model is measured")
    init_from: str | None = option(
        None, "another model: a Hub id or id@revision, a Hugging Face directory or a nanoGPT ckpt.pt"
    )
    dataset: str | None = option(None, "a prepared directory, or a text [that of the run]", derived=True)
    split: str = option("val", "val, train, or the name of another .bin of the dataset")
    block_size: int | None = option(None, "tokens of context [all that the model has]", ge=1, derived=True)
    stride: int | None = option(
        None, "tokens between the starts of two blocks; fewer give more context [block_size]", ge=1, derived=True
    )
    documents: bool | None = option(
        None, "read each document from its start [as the run was trained; true for instruction data]", derived=True
    )
    batch_size: int | None = option(
        None, "blocks in one forward pass; does not change results [chosen for the device]", ge=1, derived=True
    )
    baseline: str | None = option(None, "a model to compare on the same tokens; auto is the one the run started from")
    require: str = option(
        "", "conditions, separated by commas, such as 'val_loss<3.2,accuracy>=0.4'; exit code 5 if one is not met"
    )
    no_worse_than: str | None = option(
        None,
        "exit code 5 if the loss is above that of: baseline (the model the run started from, or that of --baseline), a "
        "model, or the JSON file of an earlier evaluation",
    )
    general: str | None = option(None, "a text or dataset unlike the data, to measure forgetting since the baseline")
    metrics: str = option(
        "", "metrics of answers to instruction data: bleu,chrf,rouge,exact_match, or the path of an evaluate metric"
    )
    completions: int = option(0, "number of prompts to answer, spread evenly over the split; 0 is all", ge=0)
    samples: int = option(0, "number of samples in which to look for copies of the training data", ge=0, le=10_000)
    start: str = option("\n", "prompt of these samples")
    max_new_tokens: int = option(256, "length limit of a completion or sample, in tokens", ge=1, le=MANY)
    temperature: float | None = option(None, "0 is greedy [0 for completions, 0.8 for samples]", ge=0, derived=True)
    top_k: int = option(200, "sample from the k likeliest tokens; 0 is all", ge=0)
    top_p: float = option(1.0, "sample from the likeliest tokens that sum to this probability; 1 is all", gt=0, le=1)
    json: bool = option(False, "print one JSON document instead of text")
    seed: int = option(1337, "seed of samples, and of the interval of the difference", ge=0, lt=2**63)
    device: Literal["auto", "cpu", "cuda", "mps"] = option("auto", "where to compute")
    dtype: Literal["float32", "bfloat16", "float16"] = option(
        "float32", "arithmetic of the matrix products; training evaluates in float32, on a GPU with TF32"
    )

    @property
    def compares_with_file(self) -> bool:
        return (
            bool(self.no_worse_than) and self.no_worse_than.endswith(".json") and not Path(self.no_worse_than).is_dir()
        )

    @property
    def other_model(self) -> str | None:
        """The model that is measured beside: that of `baseline`, or of `no_worse_than`."""
        if self.baseline is not None or self.no_worse_than is None or self.compares_with_file:
            return self.baseline
        return "auto" if self.no_worse_than == "baseline" else self.no_worse_than

    def problems(self) -> Iterator[tuple[str, str]]:
        if problem := problem_of_model(self.out_dir, self.init_from):
            yield "out_dir", problem
        elif self.init_from is not None and self.dataset is None:
            way = f"--out_dir={self.init_from} is a run, which knows its own"
            if not is_run(self.init_from):
                way = f"{self.init_from} is no run, which would know its own"
            yield "dataset", f"give --dataset=DIR; {way}"
        if not self.split or "/" in self.split or self.split.endswith(("_mask", "_documents")):
            yield "split", f"{self.split!r} is not the name of a split, such as val or train"
        yield from self._problems_of_gate()
        if self.general is not None and self.other_model is None:
            yield "general", "needs a baseline to measure forgetting; give --baseline=auto or --baseline=MODEL too"
        if self.completions and not self.metrics:
            yield "completions", "has no effect without --metrics=bleu,chrf,rouge,exact_match"
        if self.start != Options.start and not self.samples:
            yield "start", "has no effect without --samples=N"
        for name in ("max_new_tokens", "temperature", "top_k", "top_p"):
            if getattr(self, name) != getattr(Options, name) and not self.metrics and not self.samples:
                yield name, "has no effect without --metrics or --samples, for which text is generated"
        if self.samples > 1 and self.temperature == 0:
            same = f"temperature=0 would write the same sample {self.samples} times"
            yield "samples", f"{same}; give --samples=1 or another temperature"
        if self.metrics:
            problems = map(find_problem, self.metrics.split(","))
            yield from (("metrics", found) for found in problems if found)

    def _problems_of_gate(self) -> Iterator[tuple[str, str]]:
        others = {
            **dict.fromkeys(("baseline_loss", "difference"), "" if self.other_model else "--baseline=MODEL"),
            **dict.fromkeys(("general_loss", "kl"), "" if self.general else "--general=TEXT"),
            **dict.fromkeys(("copied", "longest"), "" if self.samples else "--samples=N"),
        }
        chosen = self.metrics.split(",")
        for metric, names in SCORES.items():
            others |= dict.fromkeys(names, "" if metric in chosen else f"--metrics={metric}")
        names = [*FIGURES, *(name for name, flag in others.items() if not flag)]
        if not any(metric.endswith(".py") for metric in chosen):  # which may measure anything
            for problem in problems_of_conditions(self.require, names, others):
                yield "require", problem
        if self.no_worse_than is not None and not self.no_worse_than.strip():
            yield "no_worse_than", "must not be empty; give baseline, a model, or the JSON of an earlier evaluation"
        elif self.compares_with_file and not Path(self.no_worse_than or "").is_file():
            yield "no_worse_than", f"{self.no_worse_than}: there is no such file"
        elif self.no_worse_than not in (None, "baseline", self.other_model) and not self.compares_with_file:
            yield "no_worse_than", f"only one model can be measured beside; --baseline={self.baseline} is one already"
