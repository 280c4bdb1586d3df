"""Which columns of a table are the text: found in a sample of its rows, or refused if that is not clear."""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
from typing import Any

from finetune.common.errors import UsageError
from finetune.data import chat
from finetune.data.row_shape import Shape, fields_of, parse_messages, shortened
from finetune.data.rows import Row

MESSAGES = ("messages", "conversations", "conversation", "dialog", "dialogue", "chat")
# the question and its answer
PAIRS = (("prompt", "completion"), ("instruction", "output"), ("instruction", "response"))
EXTRAS = ("input", "context")  # added to the prompt
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
PYTHON = re.compile(r"""\s*\[\s*[\[{'"].*\]\s*$|b(['"]).*\1$""", re.DOTALL)  # a list or bytes, written by print
# a column that can tell good answers from bad ones, and its values
LABEL = re.compile(
    r"(is_|kto_|human_|user_)?(labels?|tag|good|correct|desirable|chosen|accepted|preferred|feedback|rating"
    r"|thumbs_?up)",
    re.IGNORECASE,
)
VERDICTS = (
    "0 1 true false 0.0 1.0 -1",
    "good bad",
    "chosen rejected",
    "desirable undesirable",
    "correct incorrect wrong",
    "up down thumbs_up thumbs_down",
    "accepted rejected",
)
MEDIA = ("image", "images", "audio", "audios", "video", "videos")
LONGER = 2  # a column with so many times the text is more probably the text


def find_shape(sample: list[Row], named: dict[str, str], template: str | None, place: str) -> Shape:
    """The shape of the rows in a sample, by the columns that are `named`, else by their names and contents.

    `named` has keys among text, prompt, completion and messages. Raises UsageError if it is not clear."""
    values = [row.value for row in sample if row.problem is None]
    if not values:
        raise UsageError(f"{place}: {sample[0].problem}{sample[0].suffix()}" if sample else f"{place}: no rows in it")
    if all(isinstance(value, list) for value in values):
        if not any(map(chat.are_messages, values)):
            raise UsageError(
                f"{place}: row 1 is a list; a row is an object, or a list of messages, and nothing else (pandas:"
                " to_json(FILE, orient='records', lines=True))"
            )
        return Shape("messages")
    if all(isinstance(value, str) for value in values):
        if all(map(_is_json_object, values)):
            raise UsageError(f"{place}: its rows are JSON within texts; take them out with jq -c 'fromjson' for lines")
        return Shape("text")
    rows = [value for value in values if isinstance(value, dict)]
    if not rows:
        raise UsageError(f"{place}: its rows are neither objects, texts nor lists of messages")
    profile = _Profile(rows, place)
    if named or template:
        return profile.by_names(named, template)
    profile.check_rows()
    return profile.messages() or profile.pair() or profile.text()


def _is_json_object(text: str) -> bool:
    try:
        return text.lstrip()[:1] == "{" and isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


class _Profile:
    """What the columns of a sample hold."""

    def __init__(self, rows: list[dict[str, Any]], place: str) -> None:
        self.place = place
        self.names = list(dict.fromkeys(name for row in rows for name in row))
        self.system = "system_prompt" if "system_prompt" in self.names else "system"
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

    def extra(self) -> str:
        """The column that is added to the prompt. Raises UsageError if there are two."""
        found = [name for name in EXTRAS if (column := self.column(name)) and any(self.values[column])]
        if len(found) > 1:
            raise self.unclear(
                f"{' and '.join(map(repr, found))} both belong to the prompt: --prompt_template= joins them"
            )
        return next((name for name in (*found, *EXTRAS) if self.column(name)), EXTRAS[0])

    def by_names(self, named: dict[str, str], template: str | None) -> Shape:
        for name in [*named.values(), *fields_of(template or "")]:
            if name not in self.names:
                near = difflib.get_close_matches(name, self.names, 1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise UsageError(f"{self.place}: has no column {name!r}; its columns are {shortened(self.names)}{hint}")
        if "text" in named:
            return self.shape(Shape("text", text=named["text"]))
        beside = self.beside(system=self.system, tools=self.tools)
        if "messages" in named:
            return self.shape(Shape("messages", messages=named["messages"], **beside))
        completion = named.get("completion") or self.column("completion")
        if completion is None:
            raise UsageError(f"{self.place}: which column is the answer? name it with --completion_column=")
        if completion in (named.get("prompt"), *fields_of(template or "")):
            raise UsageError(
                f"{self.place}: {completion!r} is the question too; name another with --completion_column="
            )
        if named.get("prompt") == "instruction":  # Alpaca's rows
            beside |= self.beside(extra=self.extra(), history="history")
        return self.shape(Shape("pair", prompt=named.get("prompt"), completion=completion, template=template, **beside))

    def check_rows(self) -> None:
        """Raise UsageError for rows that are less than a document, or that tell good answers from bad ones."""
        role = next(filter(None, map(self.column, chat.ROLE_KEYS)), None)
        content = next(filter(None, map(self.column, chat.CONTENT_KEYS)), None)
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
        answers = next(
            (pair for pair in (*PAIRS, *((name,) for name in MESSAGES)) if all(map(self.column, pair))), None
        )
        label = next((name for name in self.names if LABEL.fullmatch(name) and self.tells_good_from_bad(name)), None)
        if answers and label:
            flags = zip(("prompt", "completion") if len(answers) == 2 else ("messages",), answers)
            names = " ".join(f"--{flag}_column={self.column(name)}" for flag, name in flags)
            raise UsageError(
                f"{self.place}: {label!r} tells good completions from bad ones; leave the bad ones out, and"
                f" name {names}"
            )

    def tells_good_from_bad(self, name: str) -> bool:
        values = {str(value).strip().lower() for value in self.values[name]}
        return bool(values) and any(values <= {*both.split()} for both in VERDICTS)

    def messages(self) -> Shape | None:
        for known in MESSAGES:
            name = self.column(known)
            if name and any(
                isinstance(value, str) and PYTHON.match(value) for value in map(parse_messages, self.values[name])
            ):
                raise UsageError(
                    f"{self.place}: {name!r} holds lists as Python writes them, not JSON; write them as jsonl"
                )
            if name and self.column("chosen") and self.column("rejected") and self.ends_in_question(name):
                return None
            if name and (known == "messages" or any(map(chat.are_messages, map(parse_messages, self.values[name])))):
                return self.shape(Shape("messages", messages=name, **self.beside(system=self.system, tools=self.tools)))
        return None

    def ends_in_question(self, name: str) -> bool:
        """Whether the answers to some conversations stand in other columns."""
        found = [value for value in map(parse_messages, self.values[name]) if chat.are_messages(value)]
        return not all(map(chat.is_answered, found))

    def pair(self) -> Shape | None:
        if self.column("chosen") and self.column("rejected"):
            raise UsageError(
                f"{self.place}: pairs of a chosen and a rejected answer; to learn the chosen ones name"
                " --prompt_column= and --completion_column=chosen"
            )
        for prompt, completion in PAIRS:
            columns = self.column(prompt), self.column(completion)
            if all(columns):
                beside = self.beside(system=self.system, tools=self.tools, history="history", extra=self.extra())
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
        names = shortened([f"{name}{self._kind(name)}" for name in self.names])
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
