"""A GGUF file in an installed llama.cpp: the ids of prompts and a greedy text, compared with the model."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from finetune.common.errors import Failure
from finetune.data.tokenizer import Tokenizer
from finetune.gpt import GPT
from finetune.publishing import verify
from finetune.publishing.run_report import last_parts

PROGRAMS = ("llama-completion", "llama-cli")  # the newer name first; llama-cli only chats since 2026
NEW_TOKENS = 32
SECONDS = 300  # of one call
# llama.cpp computes with f16 in its cache and GELU, and multiplies q8_0 by 8-bit activations, so near ties may turn.
# In standard deviations of the logits at a position; a wrong tensor moves them by about one
TIES = {"f32": 0.1, "f16": 0.1, "q8_0": 0.3}
# run in a process of its own, which may crash; weights as they are in the file, not rearranged for one processor
PYTHON = """
import itertools, json, sys
from llama_cpp import Llama, llama_cpp
asked, defaults = json.load(sys.stdin), llama_cpp.llama_model_default_params()
defaults.use_extra_bufts = False
llama_cpp.llama_model_default_params = lambda: defaults
model = Llama(asked["path"], n_ctx=0, n_gpu_layers=0, verbose=False)
ids = [model.tokenize(text.encode(), add_bos=False, special=True) for text in asked["prompts"]]
new = itertools.islice(model.generate(asked["ids"], temp=0.0, top_k=1, repeat_penalty=1.0), asked["new_tokens"])
print("\\n" + json.dumps({"ids": ids, "new": list(new)}))
"""


class NotChecked(Exception):
    """llama.cpp gave no answer; the message says why."""


def installed() -> str | None:
    """The llama.cpp that would be asked: the package llama-cpp-python or a program on PATH; None without one."""
    try:
        return f"llama-cpp-python {importlib.metadata.version('llama-cpp-python')}"
    except importlib.metadata.PackageNotFoundError:
        return next(filter(shutil.which, PROGRAMS), None)


@torch.no_grad()
def check(path: Path, model: GPT, tokenizer: Tokenizer, kind: str) -> dict[str, Any]:
    """Compare a GGUF file in llama.cpp with the `model` read from it. Returns who was asked, and the counts or why
    there are none. Raises Failure when ids differ."""
    by, prompts = installed(), list(verify.prompts_for(tokenizer))
    if by is None:
        return {"not_checked": "not installed"}
    prompt, block_size = prompts[min(1, len(prompts) - 1)], model.config.block_size
    while len(prompt) > 1 and len(tokenizer.encode(prompt, special=True)) > block_size // 2:
        prompt = prompt[: len(prompt) // 2]
    ids = tokenizer.encode(prompt, special=True).tolist()
    new_tokens = min(NEW_TOKENS, block_size - len(ids))
    if not ids or new_tokens < 1:
        return {"by": by, "not_checked": f"a context of {block_size} is too short"}
    try:
        if by not in PROGRAMS:
            asked = {"path": str(path), "prompts": prompts, "ids": ids, "new_tokens": new_tokens}
            return {"by": by, **_compare_ids(asked, model, tokenizer, TIES[kind])}
        text = _ask_program(by, path, prompt, new_tokens, block_size)
    except NotChecked as error:
        told = str(error).replace(str(path), path.name).replace(f"{path.parent}/", "")
        return {"by": by, "not_checked": last_parts(told)}
    return {"by": by, **_compare_text(path, text, model, tokenizer, ids, new_tokens, TIES[kind])}


def _compare_ids(asked: dict[str, Any], model: GPT, tokenizer: Tokenizer, tie: float) -> dict[str, Any]:
    """Ask llama-cpp-python, and compare the ids of the prompts and the greedy ids. Raises NotChecked and Failure."""
    try:
        found = json.loads(_run([sys.executable, "-c", PYTHON], json.dumps(asked)).splitlines()[-1])
    except (ValueError, IndexError):
        raise NotChecked("its answer is no JSON") from None
    name = Path(asked["path"]).name
    for text, theirs in zip(asked["prompts"], found["ids"], strict=True):
        if theirs != tokenizer.encode(text, special=True).tolist():
            raise Failure(f"{name}: llama.cpp gives other ids for {text!r}; nothing was exported", 1)
    before, new = asked["ids"], found["new"]
    logits = model(torch.tensor([before + new[:-1]]))[0, len(before) - 1 :]
    for number, (row, theirs) in enumerate(zip(logits, new, strict=True), 1):
        if row.max() - row[theirs] > tie * row.std():
            raise Failure(f"{name}: llama.cpp's greedy id {number} differs; nothing was exported", 1)
    equal = int((logits.argmax(dim=1) == torch.tensor(new)).sum())
    return {"prompts": len(asked["prompts"]), "greedy_ids": equal, "ties": len(new) - equal}


def _ask_program(program: str, path: Path, prompt: str, new_tokens: int, context: int) -> str:
    """The text that a program of llama.cpp writes after a prompt. Raises NotChecked."""
    flags = ["-m", str(path), "-p", prompt, "-n", str(new_tokens), "-c", str(context), "--temp", "0"]
    _, found, text = _run([program, *flags, "-no-cnv", "--no-escape", "--simple-io"]).partition(prompt)
    if not found:
        raise NotChecked("its output does not hold the prompt")
    return text


def _compare_text(
    path: Path, text: str, model: GPT, tokenizer: Tokenizer, ids: list[int], new_tokens: int, tie: float
) -> dict[str, Any]:
    """Compare a greedy text with that of the model, up to an end of text or a tie. Raises Failure."""
    found = model.generate(torch.tensor([ids]), new_tokens, temperature=0)[0, len(ids) :].tolist()
    new = [i for i in found if i not in model.config.end_ids]
    equal = max(count for count in range(len(new) + 1) if text.startswith(tokenizer.decode(new[:count])))
    if equal < len(new):
        row = model(torch.tensor([ids + new[:equal]]))[0, -1]
        best, second = row.topk(2).values
        if best - second > tie * row.std():
            raise Failure(f"{path.name}: llama.cpp's greedy id {equal + 1} differs; nothing was exported", 1)
    return {"greedy_ids": equal, "ties": int(equal < len(new))}


def _run(argv: list[str], given: str = "") -> str:
    """The output of a program, which may crash or hang. Raises NotChecked."""
    try:
        done = subprocess.run(
            argv, input=given, capture_output=True, encoding="utf-8", errors="replace", timeout=SECONDS
        )
    except subprocess.TimeoutExpired:
        raise NotChecked(f"it took more than {SECONDS} seconds") from None
    except (OSError, ValueError) as error:
        raise NotChecked(str(error)) from None
    if done.returncode:
        told = done.stderr.strip().splitlines() or [f"it ended with code {done.returncode}"]
        raise NotChecked(told[-1] if done.returncode > 0 else f"it crashed: {signal.strsignal(-done.returncode)}")
    return done.stdout
