"""Prompts from a file: a line each, or a JSON object a line."""

import json
from pathlib import Path

from finetune.common.errors import UsageError
from finetune.data import chat


def read(path, template=None):
    """[(place, text)] of a file of prompts, place being "file:line". Empty lines are none.

    A line of a .jsonl file is an object with `prompt`, or with `messages`, for which there has to be a chat template.
    Raises UsageError naming the line."""
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: byte at offset {error.start:,} is not UTF-8") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from None
    prompts = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            place = f"{path}:{number}"
            prompts.append((place, _prompt(line, place, template) if str(path).endswith(".jsonl") else line))
    if not prompts:
        raise UsageError(f"{path}: no prompt in it")
    return prompts


def _prompt(line, place, template):
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UsageError(f"{place}: no JSON: {error}") from None
    prompt, messages = (row.get("prompt"), row.get("messages")) if isinstance(row, dict) else (None, None)
    if isinstance(prompt, str) and prompt and messages is None:
        return prompt
    if prompt is not None or not isinstance(messages, list) or not messages:
        raise UsageError(
            f"{place}: expected an object with a prompt, a text that is not empty, or with messages, a list"
        )
    if not all(
        isinstance(message, dict) and all(isinstance(message.get(part), str) for part in ("role", "content"))
        for message in messages
    ):
        raise UsageError(f"{place}: a message needs role and content, both text")
    if template is None:
        raise UsageError(f"{place}: messages need a chat template, and this model has none; give prompts")
    return chat.render(template, messages)
