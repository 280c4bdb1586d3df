"""Compare the recipe of `plan --suggest` with the usual fixed settings, which are given more time, on a tiny
pretrained model.

    python scripts/suggestions.py [--shakespeare=FILE] [--out=docs/benchmarks]

A small GPT-2 with a vocabulary of its own is trained on the prose in Python's library: docstrings and the language
reference. It is finetuned on a small text (tiny Shakespeare, or a file like it) and on 5 million tokens of Python code,
once with the recipe of `finetune.plan --suggest=true` and once with the usual fixed settings for such a corpus: 10,000
or 5,000 updates of 64 or 32 blocks, and a cosine over all of them. The latter stop after a quarter more tokens than the
suggested run read. Losses are of the whole validation split."""

from __future__ import annotations

import ast
import contextlib
import os
import re
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.config.cli import parse, run
from finetune.config.options import option

if TYPE_CHECKING:
    from finetune.config.recipe import Recipe

ROOT = Path(__file__).parents[1]
CODE_TOKENS = 5_000_000
SHAPE = {"n_layer": 2, "n_head": 2, "n_embd": 64, "block_size": 1024}
VOCABULARY = 2048
MORE = 1.25  # of the tokens that the suggested run reads
VAL_FRACTION = {"small": 0.1, "medium": 0.02}  # enough tokens, and evaluations that take little time
ASKED = {"small": [], "medium": ["--epochs=2"]}  # five would take an hour on two cores
FIXED = {
    "small": {"learning_rate": 5e-5, "max_iters": 10000, "batch_size": 8, "gradient_accumulation_steps": 8},
    "medium": {"learning_rate": 3e-5, "max_iters": 5000, "batch_size": 4, "gradient_accumulation_steps": 8},
}


@dataclass
class Options:
    shakespeare: str = option("shakespeare", "the small text: a file, or shakespeare, which is downloaded")
    base_iters: int = option(300, "updates of the model before it is finetuned")
    code_tokens: int = option(CODE_TOKENS, "tokens of the larger corpus")
    out: str = option(str(ROOT / "docs" / "benchmarks"), "directory for the table")


def main(argv: list[str]) -> None:
    options, _ = parse(Options, argv, __doc__)
    out, back = Path(options.out).resolve(), os.getcwd()
    small = options.shakespeare if options.shakespeare == "shakespeare" else str(Path(options.shakespeare).resolve())
    with tempfile.TemporaryDirectory() as work:
        os.chdir(work)
        try:
            pretrain(options)
            rows = [
                *compare("tiny Shakespeare", "small", small),
                *compare("Python code", "medium", code(options.code_tokens)),
            ]
        finally:
            os.chdir(back)
    sys.path.insert(0, str(ROOT / "scripts"))
    from bench import write

    setting = (
        f"A GPT-2 of {SHAPE['n_layer']} layers, {SHAPE['n_embd']} wide, vocabulary {VOCABULARY:,}, context"
        f" {SHAPE['block_size']:,}, trained on the prose in Python's library for {options.base_iters} updates. The"
        f" fixed settings are given {MORE - 1:.0%} more tokens than the suggested run reads, of the same model, so at"
        " least its time; both losses are of the whole validation split, of the best evaluation. The larger corpus is"
        " read for two passes, as asked with --epochs=2, to keep this short"
    )
    given = (
        "--shakespeare=FILE" if arg.startswith("--shakespeare=") else arg
        for arg in argv
        if not arg.startswith("--out=")
    )
    command = " ".join(["python scripts/suggestions.py", *given])
    write(
        {
            "what": "suggestions",
            "title": "Suggested recipes against fixed settings",
            "setting": setting,
            "command": command,
            "rows": rows,
        },
        out,
    )


def pretrain(options: Options) -> None:
    """Write a tokenizer to bpe/ and a model to base/best/."""
    from tokenizers import ByteLevelBPETokenizer

    from finetune.data import sources
    from finetune.data.prepare import prepare

    texts = [docstrings(path) for path in library()]
    texts.append("".join(piece.text for piece in sources.find(["python_docs"])[0].chunks()))
    Path("prose.txt").write_text("\n\n".join(text for text in texts if text), encoding="utf-8")
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train(["prose.txt"], vocab_size=VOCABULARY, special_tokens=["<|endoftext|>"], show_progress=False)
    Path("bpe").mkdir()
    tokenizer.save("bpe/tokenizer.json")
    prepare(["prose.txt"], "data/prose", "bpe")
    scratch = {
        "max_iters": options.base_iters,
        "learning_rate": 2e-3,
        "batch_size": 8,
        "gradient_accumulation_steps": 1,
    }
    trained(init_from="scratch", dataset="data/prose", out_dir="base", **SHAPE, **scratch)


def compare(name: str, which: str, text: str) -> Iterator[dict[str, str]]:
    """The rows of the table about one text."""
    from finetune.config.recipe import Recipe
    from finetune.data.prepare import prepare
    from finetune.plan import main as plan

    data = prepare([text], f"data/{which}", "bpe", val_fraction=VAL_FRACTION[which])
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        plan(
            ["--init_from=base/best", f"--dataset=data/{which}", "--suggest=true", f"--to={which}.yaml", *ASKED[which]]
        )
    suggested, _ = parse(Recipe, [f"{which}.yaml", f"--out_dir=suggested_{which}"], "")
    ours = trained(suggested)
    tokens = ours.step * rows_of(suggested) * SHAPE["block_size"]
    fixed = Recipe(
        init_from="base/best", dataset=f"data/{which}", out_dir=f"fixed_{which}", warmup_iters=100, **FIXED[which]
    )
    updates = round(MORE * tokens / (rows_of(fixed) * SHAPE["block_size"]))
    theirs = trained(
        fixed,
        lr_decay_iters=fixed.max_iters,
        min_lr=fixed.learning_rate / 10,
        max_iters=updates,
        eval_interval=max(1, updates // 20),
    )
    for what, recipe, done in (("suggested", suggested, ours), ("fixed", fixed, theirs)):
        yield {
            "text": f"{name}, {data.meta['splits']['train']['tokens']:,} tokens",
            "recipe": what,
            "updates": (f"{done.step:,}" if what == "suggested" else f"{done.step:,} of {FIXED[which]['max_iters']:,}"),
            "tokens an update": f"{rows_of(recipe) * SHAPE['block_size']:,}",
            "learning rate": f"{recipe.learning_rate:g}",
            "tokens read": f"{done.step * rows_of(recipe) * SHAPE['block_size']:,}",
            "val loss before": f"{done.evaluations[0]['val_loss']:.4f}",
            "after": f"{done.best['val_loss']:.4f}",
        }


def rows_of(recipe: Recipe) -> int:
    return recipe.batch_size * recipe.gradient_accumulation_steps


def trained(recipe: Recipe | None = None, **values: Any) -> Any:
    """What `train` returns."""
    import dataclasses

    from finetune.config.recipe import Recipe
    from finetune.training.trainer import train

    _, state = train(dataclasses.replace(recipe, **values) if recipe else Recipe(**values))
    return state


def library() -> list[Path]:
    """The modules of Python's library, sorted."""
    return sorted(
        path for path in Path(sysconfig.get_paths()["stdlib"]).rglob("*.py") if "site-packages" not in path.parts
    )


def docstrings(path: Path) -> str:
    """The prose in a module."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError, ValueError):
        return ""
    nodes = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return "\n\n".join(text for node in ast.walk(tree) if isinstance(node, nodes) and (text := ast.get_docstring(node)))


def code(tokens: int) -> str:
    """A file with about so many tokens of code, without docstrings and comments."""
    from finetune.data import tokenizer as tokenizers

    encoder, count = tokenizers.from_directory(Path("bpe")), 0
    with open("code.txt", "w", encoding="utf-8") as file:
        for path in library():
            with contextlib.suppress(SyntaxError, UnicodeDecodeError, ValueError, RecursionError):
                tree = ast.parse(path.read_text(encoding="utf-8"))
                text = re.sub(r"(?m)^\s*(['\"]{1,3}).*?\1\s*$\n?", "", ast.unparse(tree)) + "\n\n"
                file.write(text)
                count += len(encoder.encode(text))
            if count >= tokens:
                return "code.txt"
    raise SystemExit(f"there are only {count:,} tokens of code here")


if __name__ == "__main__":
    run(main)
