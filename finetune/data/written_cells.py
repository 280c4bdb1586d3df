"""Cells that hold a value as JSON or Python writes it, where a text or messages are meant: found, or refused."""

from __future__ import annotations

import json
import re
from typing import Any

from finetune.common.errors import UsageError
from finetune.data.column_names import MESSAGES, PYTHON
from finetune.data.column_profile import Profile
from finetune.data.row_shape import Shape, column_flag
from finetune.data.rows import is_blank
from finetune.data.turns import ROLE_OF

KEYS = (("role", "content"), ("from", "value"))  # of a message
ROW_KEYS = ("text", "prompt", "instruction", *MESSAGES)  # of an object that is a row
# of an object as Python writes it, which is a message, a row, or SQuAD's answers
PYTHON_KEY = re.compile(rf"'({'|'.join((*(key for pair in KEYS for key in pair), *ROW_KEYS, 'answer_start'))})': ")
# the role of a message as Python writes it, the content of one, or SQuAD's answers
PYTHON_ROLE = re.compile(rf"'(?:{'|'.join(role for role, _ in KEYS)})': ['\"](\w+)['\"]")
PYTHON_CONTENT, PYTHON_ANSWERS = re.compile(r"'(content|value|tool_calls)': "), "'answer_start': "
BYTES = re.compile(r"""b(['"])(.*)\1$""", re.DOTALL)
NUMPY = re.compile(r"""\[\s*('[^']*'|"[^"]*")\s+['"]""")  # a list without commas
WORDS = 3  # of bytes that are a sentence
JSONL = "write them as jsonl"
SINGLE_QUOTE = re.compile(r"""\s*[\[{][\[{\s]*'|b['"]""")  # with which JSON does not begin


def messages_in(value: Any) -> list[dict[str, Any]] | None:
    """The messages that a cell holds, as they are or as JSON; None if it holds anything else."""
    if isinstance(value, str):
        value = _parsed(value) if any(f'"{role}"' in value for role, _ in KEYS) else None
    found = [value] if isinstance(value, dict) else value
    return found if isinstance(found, list) and found and all(map(_is_message, found)) else None


def _parsed(text: str) -> Any:
    try:
        return json.loads(text) if text.lstrip()[:1] in ("[", "{") else None
    except (ValueError, RecursionError):
        return None


def _is_message(value: object) -> bool:
    """Whether it is an object with a known role and a content."""
    return isinstance(value, dict) and any(
        str(value.get(role)).strip().lower() in ROLE_OF and (content in value or "tool_calls" in value)
        for role, content in KEYS
    )


def are_json(texts: list[str]) -> bool:
    """Whether texts are JSON objects or messages, all of them."""
    return bool(texts) and all(isinstance(_parsed(text), dict) or messages_in(text) for text in texts)


def are_python(texts: list[str]) -> bool:
    """Whether texts are lists, objects or bytes as Python writes them."""
    are_values = bool(texts) and all(PYTHON.match(text) or _is_python_object(text.strip()) for text in texts)
    return are_values and any(map(SINGLE_QUOTE.match, texts))


def _is_python_object(text: str) -> bool:
    return text.startswith("{") and text.endswith("}") and PYTHON_KEY.search(text) is not None


def check_text(profile: Profile, name: str, is_named: bool) -> None:
    """Raise UsageError if a column of texts holds lists, or rows or messages as JSON or Python writes them."""
    texts = _texts(profile, name)
    if not texts:
        return
    if profile.holds_messages(name) and all(map(messages_in, texts)):
        way = f"name {column_flag('messages', name)}"
        raise UsageError(f"{profile.place}: {name!r} holds messages as JSON, not texts; {way}")
    if all(map(PYTHON.match, texts)) or are_python(texts):
        raise UsageError(
            f"{profile.place}: {name!r} holds lists, objects or bytes as Python writes them, not texts; {JSONL}"
        )
    if not is_named and all(map(_is_row, texts)):
        way = f"write them as lines of a .jsonl file (of JSON lines, jq -c '.{name} | fromjson' FILE)"
        way += f"; {column_flag('text', name)} takes the cells as they are"
        raise UsageError(f"{profile.place}: {name!r} holds rows as JSON, not texts; {way}")


def _is_row(text: str) -> bool:
    """Whether a text is a JSON object with a column of texts or messages."""
    value = _parsed(text) if text.lstrip().startswith("{") else None
    return isinstance(value, dict) and any(
        messages_in(value.get(key)) or (key not in MESSAGES and isinstance(value.get(key), str)) for key in ROW_KEYS
    )


def check_pair(profile: Profile, shape: Shape) -> None:
    """Raise UsageError if a prompt or a completion holds messages as Python writes them, or one of them messages as
    JSON and the other none. A template takes the cells as they are."""
    prompt, completion = shape.prompt, shape.completion
    if prompt is None or completion is None:
        return
    way = f"--prompt_template='{{{prompt}}}' {column_flag('completion', completion)} takes the cells as they are"
    for name in (prompt, completion):
        if what := _python_kind(_texts(profile, name)):
            raise UsageError(f"{profile.place}: {name!r} holds {what}, not texts; {JSONL}, with lists as JSON; {way}")
    asked, answered = (_texts(profile, name) for name in (prompt, completion))
    is_asked, is_answered = (bool(texts) and all(map(messages_in, texts)) for texts in (asked, answered))
    if is_asked == is_answered or not (asked and answered):
        return
    if is_asked or _is_said(profile, answered, prompt, completion):
        one, other = (prompt, completion) if is_asked else (completion, prompt)
        raise UsageError(
            f"{profile.place}: {one!r} holds messages as JSON, and {other!r} texts; write both as messages or both as"
            f" texts; {way}"
        )


def _python_kind(texts: list[str]) -> str | None:
    """What a column of a pair holds, of that which Python writes and nobody asks or answers. A list or an object can
    be the answer: entities, or the output of a program."""
    found = map(BYTES.match, texts)
    if texts and all(match and len(match[2].split()) >= WORDS for match in found):
        return "texts as bytes of Python"
    if not are_python(texts):
        return None
    if any(map(NUMPY.match, texts)):
        return "lists of numpy, as Python writes them"
    if all(PYTHON_ANSWERS in text or _is_python_message(text) for text in texts):
        return "messages or answers of SQuAD as Python writes them"
    return None


def _is_python_message(text: str) -> bool:
    return PYTHON_CONTENT.search(text) is not None and any(
        role.lower() in ROLE_OF for role in PYTHON_ROLE.findall(text)
    )


def _is_said(profile: Profile, answered: list[str], prompt: str, completion: str) -> bool:
    """Whether messages are what the assistant says to a prompt, and not a conversation that it is asked to write."""
    roles = {
        ROLE_OF.get(str(one.get("role", one.get("from"))).lower())
        for text in answered
        for one in messages_in(text) or []
    }
    return "user" not in roles or profile.stands_in(prompt, completion)


def _texts(profile: Profile, name: str) -> list[str]:
    return [value for value in profile.values.get(name, []) if isinstance(value, str) and not is_blank(value)]
