"""Show a run as one page: curves, data, recipe, before and after.

python -m finetune.report --out_dir=out-mine
"""

from dataclasses import dataclass

from finetune.common.errors import UsageError
from finetune.config.cli import option, parse, run

USAGE = """usage: python -m finetune.report --out_dir=OUT [--to=FILE.html]

Writes one page that holds everything and needs neither a network nor scripts. Training writes it by itself when it
ends; this writes it anew, also of a run that is still going on."""


@dataclass
class Options:
    out_dir: str = option("out", "the run to show")
    to: str | None = option(None, "where the page is written [report.html in out_dir]", derived=True)

    def problems(self):
        if self.to is not None and not self.to.endswith(".html"):
            yield "to", f"names a page, which ends in .html, got {self.to}"


def main(argv):
    options, _ = parse(Options, argv, USAGE)
    from finetune.tools.report import diagnosis, html_report, record

    found = record.load(options.out_dir)
    try:
        print(f"report in {html_report.write(found, diagnosis.diagnose(found), options.to)}")
    except OSError as error:
        raise UsageError(
            f"{options.to or found.out_dir}: the report cannot be written there: {error.strerror}"
        ) from None


if __name__ == "__main__":
    run(main)
