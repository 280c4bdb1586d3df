"""Which columns of a table are the text: found in a sample of its rows, or refused if that is not clear."""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from finetune.common.errors import UsageError
from finetune.data import chat
from finetune.data.rows import Row, type_of

MESSAGES = ("messages", "conversations", "conversation", "dialog", "dialogue", "chat")
ROLES, CONTENTS = ("role", "from"), ("content", "value")  # of a message
# the question, its answer, and a column that is added to the question
PAIRS = (("prompt", "completion", None), ("instruction", "output", "input"), ("instruction", "response", "context"))
# taken only if named, because either column could be the text
QUESTIONS = ("question", "prompt", "instruction", "query", "input", "problem", "source")
ANSWERS = ("answer", "response", "output", "completion", "chosen", "solution", "target", "reply")
# columns of text that is about the document
ABOUT = re.compile(
    r"(.*_)?(id|ids|uuid|guid|key|index|hash|sha|label|labels|class|category|categories|lang|language|locale|url|uri"
    r"|link|href|title|headline|name|names|author|user|username|date|time|timestamp|created|updated|source|split|file"
    r"|filename|path|tag|tags|type|status|score|rating|version|license|country|city|email)(_.*)?",
    re.IGNORECASE,
)
# a number, an id, a language, an address, a date or a word for nothing
CODE = re.compile(
    r"[-+]?[\d.,:/%eE-]+|[0-9a-f-]{16,}|[a-z]{2,3}([-_][A-Za-z]{2,4})?|\w+://\S*|\d{4}-\d\d-\d\d([T ].*)?|true|false"
    r"|null|none",
    re.IGNORECASE,
)
FIELD = re.compile(r"\{([^{}]+)\}")  # of a prompt template
PYTHON = re.compile(r"""\s*\[\s*[\[{'"].*\]\s*$|b(['"]).*\1$""", re.DOTALL)  # a list or bytes, written by print
MEDIA = ("image", "images", "audio", "audios", "video", "videos")
LONGER = 2  # a column with so many times the text is more probably the text


@dataclass(frozen=True)
class Shape:
    """How a row becomes a document."""

    kind: Literal["text", "messages", "pair"]
    text: str | None = None
    messages: str | None = None  # None: the row itself is the list
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


def find_shape(sample: list[Row], named: dict[str, str], template: str | None, place: str) -> Shape:
    """The shape of the rows in a sample, by the columns that are `named`, else by their names and contents.

    `named` has keys among text, prompt, completion and messages. Raises UsageError if it is not clear."""
    values = [row.value for row in sample if row.problem is None]
    if not values:
        raise UsageError(f"{place}: {sample[0].problem}{sample[0].suffix()}" if sample else f"{place}: no rows in it")
    if all(isinstance(value, list) for value in values):
        return Shape("messages")
    if all(isinstance(value, str) for value in values):
        return Shape("text")
    rows = [value for value in values if isinstance(value, dict)]
    if not rows:
        raise UsageError(f"{place}: its rows are neither objects, texts nor lists of messages")
    profile = _Profile(rows, place)
    if named or template:
        return profile.by_names(named, template)
    profile.check_rows()
    return profile.messages() or profile.pair() or profile.text()


class _Profile:
    """What the columns of a sample hold."""

    def __init__(self, rows: list[dict[str, Any]], place: str) -> None:
        self.rows, self.place = rows, place
        self.names = list(dict.fromkeys(name for row in rows for name in row))
        self.tools = "functions" if "functions" in self.names else "tools"
        self.values = {name: [row.get(name) for row in rows if row.get(name) is not None] for name in self.names}

    def column(self, name: str | None) -> str | None:
        """The column of that name, whatever its case."""
        found = [column for column in self.names if column.strip().lower() == name]
        return found[0] if len(found) == 1 else None

    def holds(self, name: str | None, *kinds: type) -> bool:
        """Whether the column is there and most of its values are of one of the kinds."""
        values = self.values.get(name, []) if name is not None else []
        return bool(values) and 2 * sum(isinstance(value, kinds) for value in values) > len(values)

    def size(self, name: str) -> int:
        """Characters of text, without numbers, dates, codes and addresses."""
        texts = [value for value in self.values[name] if isinstance(value, str)]
        return sum(len(text) for text in texts if not CODE.fullmatch(text.strip()))

    def shape(self, shape: Shape) -> Shape:
        texts = [value for value in self.values.get(shape.text or "", []) if isinstance(value, str)]
        if texts and all(map(PYTHON.match, texts)):
            raise UsageError(f"{self.place}: {shape.text!r} holds lists or bytes as Python writes them, not texts")
        used = shape.used()
        return dataclasses.replace(
            shape,
            left_out=tuple(name for name in self.names if name not in used),
            absent=tuple(name for name in used if name not in self.names),
        )

    def beside(self, **columns: str | None) -> dict[str, Any]:
        """The columns of these names. One that the sample has not is read where a later row has it."""
        return {key: name and (self.column(name) or name) for key, name in columns.items()}

    def by_names(self, named: dict[str, str], template: str | None) -> Shape:
        for name in [*named.values(), *fields_of(template or "")]:
            if name not in self.names:
                near = difflib.get_close_matches(name, self.names, 1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise UsageError(f"{self.place}: has no column {name!r}; its columns are {', '.join(self.names)}{hint}")
        if "text" in named:
            return self.shape(Shape("text", text=named["text"]))
        beside = self.beside(system="system", tools=self.tools)
        if "messages" in named:
            return self.shape(Shape("messages", messages=named["messages"], **beside))
        completion = named.get("completion") or self.column("completion")
        if completion is None:
            raise UsageError(f"{self.place}: which column is the answer? name it with --completion_column=")
        return self.shape(Shape("pair", prompt=named.get("prompt"), completion=completion, template=template, **beside))

    def check_rows(self) -> None:
        """Raise UsageError for rows that are less than a document, or that tell good answers from bad ones."""
        role, content = (next(filter(None, map(self.column, keys)), None) for keys in (ROLES, CONTENTS))
        if role and content and all(str(value).strip().lower() in chat.ROLE_OF for value in self.values[role]):
            raise UsageError(
                f"{self.place}: its rows are single messages ({role!r}, {content!r}); a row is a conversation, a list"
                ' of messages such as {"messages": [{"role": ..., "content": ...}, ...]}'
            )
        media = next((name for name in map(self.column, MEDIA) if name and any(self.values[name])), None)
        if media and (self.column("messages") or self.column("conversations") or self.column("prompt")):
            raise UsageError(
                f"{self.place}: {media!r} belongs to the conversations, and only text is learned; leave such rows out"
            )
        label = self.column("label")
        if self.column("prompt") and self.column("completion") and label and self.holds(label, bool):
            raise UsageError(
                f"{self.place}: {label!r} tells good completions from bad ones; leave the bad ones out, and name"
                " --prompt_column=prompt --completion_column=completion"
            )

    def messages(self) -> Shape | None:
        for known in MESSAGES:
            name = self.column(known)
            if name and any(
                isinstance(value, str) and PYTHON.match(value) for value in map(parse_messages, self.values[name])
            ):
                raise UsageError(
                    f"{self.place}: {name!r} holds lists as Python writes them, not JSON; write them as jsonl"
                )
            if name and (known == "messages" or any(map(chat.are_messages, map(parse_messages, self.values[name])))):
                return self.shape(Shape("messages", messages=name, **self.beside(system="system", tools=self.tools)))
        return None

    def pair(self) -> Shape | None:
        if self.column("chosen") and self.column("rejected"):
            raise UsageError(
                f"{self.place}: pairs of a chosen and a rejected answer; to learn the chosen ones name"
                " --prompt_column= and --completion_column=chosen"
            )
        for prompt, completion, extra in PAIRS:
            columns = self.column(prompt), self.column(completion)
            if all(columns):
                beside = self.beside(extra=extra, system="system", tools=self.tools, history="history")
                return self.shape(Shape("pair", prompt=columns[0], completion=columns[1], **beside))
        return None

    def text(self) -> Shape:
        name = self.column("text")
        sizes = {column: self.size(column) for column in self.names}
        if name and self.values[name]:
            longer = [column for column, size in sizes.items() if size > LONGER * max(1, sizes[name])]
            if longer and self.holds(name, str):
                raise self.unclear(f"{longer[0]!r} holds more text than {name!r}")
            return self.shape(Shape("text", text=name))
        texts = [column for column in self.names if self.holds(column, str)]
        guesses = [column for column in texts if sizes[column] and not ABOUT.fullmatch(column)]
        if len(guesses) > 1:  # a word, such as a sentiment, stands beside sentences
            guesses = [column for column in guesses if self.holds_sentences(column)]
        if len(self.names) == 1:
            guesses = texts
        if len(guesses) != 1:
            raise self.unclear()
        (guess,) = guesses
        if lists := [column for column in self.names if self.holds(column, list, dict)]:
            raise self.unclear(f"{lists[0]!r} holds {'objects' if self.holds(lists[0], dict) else 'lists'}")
        if others := [column for column in texts if column != guess and LONGER * sizes[column] >= sizes[guess]]:
            raise self.unclear(f"{others[0]!r} holds as much text as {guess!r}")
        return self.shape(Shape("text", text=guess))

    def holds_sentences(self, name: str) -> bool:
        """Whether most values have several words, or another script, which can do without spaces."""
        texts = [value.strip() for value in self.values[name] if isinstance(value, str)]
        return 2 * sum(" " in text or "\n" in text or not text.isascii() for text in texts) > len(texts)

    def unclear(self, reason: str = "") -> UsageError:
        because = f" ({reason})" if reason else ""
        names = ", ".join(f"{name}{self._kind(name)}" for name in self.names)
        question = next((column for known in QUESTIONS if (column := self.column(known))), None)
        answer = next((column for known in ANSWERS if (column := self.column(known))), None)
        flags = "--text_column=, or --prompt_column= and --completion_column="
        if question and answer and question != answer:
            flags = f"--prompt_column={question} --completion_column={answer}, or --text_column="
        return UsageError(
            f"{self.place}: which column is the text?{because} Its columns are {names}; name it with {flags}"
        )

    def _kind(self, name: str) -> str:
        """` (list)` behind the name of a column that holds no text."""
        for kind, word in ((list, "list"), (dict, "object")):
            if self.holds(name, kind):
                return f" ({word})"
        return ""


def unescape(text: str) -> str:
    """`text` with \\n, \\t and \\r as the characters that they mean, because a shell passes them as two letters."""
    for written, meant in (("\\n", "\n"), ("\\t", "\t"), ("\\r", "\r")):
        text = text.replace(written, meant)
    return text


def fill_template(template: str, row: dict[str, Any]) -> str:
    """The prompt that a template makes of a row. Raises ValueError if a column has no text."""

    def value(match: re.Match[str]) -> str:
        found = row.get(match[1])
        if not isinstance(found, str):
            raise ValueError(f"column {match[1]!r} must be text, not {type_of(found)}")
        return found

    return FIELD.sub(value, template)


def parse_messages(value: Any) -> Any:
    """A list of messages that stands as JSON in a cell."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def sample_of(rows: Iterable[Row], count: int, characters: int) -> list[Row]:
    """The first rows, up to a count or to that many characters."""
    sample, size = [], 0
    for row in rows:
        sample.append(row)
        size += len(str(row.value))
        if len(sample) >= count or size >= characters:
            break
    return sample
