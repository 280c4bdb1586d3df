"""How a row of a table becomes a document, and what that needs of its cells."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from finetune.common.formatting import shown
from finetune.data.rows import Row, name_of_value

PLAIN = re.compile(r"[\w.-]+")  # a name that a shell takes as it is
FIELD = re.compile(r"\{([^{}]+)\}")  # of a prompt template


@dataclass(frozen=True)
class Shape:
    """How a row becomes a document."""

    kind: Literal["text", "messages", "pair"]
    text: str | None = None
    messages: str | None = None  # None: the row itself is the list
    replies: bool = False  # messages are texts, of user and assistant in turn
    prompt: str | None = None
    completion: str | None = None
    extra: str | None = None  # added to the prompt, below a blank line
    system: str | None = None
    tools: str | None = None
    history: str | None = None
    template: str | None = None  # of the prompt
    left_out: tuple[str, ...] = ()  # columns that are not read
    absent: tuple[str, ...] = ()  # columns that are read where a row has them, and the sample has not

    def used(self) -> list[str]:
        """The columns that are read, in order."""
        names = [
            self.text,
            self.messages,
            self.system,
            self.tools,
            self.history,
            self.prompt,
            self.extra,
            self.completion,
        ]
        found = [name for name in names if name is not None and name not in self.absent]
        return found[:-1] + fields_of(self.template) + found[-1:] if self.template else found

    def describe(self) -> str:
        """`column 'body'`, for the line that says what was taken."""
        names = self.used()
        if not names:
            return "a list of messages a row" if self.kind == "messages" else "a text a row"
        *first, last = map(repr, names)
        joined = f"{', '.join(first)} and {last}" if first else last
        what = {"text": "", "messages": " (conversations)", "pair": f" ({last} is learned)"}[self.kind]
        return f"column{'s' * bool(first)} {joined}{what}"


def fields_of(template: str) -> list[str]:
    """The columns that a prompt template names in braces."""
    return FIELD.findall(template)


def shortened(names: Sequence[str], count: int = 12) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - count:,} more" if len(names) > count else ""
    return ", ".join(map(shown, names[:count])) + more


def fill_template(template: str, row: dict[str, Any]) -> str:
    """The prompt that a template makes of a row. Raises ValueError if a column has no text."""

    def value(match: re.Match[str]) -> str:
        found = row.get(match[1])
        if not isinstance(found, str):
            raise ValueError(f"column {match[1]!r} must be text, not {name_of_value(found)}")
        return found

    return FIELD.sub(value, template)


def parse_messages(value: Any) -> Any:
    """A list of messages that stands as JSON in a cell."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def column_flag(kind: str, name: str) -> str:
    """`--text_column=text`: the flag that names a column, quoted for a shell where the name needs it."""
    return f"--{kind}_column={name if PLAIN.fullmatch(name) else shlex.quote(name)}"


def jq_path(name: str) -> str:
    """A key as jq takes it, within the single quotes of a shell."""
    if name.isascii() and name.isidentifier():
        return f".{name}"
    return "." + json.dumps(name, ensure_ascii=False).replace("'", "\\u0027")


def sample_of(rows: Iterable[Row], count: int, characters: int) -> list[Row]:
    """The first rows, up to a count or to that many characters."""
    sample, size = [], 0
    for row in rows:
        sample.append(row)
        size += len(str(row.value))
        if len(sample) >= count or size >= characters:
            break
    return sample
