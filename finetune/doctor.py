"""What is wrong with a text or a prepared directory, and the text without it.

finetune doctor data/mine
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from finetune.common.json_output import other_output_to_stderr, print_json
from finetune.config.cli import parse, run
from finetune.config.options import option
from finetune.data.tables import ReadOptions

T = TypeVar("T")
USAGE = """usage: finetune doctor DIR|SOURCE... [--fix=dedup,leaks,encoding --out_dir=DIR] [--key=value ...]

Looks for duplicates, for documents in both train and val, and for encoding errors, and recommends a model for the
size of the corpus. DIR is what finetune prepare wrote; SOURCE is whatever it reads. Findings do not change the exit
code."""


@dataclass
class Options(ReadOptions):
    sources: list[str] = option([], "a prepared directory, or whatever prepare reads")
    val: str = option("", "validation sources, separated by commas; a prepared directory has its own")
    tokenizer: str = option("", "gpt2 or a model directory, to count tokens [gpt2]; a prepared directory has its own")
    fix: str = option("", "what to fix, some of dedup,leaks,encoding: writes cleaned documents to out_dir")
    json: bool = option(False, "print one JSON document instead of text")
    out_dir: str = option("", "directory for the cleaned documents, a new one or without such files", local=True)

    def problems(self) -> Iterator[tuple[str, str]]:
        if not self.sources:
            message = "nothing to examine; name a prepared directory, a UTF-8 text file, or python_docs,"
            yield "SOURCE", f"{message} which needs no download"
        if self.fix:
            yield from self._problems_of_fix()
        elif self.out_dir:
            yield "out_dir", "has no effect without --fix=dedup,leaks,encoding"
        yield from super().problems()

    def _problems_of_fix(self) -> Iterator[tuple[str, str]]:
        from finetune.tools.doctor.quality import FIXES

        for name in self.fixes():
            if name not in FIXES:
                nearest = difflib.get_close_matches(name, FIXES, 1)
                hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
                yield "fix", f"{name!r} is none of {', '.join(FIXES)}.{hint}"
        if not self.out_dir:
            yield "out_dir", "--fix needs --out_dir=DIR, where the cleaned documents go"

    def fixes(self) -> list[str]:
        return self.fix.split(",") if self.fix else []

    def names(self) -> list[str]:
        """The arguments that name the corpus."""
        val = [f"--val={self.val}"] if self.val else []
        return [*self.sources, *val, *self.flags()]


def main(argv: list[str]) -> None:
    options, _ = parse(Options, argv, USAGE)
    from finetune.data.prepare import report
    from finetune.tools.doctor import cleaning, quality
    from finetune.tools.doctor.clean_files import output_files, write_cleaned
    from finetune.tools.doctor.corpus import open_corpus
    from finetune.tools.doctor.report import page

    with other_output_to_stderr(options.json):
        corpus = open_corpus(options.sources, options.val, options, options.tokenizer)
        splits = corpus.read()
        outputs = output_files(options.out_dir, splits) if options.fix else {}
        facts = quality.examine(_with_progress(splits), corpus.tokenizer)
        facts["names"] = options.names()
        for line in report(corpus.sources):
            print(line)
        print(page(facts))
        if options.fix:
            cleaned = cleaning.clean(_with_progress(corpus.read_with_rows()), options.fixes(), corpus.recorders)
            print("\n" + write_cleaned(cleaned, outputs, corpus))
    if options.json:
        print_json({name: value for name, value in facts.items() if name != "sample"})


def _with_progress(splits: Mapping[str, Iterable[T]]) -> dict[str, Iterable[T]]:
    from finetune.common.progress import progress

    bars: dict[str, Iterable[T]] = {}
    for split, documents in splits.items():
        bars[split] = progress(documents, desc=split, unit=" documents", leave=False)
    return bars


if __name__ == "__main__":
    run(main)
