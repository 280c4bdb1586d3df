"""What refusals tell people to type: flags that name columns, templates of prompts, and programs of jq."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from finetune.data.column_names import MESSAGES
from finetune.data.row_shape import column_flag, jq_path, parse_messages
from finetune.data.turns import ROLE_KEYS, ROLE_OF, are_messages

# of an object that holds an answer
TEXT_KEYS = ("text", "value", "content", "answer", "response", "completion", "output", "generation")


def flags(columns: Sequence[str]) -> str:
    """The flags of a prompt and its completion, or of one column of conversations."""
    kinds = ("prompt", "completion") if len(columns) == 2 else ("messages",)
    return " ".join(map(column_flag, kinds, columns))


def prompt_flags(prompts: Sequence[str], completion: str) -> str:
    """The flags of a prompt that is made of one column or more, and of its completion."""
    if len(prompts) == 1:
        return flags([*prompts, completion])
    template = "\\n".join(f"{{{name}}}" for name in prompts)
    return f"--prompt_template={shlex.quote(template)} {column_flag('completion', completion)}"


def jq(rows: str | None, program: str, out: str = "out.jsonl") -> str:
    """The command of jq that changes each row; "" for a file that jq cannot read. `rows` is how jq finds the rows:
    `.[]` in an array, "" in lines."""
    if rows is None or "'" in program:
        return ""
    return f"jq -c '{rows and f'{rows} | '}{program}' FILE > {out}"


def texts(name: str, values: Sequence[Any], is_everywhere: bool) -> str:
    """The program of jq that makes texts of the values of a column, without the rows that have none."""
    path, made = jq_path(name), _text_of(values)
    if made == "tostring":  # also of null
        return f"{'' if is_everywhere else f'select({path} != null) | '}{path} |= tostring"
    is_everywhere &= not any("[]" in str(value) for value in values)  # of which the first is null
    return f"{path} |= {made}{'' if is_everywhere else f' | select({path} != null)'}"


def conversation(question: str, asked: Sequence[Any], answer: str, answered: Sequence[Any]) -> str:
    """The program of jq that joins a question and its answer, texts or messages, to a conversation."""
    style = "from" if any("from" in one for value in (*asked, *answered) for one in _messages(value)) else "role"
    first, last = (
        _messages_of(jq_path(name), values, role, style)
        for name, values, role in ((question, asked, "user"), (answer, answered, "assistant"))
    )
    is_read = question.strip().lower() in MESSAGES and first == jq_path(question)
    return f"{first} += {last}" if is_read else f".messages = {first} + {last}"


def is_whole(values: Sequence[Any]) -> bool:
    """Whether values are conversations in which somebody asks."""
    roles = [one.get(key, "") for value in values for one in _messages(value) for key in ROLE_KEYS]
    return any(ROLE_OF.get(str(role).strip().lower()) == "user" for role in roles)


def _messages(value: Any) -> list[dict[str, Any]]:
    found = parse_messages(value)
    return found if are_messages(found) else [value] if are_messages([value]) else []


def _messages_of(path: str, values: Sequence[Any], role: str, style: str) -> str:
    """How jq makes messages of the values at a path."""
    if all(are_messages(value) for value in values):
        return path
    if all(are_messages(parse_messages(value)) for value in values):
        return f"({path} | fromjson)"
    if all(are_messages([value]) for value in values):
        return f"[{path}]"
    first = values[0]
    if isinstance(first, dict) and (key := next((key for key in first if are_messages(first[key])), "")):
        return path + jq_path(key)
    made = _text_of(values)
    text = path if made == "." else f"({path} | {made})"
    keys = {"from": ("from", "value"), "role": ("role", "content")}[style]
    who = {"user": "human", "assistant": "gpt"}[role] if style == "from" else role
    return f'[{{{keys[0]}: "{who}", {keys[1]}: {text}}}]'


def _text_of(values: Sequence[Any]) -> str:
    """How jq makes a text of each value: the first text of a list, that under a usual key, or JSON."""
    if all(isinstance(value, str) for value in values):
        return "."
    if all(isinstance(value, dict) for value in values):
        key = next((key for key in TEXT_KEYS if all(key in value for value in values)), "")
        made = _text_of([value[key] for value in values if value[key]]) if key else "tostring"
        return made if made == "tostring" else _piped(jq_path(key), made)
    if all(isinstance(value, list) for value in values) and any(values):
        made = _text_of([value[0] for value in values if value])
        return made if made == "tostring" else _piped(".[0]", made)
    return "tostring"


def _piped(path: str, made: str) -> str:
    """The text that is made of the value at a path."""
    return path + made.removeprefix("." if made[:2] in (".", ".[") else "")
