"""Give a model away: a verified Hugging Face directory, a nanoGPT checkpoint, a repository on the Hub.

python -m finetune.export --out_dir=out-mine --to=mine
"""

import shlex
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

from finetune.common.errors import UsageError
from finetune.config.cli import check_run_dir, parse, run
from finetune.config.options import option
from finetune.config.recipe import repository_problem

USAGE = """usage: python -m finetune.export --out_dir=OUT --to=DIR [--key=value ...]

Writes the best model of a run to DIR, reads it back with the library it is meant for, compares, and only then puts it
in place."""


@dataclass
class Options:
    out_dir: str | None = option(None, "the run whose best model is exported")
    init_from: str | None = option(
        None, "another model instead: a Hub id, a Hugging Face directory or a nanoGPT ckpt.pt"
    )
    to: str | None = option(None, "the directory to write: a new one, or an earlier export, which is replaced")
    format: Literal["hf", "nanogpt", "peft"] = option(
        "hf",
        "hf is what transformers loads, nanogpt a ckpt.pt for nanoGPT's sample.py, peft the adapters of a LoRA run"
        " alone",
    )
    dtype: Literal["float32", "bfloat16", "float16"] = option("float32", "of the weights in the files")
    interpolate: str | None = option(
        None,
        "mix the run's base back in: auto keeps the best mixture on validation, 0.7 takes 0.7 of the finetuned weights",
    )
    push_to_hub: str | None = option(
        None, "USER/NAME: push the export there. The token is that of `hf auth login` or HF_TOKEN"
    )
    private: bool = option(True, "make the repository a private one")

    def problems(self):
        if (self.out_dir is None) == (self.init_from is None):
            yield "out_dir", "give --out_dir=OUT of a run, or --init_from=MODEL, one of them"
        if not self.to:
            yield "to", "give --to=DIR, the directory to write"
        if self.interpolate is not None:
            if self.out_dir is None:
                yield "interpolate", "only the model of a run has a base that is known; give --out_dir=OUT"
            if self.interpolate != "auto" and not _is_share(self.interpolate):
                yield "interpolate", f"expected auto or a number from 0 to 1, got {self.interpolate!r}"
        if self.format == "peft":
            if self.interpolate is not None:
                yield "interpolate", "mixes whole weights, and format=peft has none; leave one of them out"
            if self.dtype != "float32":
                yield "dtype", "format=peft writes adapters as they were trained, in float32"
            if find_spec("peft") is None:
                yield (
                    "format",
                    (
                        "peft needs the package peft, which reads the export back: pip install -e '.[lora]' where"
                        " finetune was cloned to"
                    ),
                )
        if self.push_to_hub is not None and (problem := repository_problem(self.push_to_hub)):
            yield "push_to_hub", problem
        if self.push_to_hub and self.format == "nanogpt":
            yield "push_to_hub", "format=nanogpt is for nanoGPT; the Hub takes format=hf"
        if not self.private and not self.push_to_hub:
            yield "private", "has no effect without --push_to_hub=USER/NAME"


def main(argv):
    options, _ = parse(Options, argv, USAGE)
    if problem := check_run_dir(options.out_dir):
        raise UsageError(problem)
    from finetune.gpt import pretrained
    from finetune.publishing import export, hub

    export.destination(options.to)
    source = pretrained.find(options.out_dir or options.init_from)
    if (
        options.format == "peft"
        and options.push_to_hub
        and (source / "adapter").is_dir()
        and not export.base_on_hub(source)
    ):
        raise UsageError(
            "push_to_hub: format=peft needs a base that others can load, and that of this run is not on the Hub; push"
            " format=hf instead"
        )
    written = export.export(source, options.to, options.format, options.dtype, options.interpolate, options.push_to_hub)
    if options.push_to_hub:
        hub.push(written, options.push_to_hub, options.private, again=f"python -m finetune.export {shlex.join(argv)}")


def _is_share(text):
    try:
        return 0 <= float(text) <= 1
    except ValueError:
        return False


if __name__ == "__main__":
    run(main)
