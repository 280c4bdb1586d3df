"""Text to train.bin, val.bin and meta.json.

python -m finetune.prepare my.txt --out_dir=data/mine
"""

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from finetune.cli import key, parse, run
from finetune.data.columns import chosen_columns, problems_of_columns

PART = re.compile(r"([0-9]+)/([0-9]+)")
EXAMINED = 100_000_000  # bytes of text that the doctor examines unasked, in some twenty seconds

USAGE = """usage: python -m finetune.prepare SOURCE... --out_dir=DIR [--key=value ...]
       python -m finetune.prepare --out_dir=DIR --join=true

Tokenizes text into train.bin and val.bin. SOURCE is a file (txt, md, jsonl, json, csv, parquet; also compressed), a
directory of such files, a pattern, a data set of the Hub (owner/name or owner/name:config), shakespeare (downloaded) or
python_docs (part of Python)."""


@dataclass
class Options:
    sources: list = key([], "files, directories, patterns, data sets, or the names of texts")
    out_dir: str = key("", "directory to write; data/SOURCE when there is one source")
    tokenizer: str = key(
        "gpt2", "gpt2 (byte-level BPE), char (one id a character, for training from scratch), or a model directory"
    )
    text_column: str | None = key(
        None, "the column of a table that holds the text [text, or the only one that holds any]", derived=True
    )
    prompt_column: str | None = key(None, "the column of what is asked [prompt]", derived=True)
    completion_column: str | None = key(
        None, "the column of the answer, the only part that is learned [completion]", derived=True
    )
    messages_column: str | None = key(
        None, "the column of conversations, lists of {role, content} [messages]", derived=True
    )
    split: str = key("train", "the split of a Hub data set to read")
    revision: str | None = key(None, "the revision of a Hub data set")
    val_fraction: float = key(
        0.1, "share kept for validation: of the documents, or of a single text's characters, at its end"
    )
    val: str | None = key(None, "a source to validate on instead; several with commas between them")
    seed: int = key(1337, "decides which documents are kept for validation")
    overflow: Literal["split", "drop", "error"] = key(
        "split", "documents of more than max_tokens: cut in training, left out, or refused"
    )
    max_tokens: int = key(1024, "the longest document that is no overflow, end-of-text included; give your block_size")
    num_proc: int = key(0, "threads that tokenize; 0 is one a core")
    part: str | None = key(
        None, "2/4: tokenize the second of four parts only, on a machine of its own, into out_dir/part_2_of_4"
    )
    join: bool = key(False, "make one of all parts in out_dir, and remove them")
    doctor: Literal["auto", "true", "false"] = key(
        "auto", "examine the data at the end as finetune.doctor does; auto is for up to 100 MB of text"
    )

    def problems(self):
        if self.join:
            yield from self._problems_of_joining()
        elif not self.sources:
            yield (
                "SOURCE",
                (
                    "no text given; name a text file, a directory, a jsonl, csv or parquet file, or python_docs, which"
                    " needs no download"
                ),
            )
        if not 0 < self.val_fraction <= 0.5:
            yield "val_fraction", f"must be above 0 and at most 0.5, got {self.val_fraction}"
        if self.max_tokens < 2:
            yield "max_tokens", f"must be at least 2, got {self.max_tokens}"
        if self.num_proc < 0 or self.seed < 0:
            yield "num_proc" if self.num_proc < 0 else "seed", "must be at least 0"
        yield from problems_of_columns(self)
        if not self.out_dir and len(self.sources) > 1:
            yield "out_dir", "several sources need --out_dir=DIR"
        if self.part and not (match := PART.fullmatch(self.part)):
            yield "part", f"is the number of a part and of how many, such as 2/4, got {self.part}"
        elif self.part and not 1 <= int(match[1]) <= int(match[2]):
            yield "part", f"there is no part {match[1]} of {match[2]}"
        if self.part and self.doctor == "true":
            yield "doctor", "examines all of the data, after --join=true"

    def _problems_of_joining(self):
        if not self.out_dir:
            yield "join", "which parts? Give --out_dir=DIR, the directory they are in"
        if self.sources:
            yield "join", f"{self.sources[0]} has no effect with it, as the parts are tokenized already"
        for field in dataclasses.fields(self):
            if (
                field.name not in ("sources", "out_dir", "join", "doctor")
                and getattr(self, field.name) != field.default
            ):
                yield field.name, "has no effect with --join=true, as the parts are tokenized already"


def main(argv):
    options, _ = parse(Options, argv, USAGE)
    from finetune.data import doctor, parts
    from finetune.data.prepare import examine, prepare, summary

    out_dir = options.out_dir
    if options.join:
        dataset = parts.join(out_dir)
    else:
        out_dir = out_dir or f"data/{Path(options.sources[0]).stem}"
        choices = _choices(options, out_dir)
        if options.part:
            return _write_part(parts.write(tuple(map(int, options.part.split("/"))), **choices), out_dir)
        dataset = prepare(**choices)
    print(summary(dataset))
    print(f"wrote {out_dir}/train.bin, val.bin and meta.json ({dataset.meta['tokenizer']['name']})")
    if options.doctor == "true" or (
        options.doctor == "auto" and sum(dataset.num_bytes(split) for split in ("train", "val")) <= EXAMINED
    ):
        print(f"\n{doctor.report(examine(dataset))}")
    elif options.doctor == "auto":
        print(f"not examined, being large: python -m finetune.doctor {out_dir}")


def _choices(options, out_dir):
    """The arguments of `data.prepare.prepare` that the options mean."""
    tokenizer = options.tokenizer
    if tokenizer not in ("gpt2", "char") and not Path(tokenizer).is_dir():
        from finetune.gpt import weights

        tokenizer = weights.find(tokenizer)
    same = ("val_fraction", "seed", "num_proc", "max_tokens", "overflow", "split", "revision")
    val = options.val.split(",") if options.val else ()
    given = {
        "names": options.sources,
        "out_dir": out_dir,
        "tokenizer": tokenizer,
        "val": val,
        "columns": chosen_columns(options),
    }
    return {**given, **{name: getattr(options, name) for name in same}}


def _write_part(written, out_dir):
    directory, meta = written
    tokens = " and ".join(f"{facts['tokens']:,} of {split}" for split, facts in meta["splits"].items())
    print(f"wrote {directory}: tokens, {tokens}")
    print(f"when all parts are in {out_dir}: python -m finetune.prepare --out_dir={out_dir} --join=true")


if __name__ == "__main__":
    run(main)
