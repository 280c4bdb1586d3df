"""A model as a directory for others: Hugging Face's, or nanoGPT's checkpoint. What is written is read back and compared
before it is published."""

import dataclasses
import hashlib
import json
import os
import shutil
from pathlib import Path

import torch

import finetune
from finetune.common import files as common_files
from finetune.common.errors import UsageError
from finetune.data import bpe_files, nanogpt_meta
from finetune.data import tokenizer as tokenizers
from finetune.gpt import GPT, convert, pretrained
from finetune.publishing import verify
from finetune.publishing.interpolate import base_of
from finetune.publishing.interpolate import interpolate as mix
from finetune.runs.events import read_metrics
from finetune.runs.loss_plot import plot_loss
from finetune.runs.model_card import model_card, without_folders

VERIFICATION = "verification.json"
READ = (
    *pretrained.MODEL_FILES,
    "adapter/*",
    *bpe_files.FILES,
    "pytorch_model*.bin",
    "meta.pkl",
)  # of a source, what an export depends on


def export(source, to, format="hf", dtype="float32", interpolate=None, name=None, say=print):
    """Write the model at `source` (what `weights.find` gives) to the directory `to`, verified, and return it as a Path.

    `name` is what the card calls it, by default that of the directory. An export of the same things that is there
    already, whole, stays as it is. Raises UsageError, or Failure when what was written is not what was meant; then `to`
    is as it was."""
    source, to = Path(source), destination(to)
    run_dir = (
        source.parent if (source / "finetune.json").is_file() and (source.parent / "metrics.jsonl").is_file() else None
    )
    if (source / common_files.MANIFEST).is_file() and (problem := common_files.find_damage(source)):
        raise UsageError(f"{source}: {problem}")
    request = _request(source, run_dir, format=format, dtype=dtype, interpolate=interpolate, name=name or to.name)
    if _verified(to).get("request") == request and common_files.find_damage(to) is None:
        say(f"{to} is this export already")
        return to

    config, state = pretrained.load(source)
    config = dataclasses.replace(config, dropout=0.0)
    tokenizer = _tokenizer(source, config, say)
    facts = common_files.read_json_object(source / "finetune.json") if source.is_dir() else {}
    events = read_metrics(run_dir / "metrics.jsonl") if run_dir else []
    if interpolate:
        if not run_dir:
            raise UsageError(
                f"interpolate: {source} is not the model of a run, so nobody knows its base; give --out_dir=OUT"
            )
        state, mixture = mix(interpolate, config, state, facts, events, say)
        kept = {key: facts[key] for key in ("step", "init_from", "base_model") if key in facts}
        facts = {**kept, "val_loss": dict(mixture["losses"])[mixture["weight"]], "interpolation": mixture}
    base = None
    if format == "peft":
        if not (run_dir and (source / "adapter" / "adapter_config.json").is_file()):
            raise UsageError(f"format: peft exports the adapters of a run with lora_rank, and {source} has none")
        base = GPT.from_state(config, base_of("format=peft", config, facts))
    if "init_from" in facts:
        facts["init_from"] = without_folders(
            facts["init_from"]
        )  # nobody else needs to know the folders of this computer
    rounded, moved = _rounded(config, state, dtype)
    verified = {
        "finetune": finetune.__version__,
        "request": request,
        "versions": verify.versions(),
        "format": format,
        "dtype": dtype,
    } | moved
    if "interpolation" in facts:
        verified["interpolation"] = facts["interpolation"]

    def fill(work):
        if format == "nanogpt":
            verified.update(_fill_nanogpt(work, config, rounded, dtype, tokenizer, facts, to.name))
        else:
            if base:
                _fill_adapter(work, source / "adapter", facts.get("base_model"))
            else:
                pretrained.save(
                    work, {key: tensor.to(getattr(torch, dtype)) for key, tensor in rounded.items()}, config
                )
            tokenizer.save(work, config.block_size)
            verified.update(verify.hugging_face(work, GPT.from_state(config, rounded).eval(), tokenizer, base))
            picture = "loss.png" if any(event["event"] == "eval" for event in events) else None
            if picture:
                plot_loss(run_dir, work / picture, title=request["name"])
            card = model_card(
                request["name"].split("/")[-1], request["name"], config, facts, events, tokenizer, picture, verified
            )
            (work / "README.md").write_text(card, encoding="utf-8")
            common_files.write_json(work / "finetune.json", facts)
        common_files.write_json(work / VERIFICATION, verified)

    common_files.sweep_target(to)
    common_files.write_directory(to, fill)
    say(_summary(to, verified))
    return to


def destination(to):
    """`to` as an absolute Path that may be written: new, empty, or an earlier export. Raises UsageError."""
    path = Path(to).expanduser().resolve()
    if path == Path.cwd():
        raise UsageError(f"to {to}: is the working directory; name one to be made")
    if path.exists() and not path.is_dir():
        raise UsageError(f"to {to}: is a file; name a directory to be made")
    if path.is_dir() and any(path.iterdir()) and not _verified(path):
        raise UsageError(
            f"to {to}: is there already and was not written by an export, so it is not overwritten; choose another"
            " directory"
        )
    others = (
        sorted({one.name for one in path.iterdir()} - {*common_files.files_in_manifest(path), common_files.MANIFEST})
        if path.is_dir()
        else []
    )
    if others and _verified(path):
        raise UsageError(
            f"to {to}: holds {', '.join(others[:5])} besides an earlier export, which replacing it would remove; move"
            " that away first"
        )
    there = next(parent for parent in path.parents if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise UsageError(f"to {to}: cannot be written: {there} is {'not writable' if there.is_dir() else 'a file'}")
    return path


def _request(source, run_dir, **asked):
    """What an export is made from, so that the same one is recognised."""
    files = sorted({path for pattern in READ for path in source.glob(pattern)}) if source.is_dir() else [source]
    files += [run_dir / "metrics.jsonl"] if run_dir else []
    sums = {path.name: common_files.sha256_of(path) for path in files if path.is_file()}
    made_from = hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()
    return {"made_from": made_from, "versions": {"finetune": finetune.__version__, **verify.versions()}, **asked}


def _tokenizer(source, config, say):
    """The tokenizer that goes with a model. Raises UsageError when there is none."""
    folder = source if source.is_dir() else source.parent
    if found := tokenizers.from_directory(folder):
        return found
    if (folder / "meta.pkl").is_file():
        try:
            found = tokenizers.CharTokenizer(nanogpt_meta.read((folder / "meta.pkl").read_bytes()))
        except ValueError as error:
            raise UsageError(f"{folder / 'meta.pkl'}: {error}") from None
    elif config.vocab_size == 50257:
        say(f"{source} has no tokenizer; with its 50,257 ids GPT-2's goes with it")
        return tokenizers.gpt2()
    else:
        beside = " (a nanoGPT model of characters needs its meta.pkl beside ckpt.pt)" if source.is_file() else ""
        raise UsageError(f"{source}: has no tokenizer, and {config.vocab_size:,} ids are not GPT-2's{beside}")
    if found.vocab_size != config.vocab_size:
        raise UsageError(
            f"{folder / 'meta.pkl'}: has {found.vocab_size} characters, and {source.name} {config.vocab_size:,} ids"
        )
    return found


def _rounded(config, state, dtype):
    """`(weights, facts)`: the weights as they come back from `dtype`, in float32, and how far that moves the logits."""
    if dtype == "float32":
        return state, {}
    rounded = {name: tensor.to(getattr(torch, dtype)).float() for name, tensor in state.items()}
    if not all(tensor.isfinite().all() for tensor in rounded.values()):
        raise UsageError(f"dtype: some weights are too large for {dtype}; use bfloat16 or float32")
    with torch.no_grad():
        before, after = (GPT.from_state(config, tensors).eval() for tensors in (state, rounded))
        difference, _ = verify.compare(before, after, [verify.every_position(config)])
    return rounded, {"rounding": difference}


def base_on_hub(source):
    """The Hub id of the model that the run of the model at `source` began with, None where that is no model of the
    Hub."""
    return common_files.read_json_object(Path(source) / "finetune.json").get("base_model")


def _fill_adapter(work, adapter, base):
    """Write the adapters of a run as peft has them; their base keeps the name that the run gave it, unless it is one of
    the Hub."""
    shutil.copyfile(adapter / "adapter_model.safetensors", work / "adapter_model.safetensors")
    described = common_files.read_json_object(adapter / "adapter_config.json")
    common_files.write_json(
        work / "adapter_config.json", described | ({"base_model_name_or_path": base} if base else {})
    )


def _fill_nanogpt(work, config, state, dtype, tokenizer, facts, name):
    """Write ckpt.pt, and meta.pkl for characters; return what was compared."""
    if tokenizer.kind != "char" and tokenizer.describe()["name"] != "GPT-2 BPE":
        raise UsageError(
            "format: nanoGPT's sample.py knows GPT-2's BPE and characters, and this model has a"
            f" {tokenizer.describe()['name']}"
        )
    try:
        content = convert.to_nanogpt({key: tensor.to(getattr(torch, dtype)) for key, tensor in state.items()}, config)
    except ValueError as error:
        raise UsageError(f"format: nanogpt cannot hold this model: {error}") from None
    if tokenizer.kind == "char":
        content["config"]["dataset"] = name  # where sample.py looks for meta.pkl
        (work / "meta.pkl").write_bytes(nanogpt_meta.write(tokenizer.chars))
    torch.save(
        {**content, "iter_num": facts.get("step", 0), "best_val_loss": facts.get("val_loss", 1e9)}, work / "ckpt.pt"
    )
    return verify.nanogpt(work / "ckpt.pt", config, state)


def _summary(to, verified):
    if verified["format"] == "nanogpt":
        lines = [
            (
                f"verified: {verified['tensors_compared']} tensors read back are equal; nanoGPT's exact GELU moves"
                f" logits by at most {verified['max_difference_by_exact_gelu']:.1e}"
            ),
            f"exported to {to}; in nanoGPT's directory: python sample.py --out_dir={to}",
        ]
        meta = (to / "meta.pkl").is_file()
        return "\n".join(
            lines
            + (
                [f"for its characters first: mkdir -p data/{to.name} && cp {to}/meta.pkl data/{to.name}/"]
                if meta
                else []
            )
        )
    moved = f"; {verified['dtype']} moves them by at most {verified['rounding']:.1e}" if "rounding" in verified else ""
    return (
        f"verified with transformers {verified['versions']['transformers']}: {verified['ids_compared']:,} ids equal,"
        f" {verified['logits_compared']:,} logits differ by at most {verified['max_difference']:.1e}{moved}\nexported"
        f" to {to}"
    )


def _verified(directory):
    """The verification.json of an earlier export, {} where there is none."""
    found = common_files.read_json_object(directory / VERIFICATION)
    return found if "request" in found else {}
