"""Put runs side by side: in what their recipes differ, what they reached, how fast.

python -m finetune.compare out-one out-other
"""

from dataclasses import dataclass

from finetune.cli import UsageError, key, parse, run

USAGE = """usage: python -m finetune.compare OUT OUT... [--to=FILE.html]

Prints a table of two or more runs, and writes it as a page with their curves where --to says."""


@dataclass
class Options:
    sources: list = key([], "the runs")
    to: str | None = key(None, "a page to write, with the curves of all runs")

    def problems(self):
        if len(self.sources) < 2:
            yield "OUT", f"two runs or more are compared, got {len(self.sources)}; name their out_dirs"
        if self.to is not None and not self.to.endswith(".html"):
            yield "to", f"names a page, which ends in .html, got {self.to}"


def main(argv):
    options, _ = parse(Options, argv, USAGE)
    from finetune.reporting import comparison, page, record

    runs = [record.load(out_dir) for out_dir in options.sources]
    print(comparison.screen(runs))
    if options.to:
        try:
            print(f"comparison in {page.save(comparison.html(runs), options.to)}")
        except OSError as error:
            raise UsageError(f"--to={options.to}: cannot be written: {error.strerror}") from None


if __name__ == "__main__":
    run(main)
