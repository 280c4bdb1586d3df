"""What the columns of a table hold, in a sample of its rows."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from finetune.common.errors import UsageError
from finetune.data.column_names import (
    ABOUT,
    ANSWER_LIKE,
    ANSWERS,
    CODE,
    EXTRAS,
    GENERATED,
    GIVEN,
    LANGUAGES,
    META,
    QUESTIONS,
    RENDERED,
    SHORTENED,
    TALKS,
    is_usual,
)
from finetune.data.nested import is_noted, size_within
from finetune.data.row_shape import column_flag, jq_path, parse_messages, shortened
from finetune.data.rows import has_words
from finetune.data.turns import ROLE_KEYS, are_messages, are_replies, is_answered
from finetune.data.ways_out import conversation, is_whole, jq, prompt_flags, texts

ROWS = 20  # in which texts are compared
DOTS = re.compile(r"[ ]?(…|\.\.\.)([ ]?https?://\S+)?$")  # at the end of a text that was cut short
MARKUP = re.compile(r"<[^<>]*>|&#?\w+;|\[[^\[\]]*\]")  # tags, entities, and words in brackets
MORE_DOTS = re.compile(r"\s*(…|&hellip;|\.\s?\.\s?\.)")
WORD, GOES_ON = re.compile(r"[^\W\d_]+"), 3  # words of a text that goes on, if a new sentence begins
AT_END, CUT = 60, 20  # characters: of the dots and the address, at least of the text before them
TASKS = ("instruction", "task", "prompt", "question", "query", "problem")  # beside messages that belong to it
REFERENCES = ("ideal", "reference", "references", "label")  # what answers to conversations are called too
CLEARLY_LONGER = 5  # times the text of another column with sentences


class Profile:
    """What the columns of a sample hold."""

    def __init__(self, rows: list[dict[str, Any]], place: str, jq: str | None = None) -> None:
        self.place, self.rows, self.jq = place, rows, jq  # how jq finds the rows, None if it cannot
        self.names = list(dict.fromkeys(name for row in rows for name in row))
        self.values = {name: [row.get(name) for row in rows if row.get(name) is not None] for name in self.names}

    def column(self, name: str | None) -> str | None:
        """The column of that name, whatever its case."""
        found = [column for column in self.names if column.strip().lower() == name]
        return found[0] if len(found) == 1 else None

    def first(self, names: Iterable[str]) -> str | None:
        """The first column of these names that has values."""
        return next((found for found in map(self.column, names) if found and any(self.values[found])), None)

    def holds(self, name: str | None, *kinds: type) -> bool:
        """Whether the column is there and most of its values are of one of the kinds."""
        values = self.values.get(name, []) if name is not None else []
        return bool(values) and 2 * sum(isinstance(value, kinds) for value in values) > len(values)

    def are_texts(self, *names: str) -> bool:
        """Whether every cell of some columns is a text, as a template needs them."""
        return all(isinstance(row.get(name), str) for row in self.rows for name in names)

    def size(self, name: str) -> int:
        """Characters of text, without numbers, dates, codes and addresses."""
        texts = [value for value in self.values[name] if isinstance(value, str)]
        return sum(len(text) for text in texts if not CODE.fullmatch(text.strip()))

    def size_within(self, name: str, *columns: str) -> int:
        """Characters of the texts within lists and objects that are not about the document, nor stand in others."""
        if not self.holds(name, list, dict) or self.is_about(name) or is_noted(name):
            return 0
        beside = ("\n".join(text for column in columns for text in texts_in(row.get(column))) for row in self.rows)
        return sum(size_within(row.get(name), texts) for row, texts in zip(self.rows, beside))

    def holds_sentences(self, name: str) -> bool:
        """Whether most values have several words."""
        texts = [value.strip() for value in self.values[name] if isinstance(value, str)]
        return 2 * sum(map(has_words, texts)) > len(texts)

    def holds_messages(self, name: str) -> bool:
        return any(map(are_messages, map(parse_messages, self.values[name])))

    def holds_replies(self, name: str) -> bool:
        """Whether the values are lists of texts that could be said in turn."""
        return self.holds(name, list) and all(map(are_replies, self.values[name]))

    def is_about(self, name: str) -> bool:
        """Whether a column of lists or objects is about the document: metadata, or numbers."""
        numbers = (int, float, type(None))
        return bool(ABOUT.fullmatch(name) or META.fullmatch(name)) or all(
            isinstance(value, list) and all(isinstance(one, numbers) for one in value) for value in self.values[name]
        )

    def stands_in(self, name: str, *columns: str | None) -> bool:
        """Whether the texts of a column stand in those of others, in each row."""
        for row in self.rows[:ROWS]:
            everything = "\n".join(text for column in columns if column for text in texts_in(row.get(column))).lower()
            if not all(text.strip().lower() in everything for text in texts_in(row.get(name))):
                return False
        return True

    def is_known(self, name: str, *columns: str) -> bool:
        """Whether a column holds nothing new: texts of the others, or the first of them with more around it."""
        if any(isinstance(value, str) and RENDERED.search(value) for value in self.values[name]):
            return True
        first = columns[0]
        is_word = self.holds(first, str) and not self.holds_sentences(first)  # which can stand in any text
        return self.stands_in(name, *columns) or (not is_word and self.stands_in(first, name))

    def whole_of(self, name: str) -> str | None:
        """The column with whole texts, of which another holds the beginnings: "The river is long and..."."""
        found: Counter[str] = Counter()
        for row in self.rows:
            text = row.get(name)
            dots = DOTS.search(text, max(0, len(text) - AT_END)) if isinstance(text, str) else None
            beginning = text[: dots.start()] if isinstance(text, str) and dots else ""
            for other in row if len(beginning) >= CUT else ():
                found[other] += other != name and any(_goes_on(whole, beginning) for whole in texts_in(row[other]))
        other, count = (found.most_common(1) or [("", 0)])[0]
        return other if count >= min(2, len(self.rows)) else None  # one of many rows can begin alike

    def question_and_answer(self) -> tuple[str, str] | None:
        """The columns of a question and of its answer, by their names."""
        answer = self.first(name for name in ANSWERS if not self.holds(self.column(name), list, dict))
        for question in filter(None, map(self.column, QUESTIONS)):
            if answer and question != answer and self.asks(question, answer):
                return question, answer
        question, answer = map(self.first, SHORTENED)
        if question and answer:
            return question, answer
        languages = [name for name in self.names if name.strip().lower() in LANGUAGES and self.size(name)]
        return (languages[0], languages[1]) if len(languages) == 2 else None

    def asks(self, name: str, answer: str) -> bool:
        """Whether a column is a question, and not the source or the user that its name can mean too."""
        if not self.holds(name, str):
            return False
        return not ABOUT.fullmatch(name) or (
            self.holds_sentences(name) and CLEARLY_LONGER * self.size(name) >= self.size(answer)
        )

    def given(self, *used: str | None) -> list[str]:
        """Further columns that belong to a prompt."""
        names = (*EXTRAS, *(name for name in self.names if GIVEN.fullmatch(name.strip())))
        found = dict.fromkeys(self.column(name.strip().lower()) for name in names)
        return [name for name in found if name and name not in used and any(self.values[name])]

    def prompt_ways(self, prompts: Sequence[str], completion: str) -> str:
        """The flags of a prompt with all that belongs to it, and what they leave out."""
        is_read = is_usual(prompts[0], completion)  # what is added to the prompt, without a template
        added = [name for name in map(self.column, EXTRAS) if is_read and name and any(self.values[name])]
        further = [
            name for name in self.given(*prompts, *added, completion) if not self.is_known(name, *prompts, completion)
        ]
        further = [name for name in further if self.holds(name, str) or not (is_read and name == "history")]
        columns = [*prompts, *(name for name in added if name not in prompts)]
        texts = [name for name in further if self.are_texts(*columns, name)]
        left = [name for name in further if name not in texts]
        note = f" (which leaves out {', '.join(left)})" if left else ""
        return prompt_flags([*columns, *texts] if texts else prompts, completion) + note

    def make_texts(self, name: str) -> str:
        """How to make texts of a column that is to be learned; "" if its values are texts or messages."""
        values, path = self.values[name], jq_path(name)
        if all(isinstance(value, str) for value in values) or any(map(are_messages, values)):
            return ""
        lists = [other for other in self.names if all(_is_index(row.get(name), row.get(other)) for row in self.rows)]
        program = (
            f"{path} = {jq_path(lists[0])}[{path}]" if lists else texts(name, values, len(values) == len(self.rows))
        )
        many = " (of several in a list the first)" if "[0]" in program and any(map(_has_more, values)) else ""
        command = jq(self.jq, program)
        return f"make texts of {name!r}{many}{command and f', with {command}'}"

    def joined(self, question: str, answer: str) -> str:
        """Where an answer goes that is to stand with its question in messages, and how jq puts it there."""
        program = conversation(question, self.values[question], answer, self.values[answer])
        is_several = not self.holds_messages(question) and any(map(_has_more, self.values[question]))
        command = "" if is_several else jq(self.jq, program)
        of = "the messages in" if self.holds_messages(question) else "a list of messages with"
        return f"{of} {question!r}{command and f', with {command}'}"

    def answer_to(self, name: str) -> str | None:
        """The column of the answers to conversations: a usual one, or one named as such if none of them has any."""
        conversations = [value for value in map(parse_messages, self.values[name]) if are_messages(value)]
        named = [other for other in self.names if ANSWER_LIKE.fullmatch(other) or GENERATED.fullmatch(other)]
        names = [*ANSWERS, *(other.strip().lower() for other in named), *REFERENCES]
        return self.first(ANSWERS if any(map(is_answered, conversations)) else names)

    def unclear(self, reason: str = "", pair: tuple[str, str] | None = None) -> UsageError:
        because = f" ({reason})" if reason else ""
        names = shortened([f"{name}{self._kind(name)}" for name in self.names])
        way = self._talk_way() or f"{self._flags(pair)}{self._jq()}"
        return UsageError(f"{self.place}: which column is the text?{because} Its columns are {names}; {way}")

    def _talk_way(self) -> str:
        """How the messages of a column are read with the task or the answer beside them; "" if that is not clear."""
        for name in self.names:
            talks: list[Any] = [value for value in self.values[name] if are_messages(value)]
            if not talks or not self.holds(name, list):
                continue
            task = next((found for found in map(self.column, TASKS) if found and self.asks(found, name)), None)
            task = None if task and self.stands_in(task, name) else task
            answer = None if any(map(is_answered, talks)) else self.answer_to(name)
            if (
                task
                and task.isidentifier()
                and not any(key in one for talk in talks for one in talk for key in ROLE_KEYS)
            ):
                command = jq(self.jq, f"{{{task}}} + {jq_path(name)}[]")
                return f"write a row for each of {name!r}, with its {task!r}{command and f': {command}'}"
            if answer:
                return f"add {answer!r} to {self.joined(name, answer)}"
            if task and not is_whole(talks):
                return f"add {name!r} to {self.joined(task, name)}"
            if any(map(is_answered, talks)):
                note = f" (which leaves out {task})" if task else ""
                return f"name it with {column_flag('messages', name)}{note}, or --text_column="
        return ""

    def _jq(self) -> str:
        """How jq makes rows of the objects in a column."""
        if len(self.names) == 1 and self.holds(self.names[0], dict):
            command = jq(self.jq, jq_path(self.names[0]))
            return command and f"; {command} makes its objects rows"
        return ""

    def _flags(self, pair: tuple[str, str] | None) -> str:
        replies = [name for name in self.names if name.strip().lower() in TALKS and self.holds_replies(name)]
        if pair := pair or self.question_and_answer() or self._listed_answer():
            context = [name for name in self.given(*pair) if self.are_texts(name) and name.isidentifier()]
            template = "\\n".join(f"{{{name}}}" for name in (*context, pair[0]))
            completion = column_flag("completion", pair[1])
            plain = f"{column_flag('prompt', pair[0])} {completion}"
            read = EXTRAS if is_usual(*pair) else ()
            if left := [name for name in self.given(*pair) if name.strip().lower() not in read]:
                plain += f" (which leaves out {', '.join(left)})"
            both = f'--prompt_template="{template}" {completion}, {plain}' if context else plain
            first = self.make_texts(pair[1])
            return f"{first and f'first {first}; then '}name it with {both}, or --text_column="
        if replies:
            talk, text = (column_flag(kind, replies[0]) for kind in ("messages", "text"))
            return f"name it with {talk} (user and assistant in turn), or {text}"
        return "name it with --text_column=, or --prompt_column= and --completion_column="

    def _listed_answer(self) -> tuple[str, str] | None:
        """The columns of a question and of answers in lists or objects."""
        names = (other for name in ANSWERS for other in (name, f"{name}s"))
        answer = self.first(name for name in names if self.holds(self.column(name), list, dict))
        question = next(
            (name for name in map(self.column, QUESTIONS) if answer and name and self.asks(name, answer)), None
        )
        return (question, answer) if question and answer else None

    def _kind(self, name: str) -> str:
        """` (list)` behind the name of a column that holds no text."""
        for kind, word in ((list, "list"), (dict, "object")):
            if self.holds(name, kind):
                return f" ({word})"
        return ""


def _has_more(value: Any) -> bool:
    """Whether a value is a list of several, or an object with one."""
    return isinstance(value, list) and len(value) > 1 or isinstance(value, dict) and any(map(_has_more, value.values()))


def _is_index(value: Any, texts: Any) -> bool:
    """Whether a number is the place of an answer in a list of them."""
    is_list = isinstance(texts, list) and all(isinstance(text, str) for text in texts)
    return is_list and isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(texts)


def _goes_on(text: str, beginning: str) -> bool:
    """Whether a text begins so and goes on with words, not with dots or markup."""
    rest = text[len(beginning) :]
    if not text.startswith(beginning) or len(rest) <= 3 or MORE_DOTS.match(rest):
        return False
    rest = MARKUP.sub(" ", rest)
    words = WORD.findall(rest)
    goes_straight_on = rest.lstrip()[:1].isalpha() and not rest.lstrip()[:1].isupper()
    return len(words) >= (1 if goes_straight_on else GOES_ON)


def texts_in(value: Any) -> list[str]:
    """The texts in a value, at any depth."""
    if isinstance(value, str):
        value = parse_messages(value)
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [text for one in value for text in texts_in(one)]
    return [value] if isinstance(value, str) else []
