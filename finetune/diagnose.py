"""Say what is wrong with a run, with the evidence and the command that would help.

python -m finetune.diagnose --out_dir=out-mine
"""

from dataclasses import dataclass

from finetune.config.cli import option, parse, run

USAGE = """usage: python -m finetune.diagnose --out_dir=OUT

Looks at what a run left, at its data and at its checkpoints for the troubles that finetuning has: out of memory, a
checkpoint that is missing, gibberish, a loss that does not fall, overfitting, slowness, and less than could be had.
Says nothing of a healthy run. What it finds does not change the exit code."""


@dataclass
class Options:
    out_dir: str = option("out", "the run to look at")
    verify: bool = option(True, "compare the checkpoints with their checksums, which reads them whole")


def main(argv):
    options, _ = parse(Options, argv, USAGE)
    from finetune.tools.report import diagnosis, record

    found = record.load(options.out_dir, options.verify)
    print(diagnosis.to_text(diagnosis.diagnose(found)) or f"{options.out_dir}: nothing to say")


if __name__ == "__main__":
    run(main)
