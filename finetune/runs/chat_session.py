"""A conversation with a model over standard input and output."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from finetune.common.console import encodable, end_unread
from finetune.common.errors import UsageError
from finetune.common.files import write_file
from finetune.data import chat
from finetune.data.chat_template import special_names
from finetune.data.tokenizer import Tokenizer, encode_prompt
from finetune.gpt import GPT
from finetune.gpt.sampling import Sample, draw_samples, write_new_text

HELP = """/help          this list
/reset         forget what was said
/system TEXT   change the system prompt; without TEXT, show it
/save FILE     write the conversation, as `finetune prepare` reads it
/exit          end; so do Ctrl-D and, at the prompt, Ctrl-C
Ctrl-C stops an answer. A line that begins with a space and / is said to the model."""


def run_chat(
    model: GPT, tokenizer: Tokenizer, template: str, seed: int, settings: dict[str, Any], system: str = ""
) -> None:
    """Answer each line of standard input. `settings` are those of `draw_samples`. Raises UsageError."""
    session = ChatSession(model, tokenizer, template, seed, settings)
    session.set_system(system)
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        with contextlib.suppress(ImportError):  # Windows has none
            import readline  # noqa: F401, gives `input` its history
        print("/help lists the commands", flush=True)
    while (line := _read_line(len(session.messages) // 2, is_terminal)) is not None:
        if line.rstrip() == "/exit":
            return
        end_unread()
        try:
            if line.startswith("/"):
                session.obey(*line.rstrip().partition(" ")[::2])
            elif line.strip():
                session.answer(line, is_terminal)
        except UsageError as error:
            print(encodable(str(error)), flush=True)


class ChatSession:
    """What was said so far, `messages` without the system prompt, and how answers are drawn."""

    def __init__(self, model: GPT, tokenizer: Tokenizer, template: str, seed: int, settings: dict[str, Any]) -> None:
        self.model, self.tokenizer, self.template = model, tokenizer, template
        self.generator = torch.Generator(model.wte.weight.device).manual_seed(seed)
        self.settings = {**settings, "other_ends": turn_ends(template, tokenizer)}
        # at least half of the context is left for the conversation
        self.max_prompt = model.config.block_size - min(settings["max_new_tokens"], model.config.block_size // 2)
        self.system = ""
        self.messages: list[dict[str, str]] = []
        self.first = 0  # message that the model still sees

    def obey(self, name: str, argument: str) -> None:
        """Do what a /command says. Raises UsageError."""
        if name == "/help":
            print(HELP, flush=True)
        elif name == "/reset":
            self.messages, self.first = [], 0
        elif name == "/system" and argument:
            self.set_system(argument)
        elif name == "/system":
            print(encodable(self.system or "no system prompt"), flush=True)
        elif name == "/save":
            self.save(argument.strip())
        else:
            raise UsageError(f"{name[:80]}: there is no such command; /help lists them")

    def set_system(self, system: str) -> None:
        """Begin all prompts with this text. Raises UsageError if the template has no place for it or it is too long."""
        if system:
            turns = [{"role": "system", "content": system}, {"role": "user", "content": "?"}]
            text = chat.render(self.template, turns, special_names(self.tokenizer))
            if system.strip() not in text:
                raise UsageError("system: the model's chat template has no place for a system prompt")
            if (tokens := len(encode_prompt(self.tokenizer, text, "system"))) > self.max_prompt:
                space = f"{tokens:,} tokens, more than the {self.max_prompt:,} that the answer leaves of the context"
                raise UsageError(f"system: takes {space}; a smaller --max_new_tokens leaves more")
        self.system = system

    def save(self, name: str) -> None:
        """Write the conversation as a line of JSON. Raises UsageError."""
        if not name or not self.messages:
            raise UsageError("/save: name a file, /save FILE" if not name else "/save: nothing was said yet")
        try:
            path = Path(os.path.expanduser(name))
            if os.path.lexists(path):
                raise UsageError(f"/save: {name} is there already; name another file")
            write_file(path, json.dumps({"messages": self._system() + self.messages}, ensure_ascii=False) + "\n")
        except UsageError:
            raise
        except (OSError, ValueError, RuntimeError) as error:
            raise UsageError(f"/save: {name} cannot be written: {getattr(error, 'strerror', None) or error}") from None
        print(encodable(f"wrote {name}"), flush=True)

    def answer(self, line: str, is_terminal: bool) -> None:
        """Answer a line of the user, and print that. Ctrl-C on a terminal ends the answer. Raises UsageError."""
        messages, first, prompt = self._with_turn(line)
        is_shown, seen = sys.stdout.isatty(), Sample(self.tokenizer)

        def show(sample: Sample) -> None:
            nonlocal seen
            seen = sample
            if is_shown:
                write_new_text(sample)

        how: dict[str, Any] = {**self.settings, "seed": self.generator}
        try:
            see = show if is_shown or is_terminal else None
            [seen] = draw_samples(self.model, self.tokenizer, prompt, see, **how)
        except KeyboardInterrupt:
            if not is_terminal:
                raise
            seen.finish("interrupted")
        write_new_text(seen)
        print("\n" if is_terminal else "", flush=True)  # and an empty line on a terminal
        self.messages, self.first = [*messages, {"role": "assistant", "content": seen.text}], first

    def _system(self) -> list[dict[str, str]]:
        return [{"role": "system", "content": self.system}] if self.system else []

    def _with_turn(self, line: str) -> tuple[list[dict[str, str]], int, np.ndarray]:
        """`messages` with a line of the user, `first`, and the prompt, without the oldest turns if it would be too
        long. Raises UsageError."""
        messages, first = [*self.messages, {"role": "user", "content": line}], self.first
        while True:
            text = chat.render(self.template, self._system() + messages[first:], special_names(self.tokenizer))
            prompt = encode_prompt(self.tokenizer, text, "this turn")
            if len(prompt) <= self.max_prompt or first >= len(messages) - 1:
                return messages, first, prompt
            first += 2


def turn_ends(template: str, tokenizer: Tokenizer) -> set[int]:
    """The id of the added or special token, such as <|im_end|>, that a chat template writes right after what the
    assistant says; empty if there is none."""
    said = "what is said"
    try:
        turns = [{"role": "user", "content": "ask"}, {"role": "assistant", "content": said}]
        text = chat.render(template, turns, special_names(tokenizer))
    except UsageError:
        return set()
    behind = text.rpartition(said)[2]
    ids = tokenizer.encode(behind, special=True)[:1].tolist() if behind and tokenizer.kind != "char" else []
    return {i for i in ids if i in tokenizer.added.values() or not tokenizer.token_bytes[i]}


def _read_line(turns: int, is_terminal: bool) -> str | None:
    """The next line of standard input, None at its end. Raises UsageError."""
    try:
        return input("> " if is_terminal else "")
    except EOFError:
        return None
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return None  # the terminal was closed
    except UnicodeDecodeError as error:
        raise UsageError(f"standard input: the text after turn {turns} is not UTF-8 ({error.reason})") from None
