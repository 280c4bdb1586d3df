"""Put runs side by side: differences of their recipes, results, speed.

finetune compare out-one out-other
"""

from collections.abc import Iterator
from dataclasses import dataclass

from finetune.common.json_output import print_json
from finetune.config.cli import parse, run
from finetune.config.mirror import local_copy
from finetune.config.options import option

USAGE = """usage: finetune compare OUT OUT...

Prints a table of two or more runs."""


@dataclass
class Options:
    sources: list[str] = option([], "the runs")
    json: bool = option(False, "print one JSON document instead of text")

    def problems(self) -> Iterator[tuple[str, str]]:
        if len(self.sources) < 2:
            yield "OUT", f"two runs or more are compared, got {len(self.sources)}; name their out_dirs"


def main(argv: list[str]) -> None:
    options, _ = parse(Options, argv, USAGE)
    from finetune.tools.report import comparison, record

    runs = [record.load(local_copy(out_dir)) for out_dir in options.sources]
    if options.json:
        print_json(comparison.facts(runs))
    else:
        print(comparison.to_text(runs))


if __name__ == "__main__":
    run(main)
