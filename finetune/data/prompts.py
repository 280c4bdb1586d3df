"""Prompts from a file: one per line, as text or, in a .jsonl file, as a JSON object."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from shlex import quote

from finetune.common.errors import UsageError
from finetune.common.files import read_text
from finetune.data import chat
from finetune.data.turns import unified

JSON_LINES = (".jsonl", ".ndjson", ".jsonlines")
TABLES = (".json", ".csv", ".tsv", ".tab", ".psv")  # whose lines would be prompts, with their commas and brackets


def read(
    path: str | Path, template: str | None = None, names: Mapping[str, str] = chat.GPT2_NAMES
) -> list[tuple[str, str]]:
    """(place, text) of each prompt in a file, `place` being "file:line". Blank lines are skipped.

    An object of a .jsonl file has `prompt`, or `messages`, which need a chat template. `names` are the special
    tokens that it can use. Raises UsageError."""
    prompts, suffix = [], Path(path).suffix.lower()
    if suffix in TABLES:
        program = f"jq -c '.[]' {quote(str(path))} > prompts.jsonl"
        way = f"; {program} writes the rows of an array so" if suffix == ".json" else ""
        what = "prompts are lines of text, or objects with a prompt, a line each, in a file with the suffix .jsonl"
        raise UsageError(f"{path}: is a table; {what}{way}")
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            place = f"{path}:{number}"
            prompts.append((place, _parse(line, place, template, names) if suffix in JSON_LINES else line))
    if not prompts:
        raise UsageError(f"{path}: no prompt in it")
    return prompts


def _parse(line: str, place: str, template: str | None, names: Mapping[str, str]) -> str:
    try:
        row = unified(json.loads(line))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{place}: not JSON: {error}") from None
    prompt, messages = (row.get("prompt"), row.get("messages")) if isinstance(row, dict) else (None, None)
    if isinstance(prompt, str) and prompt and messages is None:
        return prompt
    if prompt is not None or not isinstance(messages, list) or not messages:
        raise UsageError(f"{place}: expected an object with a prompt (non-empty text) or with messages (a list)")
    if not all(chat.is_message(message) for message in messages):
        raise UsageError(f"{place}: a message needs role and content, both text")
    if template is None:
        raise UsageError(f"{place}: messages need a chat template, and this model has none; give prompts")
    return chat.render(template, messages, names)
