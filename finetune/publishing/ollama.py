"""What Ollama needs beside a GGUF file: its own template, the context, and the texts that end an answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from finetune.data import chat, chat_template
from finetune.data.tokenizer import Tokenizer
from finetune.gpt import GPTConfig
from finetune.publishing import gguf_file

FILES = ("Modelfile", "template", "params")  # the last two are what Ollama reads of a Hub repository
PROMPT = "{{ .Prompt }}"  # continue a text
TRIALS = (("user",), ("user", "assistant"), ("user", "assistant", "user"), ("system", "user", "assistant", "user"))

Render = Callable[..., str]


@dataclass
class Turns:
    """A chat template of turns: what it writes before the first, and around each by its role."""

    begin: str
    around: dict[str, tuple[str, str]] = field(default_factory=dict)  # by role
    answer: str = ""  # what begins the answer

    def render(self, messages: list[dict[str, Any]], add_generation_prompt: bool = False) -> str:
        texts = [self.around[one["role"]][0] + one["content"] + self.around[one["role"]][1] for one in messages]
        return self.begin + "".join(texts) + (self.answer if add_generation_prompt else "")


def write(
    directory: Path, title: str, config: GPTConfig, weights: dict[str, torch.Tensor], tokenizer: Tokenizer, kind: str
) -> dict[str, Any]:
    """Write a GGUF file with, for Ollama, a Modelfile, and `template` and `params` for `ollama run hf.co/USER/NAME`.
    Returns what was compared. Raises UsageError and Failure.

    A chat template that is no row of turns has no form in Ollama; then there is the GGUF file alone."""
    name = f"{title}-{kind.upper()}.gguf"
    compared = gguf_file.write(directory / name, config, weights, tokenizer, kind)
    turns = _turns(tokenizer) if tokenizer.chat_template else None
    has_modelfile = bool(turns) or not tokenizer.chat_template
    if has_modelfile:
        _write_modelfile(directory, name, _in_go(turns) if turns else PROMPT, _parameters(config, tokenizer))
    return {"file": name, "type": kind, "modelfile": has_modelfile, **compared}


def _parameters(config: GPTConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """The context, the length of an answer and the texts that end one. An answer has half the context: Ollama moves a
    full one on, which a model with learned positions does not survive."""
    names = [tokenizer.all_bytes[i].decode("utf-8", "replace") for i in gguf_file.end_ids(config, tokenizer)]
    stops = [name for name in names if name and not set(name) & set('"\n')]
    return {"num_ctx": config.block_size, "num_predict": max(1, config.block_size // 2), "stop": stops}


def _write_modelfile(directory: Path, gguf: str, template: str, parameters: dict[str, Any]) -> None:
    lines = [f"FROM ./{gguf}", f'TEMPLATE """{template}"""']
    lines += [f"PARAMETER {key} {parameters[key]}" for key in ("num_ctx", "num_predict")]
    lines += [f'PARAMETER stop "{name}"' for name in parameters["stop"]]
    contents = ("\n".join(lines) + "\n", template, json.dumps(parameters, indent=2) + "\n")
    for name, content in zip(FILES, contents):
        (directory / name).write_text(content, encoding="utf-8")


def _turns(tokenizer: Tokenizer) -> Turns | None:
    """The chat template of a tokenizer as turns; None if it is more than that, which trial conversations show."""
    names = chat_template.special_names(tokenizer)

    def render(messages: list[dict[str, Any]], add_generation_prompt: bool = False) -> str:
        arguments = {"add_generation_prompt": add_generation_prompt}
        (text,), _ = chat.call_template(tokenizer.chat_template or "", messages, names, **arguments)
        return text

    try:
        turns = _read(render)
    except ValueError:
        return None
    for roles in TRIALS:
        if not turns.around.keys() >= {*roles}:
            continue
        messages = [{"role": role, "content": f" the {number}.\n\n{{{{x}}}} "} for number, role in enumerate(roles)]
        try:
            same = render(messages) == turns.render(messages)
            same = same and (roles[-1] != "user" or render(messages, True) == turns.render(messages, True))
        except ValueError:
            same = False
        if not same:
            return None
    return turns


def _read(render: Render) -> Turns:
    """What stands around turns in rendered conversations. Raises ValueError."""
    first, reply, second = ({"role": role, "content": f"<{role}>"} for role in ("user", "assistant", "user"))
    one = render([first])
    two = _rest(render([first, reply]), one)
    three = _rest(render([first, reply, second]), one + two)
    begin_first, _ = _split(one, "<user>")
    user, assistant = _split(three, "<user>"), _split(two, "<assistant>")
    turns = Turns(_without(begin_first, user[0]), {"user": user, "assistant": assistant})
    turns.answer = _rest(render([first], True), one)
    try:
        with_system = render([{"role": "system", "content": "<system>"}, first])
    except ValueError:  # it knows no system
        return turns
    before, rest = _split(with_system, "<system>")
    turns.around["system"] = _rest(before, turns.begin), _without(rest, f"{user[0]}<user>{user[1]}")
    return turns


def _split(text: str, content: str) -> tuple[str, str]:
    before, found, after = text.partition(content)
    if not found or content in after:
        raise ValueError(f"{content} is not there once")
    return before, after


def _rest(text: str, start: str) -> str:
    if not text.startswith(start):
        raise ValueError("earlier turns are written differently")
    return text[len(start) :]


def _without(text: str, end: str) -> str:
    if not text.endswith(end):
        raise ValueError("the first turn is written differently")
    return text[: len(text) - len(end)]


def _in_go(turns: Turns) -> str:
    """The template in Go's language, which Ollama renders. An answer that was begun goes on."""
    lines, word = [_literal(turns.begin), "{{- range $i, $_ := .Messages }}"], "if"
    lines.append("{{- $last := eq (len (slice $.Messages $i)) 1 }}")
    for role, (before, after) in turns.around.items():
        if role == "assistant" and after:
            after_text = "{{- if not $last }}" + _literal(after) + "{{- end }}"
        else:
            after_text = _literal(after)
        lines.append(f'{{{{- {word} eq .Role "{role}" }}}}{_literal(before)}{{{{- .Content }}}}{after_text}')
        word = "else if"
    lines.append("{{- end }}")
    lines.append('{{- if and $last (ne .Role "assistant") }}' + _literal(turns.answer) + "{{- end }}")
    lines.append("{{- end }}")
    return "\n".join(filter(None, lines))


def _literal(text: str) -> str:
    """An action of Go that writes `text`. JSON's escapes are Go's, but for pairs of surrogates, which are left out."""
    return "{{- " + json.dumps(text, ensure_ascii=False) + " }}" if text else ""
