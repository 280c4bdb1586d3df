"""Show a run as one page: curves, data, recipe, samples before and after.

finetune report --out_dir=out-mine
"""

from collections.abc import Iterator
from dataclasses import dataclass

from finetune.common.errors import UsageError
from finetune.config.cli import parse, run
from finetune.config.options import option

USAGE = """usage: finetune report --out_dir=OUT [--to=FILE.html]

Writes one self-contained page, without network access or scripts. Training writes it when it ends; this command writes
it again, also for a run in progress."""


@dataclass
class Options:
    out_dir: str = option("out", "directory of the run")
    to: str | None = option(None, "file to write [report.html in out_dir]", derived=True)

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.to is not None and not self.to.endswith(".html"):
            yield "to", f"must be an .html file, got {self.to}"


def main(argv: list[str]) -> None:
    options, _ = parse(Options, argv, USAGE)
    from finetune.tools.report import diagnosis, html_report, record

    found = record.load(options.out_dir)
    try:
        path = html_report.write(found, diagnosis.diagnose(found), options.to)
    except OSError as error:
        place = options.to or found.out_dir
        raise UsageError(
            f"{place}: the report cannot be written there: {error.strerror}; --to=FILE.html is another place"
        ) from None
    print(f"report in {path}")


if __name__ == "__main__":
    run(main)
