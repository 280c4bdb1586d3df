"""Text to train.bin, val.bin and meta.json.

python -m finetune.prepare my.txt --out_dir=data/mine
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from finetune.config.cli import parse, run
from finetune.config.options import option
from finetune.data.tables import chosen_columns, problems_of_columns

EXAMINED = 100_000_000  # bytes of text that the doctor examines unasked, in some twenty seconds
USAGE = """usage: python -m finetune.prepare SOURCE... --out_dir=DIR [--key=value ...]

Tokenizes text into train.bin and val.bin. SOURCE is a file (txt, md, jsonl, json, csv, parquet; also compressed), a
directory of such files, a pattern, a data set of the Hub (owner/name or owner/name:config), shakespeare (downloaded) or
python_docs (part of Python)."""


@dataclass
class Options:
    sources: list = option([], "files, directories, patterns, data sets, or the names of texts")
    out_dir: str = option("", "directory to write; data/SOURCE when there is one source")
    tokenizer: str = option(
        "gpt2", "gpt2 (byte-level BPE), char (one id a character, for training from scratch), or a model directory"
    )
    text_column: str | None = option(
        None, "the column of a table that holds the text [text, or the only one that holds any]", derived=True
    )
    prompt_column: str | None = option(None, "the column of what is asked [prompt]", derived=True)
    completion_column: str | None = option(
        None, "the column of the answer, the only part that is learned [completion]", derived=True
    )
    messages_column: str | None = option(
        None, "the column of conversations, lists of {role, content} [messages]", derived=True
    )
    split: str = option("train", "the split of a Hub data set to read")
    revision: str | None = option(None, "the revision of a Hub data set")
    val_fraction: float = option(
        0.1, "share kept for validation: of the documents, or of a single text's characters, at its end", gt=0, le=0.5
    )
    val: str | None = option(None, "a source to validate on instead; several with commas between them")
    seed: int = option(1337, "decides which documents are kept for validation", ge=0)
    overflow: Literal["split", "drop", "error"] = option(
        "split", "documents of more than max_tokens: cut in training, left out, or refused"
    )
    max_tokens: int = option(
        1024, "the longest document that is no overflow, end-of-text included; give your block_size", ge=2
    )
    num_proc: int = option(0, "threads that tokenize; 0 is one a core", ge=0)
    doctor: Literal["auto", "true", "false"] = option(
        "auto", "examine the data at the end as finetune.doctor does; auto is for up to 100 MB of text"
    )

    def problems(self):
        if not self.sources:
            yield (
                "SOURCE",
                (
                    "no text given; name a text file, a directory, a jsonl, csv or parquet file, or python_docs, which"
                    " needs no download"
                ),
            )
        yield from problems_of_columns(self)
        if not self.out_dir and len(self.sources) > 1:
            yield "out_dir", "several sources need --out_dir=DIR"


def main(argv):
    options, _ = parse(Options, argv, USAGE)
    from finetune.data.prepare import prepare, summary
    from finetune.tools.doctor import quality
    from finetune.tools.doctor.quality import examine_dataset

    out_dir = options.out_dir or f"data/{Path(options.sources[0]).stem}"
    dataset = prepare(**_choices(options, out_dir))
    print(summary(dataset))
    print(f"wrote {out_dir}/train.bin, val.bin and meta.json ({dataset.meta['tokenizer']['name']})")
    if options.doctor == "true" or (
        options.doctor == "auto" and sum(dataset.num_bytes(split) for split in ("train", "val")) <= EXAMINED
    ):
        print(f"\n{quality.report(examine_dataset(dataset))}")
    elif options.doctor == "auto":
        print(f"not examined, being large: python -m finetune.doctor {out_dir}")


def _choices(options, out_dir):
    """The arguments of `data.prepare.prepare` that the options mean."""
    tokenizer = options.tokenizer
    if tokenizer not in ("gpt2", "char") and not Path(tokenizer).is_dir():
        from finetune.gpt import pretrained

        tokenizer = pretrained.find(tokenizer)
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


if __name__ == "__main__":
    run(main)
