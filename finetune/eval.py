"""Measure a model: loss, perplexity, bits per byte and accuracy, with a baseline, and its answers and copies.

finetune eval --out_dir=out-mine --baseline=auto
"""

from __future__ import annotations

from typing import Any

from finetune.common.errors import Failure, UsageError
from finetune.common.json_output import other_output_to_stderr, print_json
from finetune.config.cli import check_run_dir, parse, run
from finetune.config.gate import EXIT_CODE
from finetune.config.run_directory import is_run
from finetune.evaluation.options import Options

USAGE = """usage: finetune eval --out_dir=OUT [--key=value ...]

Measures the best model of a run on the validation split of its data. The figures go to the screen and into
OUT/metrics.jsonl. With --require or --no_worse_than it ends with exit code 5 if the model is not good enough."""


def main(argv: list[str]) -> None:
    options, _ = parse(Options, argv, USAGE)
    measure(options)


def measure(options: Options) -> dict[str, Any]:
    """Print, record and return the figures. Raises UsageError, and Failure if the model is not good enough."""
    if problem := check_run_dir(options.out_dir):
        raise UsageError(problem)
    from finetune.evaluation import gate, table
    from finetune.evaluation.evaluator import evaluate
    from finetune.runs.datasets import changed_since

    earlier = gate.read_earlier(options)
    with other_output_to_stderr(options.json):
        event, main_process = evaluate(options)
        if earlier:
            gate.check_same_tokens(earlier, event, options.no_worse_than)
        if main_process:
            print(table.table(event))
            if options.out_dir is not None and is_run(options.out_dir):  # a model of other origin gets no files
                table.record(options.out_dir, event)
                if line := changed_since(options.out_dir, event["dataset"]):
                    print(line)
    if main_process and options.json:
        print_json(event)
    if main_process and (lines := gate.failures(options, event, earlier)):
        raise Failure("\n".join(lines), EXIT_CODE)
    return event


if __name__ == "__main__":
    run(main)
