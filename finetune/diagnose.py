"""Find what is wrong with a run, with evidence and the command that helps.

finetune diagnose --out_dir=out-mine
"""

import dataclasses
from dataclasses import dataclass

from finetune.common.json_output import print_json
from finetune.config.cli import parse, run
from finetune.config.options import option

USAGE = """usage: finetune diagnose --out_dir=OUT

Checks the files of a run, its data and its checkpoints for common problems of finetuning: out of memory, missing
checkpoints, gibberish, a loss that does not fall, overfitting, slow training, settings that could do better. A healthy
run has no findings. Findings do not change the exit code."""


@dataclass
class Options:
    out_dir: str = option("out", "directory of the run")
    verify: bool = option(True, "verify the checksums of the checkpoints, which reads all of their bytes")
    json: bool = option(False, "print one JSON document instead of text")


def main(argv: list[str]) -> None:
    options, _ = parse(Options, argv, USAGE)
    from finetune.tools.report import diagnosis, record

    found = record.load(options.out_dir, options.verify)
    findings = diagnosis.diagnose(found)
    if options.json:
        print_json({"out_dir": options.out_dir, "findings": [dataclasses.asdict(finding) for finding in findings]})
    else:
        print(diagnosis.to_text(findings) or diagnosis.no_findings(found))


if __name__ == "__main__":
    run(main)
