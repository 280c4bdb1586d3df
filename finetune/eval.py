"""Measure a model: loss, perplexity, bits per byte and accuracy, with a baseline, and its answers and copies.

python -m finetune.eval --out_dir=out-mine --baseline=auto
"""

from __future__ import annotations

from finetune.common.errors import UsageError
from finetune.common.json_output import other_output_to_stderr, print_json
from finetune.config.cli import check_run_dir, parse, run
from finetune.evaluation.options import Options

USAGE = """usage: python -m finetune.eval --out_dir=OUT [--key=value ...]

Measures the best model of a run on the validation split of its data. The figures go to the screen and into
OUT/metrics.jsonl."""


def main(argv: list[str]) -> None:
    options, _ = parse(Options, argv, USAGE)
    if problem := check_run_dir(options.out_dir):
        raise UsageError(problem)
    from finetune.evaluation import table
    from finetune.evaluation.evaluator import evaluate
    from finetune.runs.datasets import changed_since

    with other_output_to_stderr(options.json):
        event, main_process = evaluate(options)
        if main_process:
            print(table.table(event))
            if options.out_dir is not None:
                table.record(options.out_dir, event)
                if line := changed_since(options.out_dir, event["dataset"]):
                    print(line)
    if main_process and options.json:
        print_json(event)


if __name__ == "__main__":
    run(main)
