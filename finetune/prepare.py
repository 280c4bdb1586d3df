"""Text to train.bin, val.bin and meta.json.

python -m finetune.prepare my.txt --out_dir=data/mine
"""

from dataclasses import dataclass

from finetune.cli import key, parse, run

USAGE = """usage: python -m finetune.prepare SOURCE... --out_dir=DIR [--key=value ...]

Tokenizes UTF-8 text into train.bin and val.bin. SOURCE is a text file, shakespeare (downloaded) or python_docs (part of Python)."""


@dataclass
class Options:
    sources: list = key([], "text files, or the names of texts")
    out_dir: str = key("", "directory to write; data/SOURCE when there is one source")
    tokenizer: str = key("gpt2", "gpt2 (byte-level BPE), char (one id a character, for training from scratch), or a model directory")
    val_fraction: float = key(0.1, "share of the characters, at the end, kept for validation")

    def problems(self):
        if not self.sources:
            yield "SOURCE", "no text given; name a UTF-8 text file, shakespeare, or python_docs, which needs no download"
        if not 0 < self.val_fraction <= 0.5:
            yield "val_fraction", f"must be above 0 and at most 0.5, got {self.val_fraction}"
        if not self.out_dir and len(self.sources) > 1:
            yield "out_dir", "several sources need --out_dir=DIR"


def main(argv):
    options, _ = parse(Options, argv, USAGE)
    from pathlib import Path

    from finetune.data.prepare import prepare, summary

    if options.tokenizer not in ("gpt2", "char") and not Path(options.tokenizer).is_dir():
        from finetune.gpt import weights

        options.tokenizer = weights.find(options.tokenizer)
    out_dir = options.out_dir or f"data/{Path(options.sources[0]).stem}"
    dataset = prepare(options.sources, out_dir, options.tokenizer, options.val_fraction)
    print(summary(dataset))
    print(f"wrote {out_dir}/train.bin, val.bin and meta.json ({dataset.meta['tokenizer']['name']})")


if __name__ == "__main__":
    run(main)
