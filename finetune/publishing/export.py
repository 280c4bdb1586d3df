"""A model as a directory for others: Hugging Face, peft, ONNX, llama.cpp, nanoGPT, read back before it appears."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import finetune
from finetune.common import files
from finetune.common.errors import UsageError
from finetune.common.files import read_json_object, write_json
from finetune.common.opened import read_whole
from finetune.config.run_directory import LOSS_PLOT
from finetune.data import nanogpt_meta
from finetune.data.tokenizer import CharTokenizer, Tokenizer
from finetune.gpt import GPT, GPTConfig, convert, lora, pretrained
from finetune.publishing import card as cards
from finetune.publishing import interpolate as interpolation
from finetune.publishing import llama_cpp, ollama, onnx_file, source_files, verify
from finetune.publishing.run_report import copy_report
from finetune.publishing.summary import summary
from finetune.runs.events import read_metrics
from finetune.runs.inputs import find_model, require_tokenizer
from finetune.runs.model_card import base_of, model_card, without_folders
from finetune.runs.model_ref import read_facts

VERIFICATION, CARD = "verification.json", "README.md"


@dataclass
class Source:
    """A model as it was read, all of it from one directory or file."""

    request: dict[str, Any]  # what decides the content of its export
    config: GPTConfig
    weights: dict[str, torch.Tensor]
    tokenizer: Tokenizer
    facts: dict[str, Any]  # finetune.json of a run
    adapter: lora.Adapter | None  # of format=peft
    compared: dict[str, Any]  # with transformers' reading of the directory


@dataclass
class Export:
    """What goes into the directory."""

    adapter: lora.Adapter | None
    run_dir: Path | None
    config: GPTConfig
    weights: dict[str, torch.Tensor]
    tokenizer: Tokenizer
    facts: dict[str, Any]  # finetune.json
    verified: dict[str, Any]  # verification.json
    base: GPT | None = None  # of format=peft


def export(
    name: str | Path,
    to: str | Path,
    format: str = "hf",
    dtype: str = "float32",
    interpolate: str | None = None,
    repository: str | None = None,
    gguf_type: str | None = None,
    card: dict[str, Any] | None = None,
) -> Path:
    """Write the model `name` to the directory `to`, verify it, and return the directory.

    `repository` is the name on the model card, by default that of the directory, and `card` its license, language and
    tags. With `gguf_type` there is a GGUF file too. What its owner wrote in the card of an earlier export stays. The
    same export is not written twice. Raises UsageError, or Failure when files differ; then `to` does not change."""
    to = destination(to)
    source = pretrained.find(name)
    if to == (source.parent if source.is_file() else source).resolve():
        raise UsageError(f"to {to}: holds the model itself, which is not replaced; choose another directory")
    is_run = (source / "finetune.json").is_file() and (source.parent / "metrics.jsonl").is_file()
    run_dir = source.parent if is_run else None
    asked: dict[str, Any] = {"format": format, "dtype": dtype, "interpolate": interpolate}
    gguf_type = gguf_type or ("f32" if format == "gguf" else None)
    asked |= {"name": repository or to.name, "gguf_type": gguf_type, **(card or {})}
    asked |= {"llama_cpp": llama_cpp.installed()} if gguf_type else {}

    def read(place: Path) -> Source | None:
        if format == "peft":
            _check_adapters(place, run_dir, is_pushed=repository is not None)
        source_files.check(place)
        request = source_files.describe(place, run_dir, asked)
        if _read_verification(to).get("request") == request and files.find_damage(to) is None:
            return None
        return _read(place, source, run_dir, request)

    may_change = source.is_dir() and not source_files.is_commit(source)
    found = read_whole(source, read, source_files.KINDS) if may_change else read(source)
    if found is None:
        print(f"{to} is this export already")
        return to
    content = _gather(source, run_dir, found)
    before = _edited_card(to)
    files.write_directory(to, lambda work: _write(work, content, to.name, before))
    print(summary(to, content.verified))
    return to


def destination(to: str | Path) -> Path:
    """`to` as an absolute path: new, empty, or an earlier export. Raises UsageError when it cannot be written."""
    path = Path(os.path.expanduser(to)).resolve()
    if path == Path.cwd():
        raise UsageError(f"to {to}: is the working directory; name one to be made")
    if path.exists() and not path.is_dir():
        raise UsageError(f"to {to}: is a file; name a directory to be made")
    if path.is_dir() and any(path.iterdir()):
        if not _read_verification(path):
            problem = "is there already and was not written by an export, so it is not overwritten"
            raise UsageError(f"to {to}: {problem}; choose another directory")
        ours = {*(Path(name).parts[0] for name in files.files_in_manifest(path)), files.MANIFEST}
        if others := sorted({one.name for one in path.iterdir()} - ours):
            problem = f"holds {', '.join(others[:5])} besides an earlier export, which replacing it would remove"
            raise UsageError(f"to {to}: {problem}; move that away first")
    parent = next(parent for parent in path.parents if parent.exists())
    if not parent.is_dir():
        raise UsageError(f"to {to}: cannot be written: {parent} is a file")
    if not os.access(parent, os.W_OK):
        raise UsageError(f"to {to}: cannot be written: {parent} is not writable")
    return path


def _check_adapters(source: Path, run_dir: Path | None, is_pushed: bool) -> None:
    """Raise UsageError unless the model has adapters, over a base that others can load if they are pushed."""
    if run_dir is None or not (source / "adapter" / "adapter_config.json").is_file():
        raise UsageError(f"format: peft exports the adapters of a run with lora_rank, and {source} has none")
    if is_pushed and not read_facts(source).get("base_model"):
        problem = "format=peft needs a base that others can load, and that of this run is not on the Hub"
        raise UsageError(f"push_to_hub: {problem}; push format=hf instead")


def _read(place: Path, source: Path, run_dir: Path | None, request: dict[str, Any]) -> Source:
    """Load the model at `place`, where `source` was opened, with its tokenizer. Raises UsageError."""
    model = find_model(place)
    config, weights = pretrained.load(place)
    tokenizer = require_tokenizer(model)
    if model.tokenizer is None and not isinstance(tokenizer, CharTokenizer):
        print(f"{source} has no tokenizer; its {config.vocab_size:,} ids are GPT-2's, so GPT-2's tokenizer is exported")
    elif tokenizer.vocab_size > config.vocab_size:
        beyond = f"its tokenizer has {tokenizer.vocab_size:,} ids, and its embedding {config.vocab_size:,}"
        raise UsageError(f"{source}: {beyond}; the last tokens would have no meaning")
    adapter = lora.read(place / "adapter", config) if request["format"] == "peft" else None
    # only a run's figures and base are believed
    facts = model.facts if run_dir else {}
    config = dataclasses.replace(config, dropout=0.0)
    return Source(request, config, weights, tokenizer, facts, adapter, verify.source(place, config, weights))


def _gather(source: Path, run_dir: Path | None, found: Source) -> Export:
    """Interpolate and round a model. Raises UsageError."""
    request, config, weights, facts = found.request, found.config, found.weights, found.facts
    format, dtype, share = request["format"], request["dtype"], request["interpolate"]
    verified: dict[str, Any] = {"finetune": finetune.__version__, "request": request, "versions": verify.versions()}
    verified |= {"format": format, "dtype": dtype, "source": found.compared}
    if share:
        if run_dir is None:
            raise UsageError(f"interpolate: {source} is not the model of a run, so its base is unknown; give --out_dir")
        weights, mixture = interpolation.interpolate(share, config, weights, facts, run_dir)
        kept = {key: facts[key] for key in ("step", "init_from", "base_model", "versions", "git") if key in facts}
        facts = {**kept, "val_loss": dict(mixture["losses"])[mixture["weight"]], "interpolation": mixture}
        verified["interpolation"] = mixture
    base = None
    if format == "peft":
        base = GPT.from_state(config, interpolation.load_base("format=peft", config, facts))
        origin = pretrained.find(str(facts["init_from"]))
        verified["base"] = verify.source(origin, *pretrained.load(origin))
    if "init_from" in facts:
        facts = {**facts, "init_from": without_folders(facts["init_from"])}  # local paths stay private
    if dtype != "float32":
        weights, verified["rounding"] = _round(config, weights, dtype)
    return Export(found.adapter, run_dir, config, weights, found.tokenizer, facts, verified, base)


@torch.no_grad()
def _round(config: GPTConfig, weights: dict[str, torch.Tensor], dtype: str) -> tuple[dict[str, torch.Tensor], float]:
    """`(weights, difference)`: the weights rounded to `dtype`, in float32, and the largest change of a logit. Raises
    UsageError when they overflow."""
    rounded = {name: tensor.to(getattr(torch, dtype)).float() for name, tensor in weights.items()}
    if not all(tensor.isfinite().all() for tensor in rounded.values()):
        raise UsageError(f"dtype: some weights are too large for {dtype}; use bfloat16 or float32")
    before, after = (GPT.from_state(config, tensors).eval() for tensors in (weights, rounded))
    difference, _ = verify.compare(before, after, [verify.every_position(config)])
    return rounded, difference


def _edited_card(to: Path) -> str | None:
    """The card of an earlier export that may hold words of its owner; None without one."""
    path = to / CARD
    if not path.is_file():
        return None
    text = files.read_text(path)
    return text if cards.has_sections(text) or files.sha256_of(path) != files.sha256_in_manifest(to, CARD) else None


def _write(work: Path, content: Export, directory: str, card: str | None) -> None:
    """Fill the directory of an export, and verify it. `card` is that of an earlier one."""
    weights, verified, format = content.weights, content.verified, content.verified["format"]
    in_dtype = {name: tensor.to(getattr(torch, verified["dtype"])) for name, tensor in weights.items()}
    if format == "nanogpt":
        _write_nanogpt(work, content, in_dtype, directory)
        verified |= verify.nanogpt(work / "ckpt.pt", content.config, weights)
    elif format != "gguf":
        if content.adapter is not None:
            # over the Hub's base if the run started from one
            lora.write(work, content.adapter, base_of(content.facts))
        else:
            pretrained.save(work, in_dtype, content.config)
        content.tokenizer.save(work, content.config.block_size)
        model = GPT.from_state(content.config, weights).eval()
        verified |= verify.hugging_face(work, model, content.tokenizer, content.base)
        if format == "onnx":
            verified["onnx"] = onnx_file.write(work, model)
        write_json(work / "finetune.json", content.facts)
    if kind := verified["request"]["gguf_type"]:
        title = verified["request"]["name"].split("/")[-1]
        verified["gguf"] = ollama.write(work, title, content.config, weights, content.tokenizer, kind)
    if format in ("hf", "peft", "onnx"):
        _write_card(work, content, card)
    write_json(work / VERIFICATION, verified)


def _write_card(work: Path, content: Export, before: str | None) -> None:
    """Write README.md, with the owner's words of the card `before`, and of a run its loss curve and report."""
    facts, verified, run_dir = content.facts, content.verified, content.run_dir
    name, picture = verified["request"]["name"], None
    events = read_metrics(run_dir / "metrics.jsonl", print) if run_dir else []
    if run_dir and any(event["event"] == "eval" for event in events):
        from finetune.runs.loss_plot import plot_loss

        picture = LOSS_PLOT
        plot_loss(run_dir, work / picture, title=name)
    started = [event for event in events if event["event"] in ("start", "resume")]
    if run_dir and started:
        verified |= copy_report(run_dir, work, started[-1].get("recipe", {}))
    title = name.split("/")[-1]
    card = model_card(title, name, content.config, facts, events, content.tokenizer, picture, verified)
    card = card if before is None else cards.merge(before, card, chosen_keys(verified))
    (work / CARD).write_text(card, encoding="utf-8")


def chosen_keys(verified: dict[str, Any]) -> list[str]:
    """The keys of the card's metadata that were chosen on the command line."""
    return [key for key in cards.CHOSEN if verified.get("request", {}).get(key)]


def _write_nanogpt(work: Path, content: Export, weights: dict[str, torch.Tensor], directory: str) -> None:
    """Write ckpt.pt, and meta.pkl for characters. Raises UsageError for a model that nanoGPT does not have."""
    tokenizer, facts = content.tokenizer, content.facts
    name = tokenizer.describe()["name"]
    if not isinstance(tokenizer, CharTokenizer) and name != "GPT-2 BPE":
        raise UsageError(f"format: nanoGPT's sample.py knows GPT-2's BPE and characters, and this model has a {name}")
    try:
        checkpoint = convert.to_nanogpt(weights, content.config)
    except ValueError as error:
        raise UsageError(f"format: nanogpt cannot hold this model: {error}") from None
    if isinstance(tokenizer, CharTokenizer):
        checkpoint["config"]["dataset"] = directory  # where sample.py looks for meta.pkl
        (work / "meta.pkl").write_bytes(nanogpt_meta.write(tokenizer.chars))
    checkpoint |= {"iter_num": facts.get("step", 0), "best_val_loss": facts.get("val_loss", 1e9)}
    torch.save(checkpoint, work / "ckpt.pt")


def _read_verification(directory: Path) -> dict[str, Any]:
    """The verification.json of an earlier export, {} if there is none."""
    found = read_json_object(directory / VERIFICATION)
    return found if "request" in found else {}
