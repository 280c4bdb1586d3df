"""Let a model write: samples from a run, or from any model that init_from takes.

python -m finetune.sample --out_dir=out-mine --start="Once upon a time"
"""

from dataclasses import dataclass
from typing import Literal

from finetune.cli import UsageError, key, parse, run

USAGE = """usage: python -m finetune.sample --out_dir=OUT [--key=value ...]

Prints samples of the best model of a run."""


@dataclass
class Options:
    out_dir: str | None = key(None, "the run whose best model speaks")
    init_from: str | None = key(None, "another model instead: a Hub id, a Hugging Face directory or a nanoGPT ckpt.pt")
    start: str = key("\n", "the prompt, or FILE:path to read it from a file")
    num_samples: int = key(10, "how many samples")
    max_new_tokens: int = key(500, "tokens in each sample")
    temperature: float = key(0.8, "below 1.0 more predictable, above more random, 0 always the likeliest token")
    top_k: int = key(200, "draw from the k likeliest tokens only; 0 is all")
    top_p: float = key(1.0, "draw from the likeliest tokens that together have this probability; 1 is all")
    seed: int = key(1337, "the same seed gives the same samples")
    device: Literal["auto", "cpu", "cuda", "mps"] = key("auto", "where to compute")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = key("auto", "arithmetic of the matrix products")

    def problems(self):
        if (self.out_dir is None) == (self.init_from is None):
            yield "out_dir", "give --out_dir=OUT of a run, or --init_from=MODEL, one of them"
        for name, low in (("num_samples", 1), ("max_new_tokens", 1), ("temperature", 0), ("top_k", 0), ("seed", 0)):
            if getattr(self, name) < low:
                yield name, f"must be at least {low}, got {getattr(self, name)}"
        if self.seed >= 2**63:
            yield "seed", f"must be below 2**63, got {self.seed}"
        if not 0 < self.top_p <= 1:
            yield "top_p", f"must be above 0 and at most 1, got {self.top_p}"
        if not self.start:
            yield "start", "the prompt is empty; a model needs at least one token to go on from"


def main(argv):
    options, _ = parse(Options, argv, USAGE)
    from pathlib import Path

    if options.out_dir is not None and not Path(options.out_dir).is_dir():
        runs = sorted({str(path.parent.parent) for path in Path(".").glob("*/best/config.json")})
        known = f"; runs here: {', '.join(runs)}" if runs else ""
        raise UsageError(f"out_dir {options.out_dir}: no such directory{known}")
    if options.start.startswith("FILE:") and not Path(options.start[5:]).is_file():
        raise UsageError(f"{options.start[5:]}: cannot be read: there is no such file")

    from finetune.data import tokenizer as tokenizers
    from finetune.gpt import GPT, weights
    from finetune.training import machine
    from finetune.training.progress import print_samples

    source = weights.find(options.out_dir or options.init_from)
    tokenizer = tokenizers.from_directory(source if source.is_dir() else source.parent)
    tokenizer = tokenizer or _gpt2_for(weights.load_config(source), source)
    prompt = tokenizers.prompt_ids(tokenizer, options.start)
    device = machine.choose_device(options.device)
    if device.type == "cpu":
        machine.keep_memory()
        machine.use_all_cores()
    model = GPT.from_pretrained(source).to(device, machine.best_dtype(options.dtype, device)).eval()
    print(f"{_name(source)}, {model.num_parameters() / 1e6:.2f}M parameters, {tokenizer.describe()['name']}")
    print_samples(model, tokenizer, prompt, options, options.top_p)


def _gpt2_for(config, source):
    """GPT-2's own tokenizer for a model that came without one."""
    from finetune.data import tokenizer as tokenizers

    if config.vocab_size != 50257:
        raise UsageError(f"{source}: has no tokenizer, and {config.vocab_size:,} ids are not GPT-2's")
    return tokenizers.gpt2()


def _name(source):
    """Which weights speak: their place and, for a run, the update and validation loss they are from."""
    import json

    try:
        facts = json.loads((source / "finetune.json").read_text(encoding="utf-8"))
        return f"{source} (step {facts['step']}, val loss {facts['val_loss']:.4f})"
    except (OSError, ValueError, KeyError):
        return str(source)


if __name__ == "__main__":
    run(main)
