"""A conversation with a model over standard input and output."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch

from finetune.common.errors import UsageError
from finetune.data import chat
from finetune.data.chat_template import special_names
from finetune.data.tokenizer import Tokenizer, encode_prompt
from finetune.gpt import GPT
from finetune.gpt.sampling import draw_samples, write_new_text


def run_chat(model: GPT, tokenizer: Tokenizer, template: str, seed: int, settings: dict[str, Any]) -> None:
    """Answer each line of standard input. `settings` are those of `draw_samples`. Raises UsageError."""
    generator = torch.Generator(model.wte.weight.device).manual_seed(seed)
    # at least half of the context is left for the conversation
    max_prompt = model.config.block_size - min(settings["max_new_tokens"], model.config.block_size // 2)
    settings = {**settings, "other_ends": turn_ends(template, tokenizer)}
    messages: list[dict[str, str]] = []
    is_terminal = sys.stdin.isatty()
    while (line := _read_line(len(messages) // 2, is_terminal)) is not None:
        if not line.strip():
            continue
        try:
            messages, prompt = _add_turn(messages, line, tokenizer, template, max_prompt)
        except UsageError as error:
            print(error, flush=True)
            continue
        show = write_new_text if sys.stdout.isatty() else None
        [sample] = draw_samples(model, tokenizer, prompt, seed=generator, show=show, **settings)
        write_new_text(sample)
        print("\n" if is_terminal else "", flush=True)  # and an empty line on a terminal
        messages.append({"role": "assistant", "content": sample.text})


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
    except UnicodeDecodeError as error:
        raise UsageError(f"standard input: the text after turn {turns} is not UTF-8 ({error.reason})") from None


def _add_turn(
    messages: list[dict[str, str]], line: str, tokenizer: Tokenizer, template: str, max_prompt: int
) -> tuple[list[dict[str, str]], np.ndarray]:
    """`(messages, prompt)` with a line of the user, without the oldest turns if the prompt would be too long. Raises
    UsageError."""
    messages = [*messages, {"role": "user", "content": line}]
    while True:
        text = chat.render(template, messages, special_names(tokenizer))
        prompt = encode_prompt(tokenizer, text, "this turn")
        if len(prompt) <= max_prompt or len(messages) == 1:
            return messages, prompt
        messages = messages[2:]
