"""Measure a model: loss, perplexity, bits per byte and accuracy, beside a baseline, and what it answers and copies.

python -m finetune.eval --out_dir=out-mine --baseline=auto
"""

from dataclasses import dataclass
from typing import Literal

from finetune.common.errors import UsageError
from finetune.config.cli import check_run_dir, parse, run
from finetune.config.options import option

USAGE = """usage: python -m finetune.eval --out_dir=OUT [--key=value ...]

Measures the best model of a run on the validation split of its data. The figures go to the screen and into
OUT/metrics.jsonl."""


@dataclass
class Options:
    out_dir: str | None = option(None, "the run whose best model is measured")
    init_from: str | None = option(
        None, "another model instead: a Hub id, a Hugging Face directory or a nanoGPT ckpt.pt"
    )
    dataset: str | None = option(None, "a prepared directory, or a text [that of the run]", derived=True)
    split: str = option("val", "val, train, or the name of another .bin of the dataset")
    block_size: int | None = option(None, "tokens of context [all that the model has]", ge=1, derived=True)
    stride: int | None = option(
        None, "tokens from one block to the next; fewer give every token more context [block_size]", ge=1, derived=True
    )
    documents: bool | None = option(
        None,
        "every document from its own start instead of one block after the other [as the run was trained; of instruction"
        " data]",
        derived=True,
    )
    batch_size: int | None = option(
        None, "blocks in one forward pass; changes nothing but the speed [what the device likes]", ge=1, derived=True
    )
    baseline: str | None = option(None, "a model measured on the same tokens; auto is what the run started from")
    general: str | None = option(
        None, "a text or a prepared directory unlike the data: what was forgotten of it since the baseline"
    )
    metrics: str = option(
        "", "of the answers to instruction data, some of bleu,chrf,rouge,exact_match, or the path of an evaluate metric"
    )
    completions: int = option(0, "answer this many prompts, spread evenly over the split; 0 is all", ge=0)
    samples: int = option(0, "write this many samples, and tell what of them is copied from the training data", ge=0)
    start: str = option("\n", "prompt of these samples")
    max_new_tokens: int = option(256, "length of a completion or sample that does not end by itself", ge=1)
    temperature: float | None = option(
        None, "0 is always the likeliest token [0 for completions, 0.8 for samples]", ge=0, derived=True
    )
    top_k: int = option(200, "draw from the k likeliest tokens only; 0 is all", ge=0)
    top_p: float = option(
        1.0, "draw from the likeliest tokens that together have this probability; 1 is all", gt=0, le=1
    )
    seed: int = option(1337, "of what is drawn: samples, and units for the interval of the difference", ge=0, lt=2**63)
    device: Literal["auto", "cpu", "cuda", "mps"] = option("auto", "where to compute")
    dtype: Literal["float32", "bfloat16", "float16"] = option(
        "float32", "arithmetic of the matrix products; float32 is what training evaluates in"
    )

    def problems(self):
        if (self.out_dir is None) == (self.init_from is None):
            yield "out_dir", "give --out_dir=OUT of a run, or --init_from=MODEL, one of them"
        elif self.init_from is not None and self.dataset is None:
            yield "dataset", "give --dataset=DIR; only a run knows its own"
        if not self.split or "/" in self.split or self.split.endswith(("_mask", "_documents")):
            yield "split", f"{self.split!r} is no name of a split, such as val or train"
        if self.general is not None and self.baseline is None:
            yield (
                "general",
                "what was forgotten is told against a baseline; give --baseline=auto or --baseline=MODEL too",
            )
        if self.completions and not self.metrics:
            yield "completions", "has no effect without --metrics=bleu,chrf,rouge,exact_match"
        if self.start != Options.start and not self.samples:
            yield "start", "has no effect without --samples=N"
        for name in ("max_new_tokens", "temperature", "top_k", "top_p"):
            if getattr(self, name) != getattr(Options, name) and not self.metrics and not self.samples:
                yield name, "has no effect without --metrics or --samples, for which text is generated"
        if self.samples > 1 and self.temperature == 0:
            yield (
                "samples",
                (
                    f"temperature=0 would write the same sample {self.samples} times; give --samples=1 or another"
                    " temperature"
                ),
            )
        if self.metrics:
            from finetune.evaluation import metrics as evaluation_metrics

            yield from (
                ("metrics", problem)
                for name in self.metrics.split(",")
                if (problem := evaluation_metrics.problem(name))
            )


def main(argv):
    options, _ = parse(Options, argv, USAGE)
    if problem := check_run_dir(options.out_dir):
        raise UsageError(problem)
    from finetune.evaluation import table
    from finetune.evaluation.evaluator import evaluate

    event, main_process = evaluate(options)
    if main_process:
        print(table.table(event))
        if options.out_dir is not None:
            table.record(options.out_dir, event)


if __name__ == "__main__":
    run(main)
