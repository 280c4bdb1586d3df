"""Export a model: a verified Hugging Face directory, a nanoGPT checkpoint, a repository on the Hub.

finetune export --out_dir=out-mine --to=mine
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from finetune.common.commands import command
from finetune.common.errors import UsageError
from finetune.config.cli import check_run_dir, parse, run
from finetune.config.options import option
from finetune.config.recipe import repository_problem
from finetune.config.run_directory import problem_of_model

LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]*")
LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*|multilingual|code")
TAG = re.compile(r"[\w.:-]{1,100}")
ONNX = ("onnx", "onnxscript", "onnxruntime")  # packages of format=onnx
BRANCH = re.compile(r"\w[\w./-]*(?<![./])")

USAGE = """usage: finetune export --out_dir=OUT --to=DIR [--key=value ...]

Writes the best model of a run to DIR. The files are read back with the library they are for, and compared, before DIR
appears."""


@dataclass
class Options:
    out_dir: str | None = option(None, "run directory; its best model is exported")
    init_from: str | None = option(
        None, "another model: a Hub id or id@revision, a Hugging Face directory or a nanoGPT ckpt.pt"
    )
    to: str | None = option(None, "directory to write: a new one, or an earlier export, which is replaced")
    format: Literal["hf", "nanogpt", "peft", "gguf", "onnx"] = option(
        "hf",
        "hf for transformers, nanogpt a ckpt.pt for nanoGPT's sample.py, peft only the adapters of a LoRA run, gguf one"
        " file for llama.cpp and Ollama, onnx as hf with a model.onnx",
    )
    dtype: Literal["float32", "bfloat16", "float16"] = option("float32", "dtype of the weights in the files")
    gguf_type: Literal["f32", "f16", "q8_0"] | None = option(
        None, "type of the weights in a GGUF file [f32]; with format=hf, also write such a file", derived=True
    )
    interpolate: str | None = option(
        None,
        "mix the run's base back in: auto keeps the best mixture on validation, 0.7 takes 0.7 of the finetuned weights",
    )
    push_to_hub: str | None = option(None, "USER/NAME: push the export there, with HF_TOKEN or after `hf auth login`")
    private: bool = option(True, "make the repository private")
    revision: str | None = option(None, "branch of the repository to push to, made if needed [main]", derived=True)
    overwrite: bool = option(False, "replace the model in the repository even if another program pushed it")
    license: str | None = option(
        None, "license for the card, as the Hub names it, such as mit [that of the base]", derived=True
    )
    language: str | None = option(None, "language of the texts, for the card: codes such as en or en,de")
    tags: str | None = option(None, "more tags for the card, separated by commas")
    space: str | None = option(None, "USER/NAME of a Space on the Hub that shows the model, made if needed")
    space_sdk: Literal["static", "gradio"] | None = option(
        None,
        "kind of Space: static, a page with the run's report, or gradio, which runs the model [static]",
        derived=True,
    )

    def problems(self) -> Iterator[tuple[str, str]]:
        if problem := problem_of_model(self.out_dir, self.init_from):
            yield "out_dir", problem
        if not self.to:
            yield "to", "give --to=DIR, the directory to write"
        if self.interpolate is not None:
            if self.out_dir is None:
                yield "interpolate", "only the model of a run has a known base; give --out_dir=OUT"
            if self.interpolate != "auto" and not _is_share(self.interpolate):
                yield "interpolate", f"expected auto or a number from 0 to 1, got {self.interpolate!r}"
        if self.format == "peft":
            if self.interpolate is not None:
                yield "interpolate", "mixes whole weights, and format=peft writes only adapters; give one of the two"
            if self.dtype != "float32":
                yield "dtype", "format=peft writes the adapters in float32, as they were trained"
            if find_spec("peft") is None:
                install = "pip install 'finetune-gpt2[lora]'"
                yield "format", f"peft needs the package peft, which reads the export back: {install}"
        if self.format == "onnx" and (missing := [name for name in ONNX if find_spec(name) is None]):
            yield "format", f"onnx needs the package {missing[0]}: pip install 'finetune-gpt2[onnx]'"
        yield from self._problems_of_gguf()
        if self.push_to_hub is not None and (problem := repository_problem(self.push_to_hub)):
            yield "push_to_hub", problem
        if self.push_to_hub and self.format == "nanogpt":
            yield "push_to_hub", "format=nanogpt is for nanoGPT; the Hub takes format=hf"
        for key in ("revision", "overwrite") if not self.push_to_hub else ():
            if getattr(self, key):
                yield key, "has no effect without --push_to_hub=USER/NAME"
        if not self.private and not self.push_to_hub and not self.space:
            yield "private", "has no effect without --push_to_hub=USER/NAME"
        yield from self._problems_of_card()
        yield from self._problems_of_space()

    def _problems_of_space(self) -> Iterator[tuple[str, str]]:
        if self.space is None:
            if self.space_sdk is not None:
                yield "space_sdk", "has no effect without --space=USER/NAME"
            return
        if problem := repository_problem(self.space):
            yield "space", problem
        if self.format not in ("hf", "onnx"):
            yield "space", f"shows a model of format=hf, and format={self.format} writes none"
        if self.space_sdk == "gradio" and not self.push_to_hub:
            yield "space_sdk", "a gradio Space loads the model from the Hub; give --push_to_hub=USER/NAME too"
        if self.space_sdk != "gradio" and not self.out_dir:
            ways = "give --out_dir=OUT, or --space_sdk=gradio with --push_to_hub=USER/NAME"
            yield "space", f"a static Space shows the report of a run; {ways}"

    def _problems_of_gguf(self) -> Iterator[tuple[str, str]]:
        if self.format != "gguf" and self.gguf_type is None:
            return
        if self.format in ("nanogpt", "peft"):
            yield "gguf_type", f"format={self.format} writes no GGUF file; give --format=hf or --format=gguf"
        if self.format == "gguf" and self.dtype != "float32":
            yield "dtype", "a GGUF file has its own types; give --gguf_type=f16 or q8_0"
        if self.format == "gguf" and self.push_to_hub:
            yield "push_to_hub", "takes format=hf; with --gguf_type=f16 the GGUF file goes along"
        if find_spec("gguf") is None:
            key = "format" if self.format == "gguf" else "gguf_type"
            yield key, "a GGUF file needs the package gguf: pip install 'finetune-gpt2[gguf]'"

    def _problems_of_card(self) -> Iterator[tuple[str, str]]:
        given = self.card()
        if given and self.format in ("nanogpt", "gguf"):
            yield next(iter(given)), f"goes on the model card, and format={self.format} writes none"
        if self.license is not None and not LICENSE.fullmatch(self.license):
            yield "license", f"expected the Hub's name of a license, such as mit or cc-by-4.0, got {self.license!r}"
        if wrong := [code for code in given.get("language", []) if not LANGUAGE.fullmatch(code)]:
            yield "language", f"expected codes such as en or pt-BR, with commas between them, got {wrong[0]!r}"
        if wrong := [tag for tag in given.get("tags", []) if not TAG.fullmatch(tag)]:
            yield "tags", f"expected words of letters, digits and -_.:, with commas between them, got {wrong[0]!r}"
        if self.revision is not None and not BRANCH.fullmatch(self.revision):
            yield "revision", f"expected the name of a branch, got {self.revision!r}"

    def card(self) -> dict[str, Any]:
        """What was chosen for the model card."""
        lists = {key: text.split(",") for key in ("language", "tags") if (text := getattr(self, key)) is not None}
        card: dict[str, Any] = {} if self.license is None else {"license": self.license}
        return card | {key: [part.strip() for part in parts] for key, parts in lists.items()}


def main(argv: list[str]) -> None:
    options, _ = parse(Options, argv, USAGE)
    export_and_push(options, argv)


def export_and_push(options: Options, argv: Sequence[str]) -> Path:
    """Write the export, push it if asked to, and return its directory. Raises UsageError and Failure; a failed push
    names the command with `argv` that tries again."""
    if problem := check_run_dir(options.out_dir):
        raise UsageError(problem)
    from finetune.publishing import export, hub, space

    if options.space:
        space.check(options.out_dir, options.space_sdk or "static")
    name, to, again = options.out_dir or options.init_from or "", options.to or "", command("export", *argv)
    written = export.export(
        name,
        to,
        options.format,
        options.dtype,
        options.interpolate,
        options.push_to_hub,
        options.gguf_type,
        options.card(),
    )
    commit = None
    if options.push_to_hub:
        commit = hub.push(written, options.push_to_hub, options.private, again, options.revision, options.overwrite)
    if options.space:
        run_dir = Path(options.out_dir) if options.out_dir else None
        shown = space.Shown(written, run_dir, options.push_to_hub, commit)
        space.publish(options.space, options.space_sdk or "static", shown, options.private, again)
    return written


def _is_share(text: str) -> bool:
    try:
        return 0 <= float(text) <= 1
    except ValueError:
        return False


if __name__ == "__main__":
    run(main)
