"""Which columns of a table are the text: found in a sample of its rows, or refused if that is not clear."""

from __future__ import annotations

import dataclasses
import difflib
from typing import Any

from finetune.common.errors import UsageError
from finetune.data import column_doubts, pair_kinds, preferences, short_answers, ways_out, written_cells
from finetune.data.column_names import (
    ABOUT,
    ANSWER_LIKE,
    CLASSES,
    EXTRAS,
    MESSAGES,
    PAIRS,
    PYTHON,
    QUESTIONS,
    SYSTEMS,
    is_usual,
    last_word,
)
from finetune.data.column_profile import CLEARLY_LONGER, Profile
from finetune.data.row_shape import Shape, fields_of, parse_messages, shortened
from finetune.data.rows import FromBytes, Row
from finetune.data.turns import are_messages, are_replies, is_answered
from finetune.data.ways_out import prompt_flags

LONGER = 2  # a column with so many times the text is more probably the text


def find_shape(
    sample: list[Row], named: dict[str, str], template: str | None, place: str, jq: str | None = None
) -> Shape:
    """The shape of the rows in a sample, by the columns that are `named`, else by their names and contents.

    `named` has keys among text, prompt, completion and messages, `jq` is how jq finds the rows. Raises UsageError if it
    is not clear."""
    values = [row.value for row in sample if row.problem is None]
    if not values:
        raise UsageError(f"{place}: {sample[0].problem}{sample[0].suffix()}" if sample else f"{place}: no rows in it")
    if all(isinstance(value, list) for value in values):
        if not any(map(are_messages, values)):
            of_objects = all(isinstance(one, dict) for value in values for one in value)
            way = "pandas: to_json(FILE, orient='records', lines=True)"
            way = "jq -c '.[]' FILE > out.jsonl writes the objects in it as rows" if of_objects else way
            if all(map(are_replies, values)):
                turns = ways_out.jq(jq, "{turns: .}")
                way = f"lists of what two said in turn are rows of --messages_column=turns{turns and f' after {turns}'}"
            what = "a row is an object, or a list of messages, and nothing else"
            raise UsageError(f"{place}: row 1 is a list; {what} ({way})")
        return Shape("messages")
    if all(isinstance(value, str) for value in values):
        if written_cells.are_json(values):
            raise UsageError(f"{place}: its rows are JSON within texts; take them out with jq -c 'fromjson' for lines")
        if written_cells.are_python(values):
            raise UsageError(f"{place}: its rows are texts that Python wrote for lists or objects; write them as jsonl")
        return Shape("text")
    rows = [value for value in values if isinstance(value, dict)]
    if not rows:
        raise UsageError(f"{place}: its rows are neither objects, texts nor lists of messages")
    choice = _Choice(Profile(rows, place, jq))
    if named or template:
        return choice.by_names(named, template)
    column_doubts.check_rows(choice.profile)
    return choice.messages() or choice.pair() or choice.text()


class _Choice:
    """The shape of a table, by what its columns hold."""

    def __init__(self, profile: Profile) -> None:
        self.profile, self.place, self.names, self.values = profile, profile.place, profile.names, profile.values
        self.column = profile.column
        self.tools = "functions" if "functions" in self.names else "tools"

    def shape(self, shape: Shape, is_named: bool = False) -> Shape:
        if shape.kind == "text":
            written_cells.check_text(self.profile, shape.text or "", is_named)
        elif shape.kind == "pair":
            written_cells.check_pair(self.profile, shape)
            pair_kinds.check(self.profile, shape)
        used = shape.used()
        return dataclasses.replace(
            shape,
            left_out=tuple(name for name in self.names if name not in used),
            absent=tuple(name for name in used if name not in self.names),
        )

    def beside(self, **columns: str | None) -> dict[str, Any]:
        """The columns of these names. One that the sample has not is read where a later row has it."""
        return {key: name and (self.column(name) or name) for key, name in columns.items()}

    def system(self) -> str:
        """The column of the system's message, one with values if there is any. Raises UsageError if two differ."""
        filled = [name for name in SYSTEMS if (column := self.column(name)) and any(self.values[column])]
        if filled:
            column_doubts.check_systems(self.profile, self.column(filled[0]) or "", self.names)
        return next((name for name in (*filled, *SYSTEMS) if self.column(name)), "system")

    def beside_pair(self, prompt: str, completion: str) -> dict[str, Any]:
        """What belongs to a prompt: the column that is added to it, and the turns before. Raises UsageError if two are
        to be added."""
        names = [name for name in EXTRAS if self.column(name) not in (prompt, completion)]
        found = [name for name in names if (column := self.column(name)) and any(self.values[column])]
        if len(found) > 1:
            columns = [self.column(name) or name for name in found]
            way = "join them in one column"
            if self.profile.are_texts(prompt, *columns):
                way = f"{prompt_flags([prompt, *columns], completion)} joins them"
            raise UsageError(f"{self.place}: {' and '.join(map(repr, columns))} both belong to the prompt: {way}")
        extra = next((name for name in (*found, *names) if self.column(name)), names[0])
        return self.beside(extra=extra, history=self.history())

    def history(self) -> str | None:
        """The column of the turns before, unless it holds anything but lists of [question, answer]."""
        name = self.column("history")
        values = [value for value in map(parse_messages, self.values[name] if name else []) if value]
        are_lists = all(isinstance(value, list) for value in values)
        is_read = are_lists and all(isinstance(pair, list) and len(pair) == 2 for value in values for pair in value)
        return "history" if is_read else None

    def by_names(self, named: dict[str, str], template: str | None) -> Shape:
        for name in [*named.values(), *fields_of(template or "")]:
            if name not in self.names:
                near = difflib.get_close_matches(name, self.names, 1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise UsageError(f"{self.place}: has no column {name!r}; its columns are {shortened(self.names)}{hint}")
        if "text" in named:
            return self.shape(Shape("text", text=named["text"]), is_named=True)
        beside = self.beside(system=self.system(), tools=self.tools)
        if name := named.get("messages"):
            return self.shape(Shape("messages", messages=name, replies=self.profile.holds_replies(name), **beside))
        completion = named.get("completion") or self.column("completion")
        if completion is None:
            raise UsageError(f"{self.place}: which column is the answer? name it with --completion_column=")
        if completion in (named.get("prompt"), *fields_of(template or "")):
            raise UsageError(
                f"{self.place}: {completion!r} is also the column of questions; name another with --completion_column="
            )
        fields = fields_of(template or "")
        prompt = next((name for name in (named.get("prompt"), *fields) if name and is_usual(name, completion)), None)
        if prompt:  # what is read without flags is read with them
            beside |= self.beside(history=self.history()) if template else self.beside_pair(prompt, completion)
            extra = beside.get("extra")
            if extra in self.names and not self.profile.holds(extra, str):  # numbers, which only flags can leave out
                beside["extra"] = None
        return self.shape(Shape("pair", prompt=named.get("prompt"), completion=completion, template=template, **beside))

    def messages(self) -> Shape | None:
        for known in MESSAGES:
            name = self.column(known)
            if name and any(
                isinstance(value, str) and PYTHON.match(value) for value in map(parse_messages, self.values[name])
            ):
                raise UsageError(
                    f"{self.place}: {name!r} holds lists as Python writes them, not JSON; write them as jsonl"
                )
            if name and preferences.chosen_of(self.profile) and self.ends_in_question(name):
                return None
            if name and (known == "messages" or self.profile.holds_messages(name)):
                shape = Shape("messages", messages=name, **self.beside(system=self.system(), tools=self.tools))
                column_doubts.check_conversations(self.profile, name, shape.used())
                return self.shape(shape)
        return None

    def ends_in_question(self, name: str) -> bool:
        """Whether any of the conversations does not end with the assistant."""
        found = [value for value in map(parse_messages, self.values[name]) if are_messages(value)]
        return not all(map(is_answered, found))

    def pair(self) -> Shape | None:
        preferences.check(self.profile)
        for prompt, completion in PAIRS:
            asked, answered = self.column(prompt), self.column(completion)
            if asked and answered:
                beside = self.beside(system=self.system(), tools=self.tools) | self.beside_pair(asked, answered)
                shape = self.shape(Shape("pair", prompt=asked, completion=answered, **beside))
                column_doubts.check_pair(self.profile, shape)
                return shape
        return None

    def text(self) -> Shape:
        profile, name = self.profile, self.column("text")
        sizes = {column: profile.size(column) for column in self.names}
        if name and self.values[name]:
            column_doubts.check_text(profile, name)
            within = {column: size + profile.size_within(column, name) for column, size in sizes.items()}
            longer = [column for column, size in within.items() if size > LONGER * max(1, sizes[name])]
            if longer and profile.holds(name, str):
                raise profile.unclear(f"{longer[0]!r} holds more text than {name!r}")
            self.check_question(name)
            if whole := profile.whole_of(name):
                raise profile.unclear(f"{name!r} is cut short, and {whole!r} holds all of it")
            return self.shape(Shape("text", text=name))
        guess = self.guess(sizes)
        if short_answers.are_questions(profile, guess):
            column_doubts.check_text(profile, guess)
        answers = [name for name in self.names if ANSWER_LIKE.fullmatch(name) or name.lower() in CLASSES]
        answers = [name for name in answers if any(self.values[name]) and not profile.holds(name, list, dict)]
        if guess.lower() in QUESTIONS and answers:
            raise profile.unclear(f"{guess!r} may be the question to {answers[0]!r}", (guess, answers[0]))
        self.check_question(guess)
        if lists := [name for name in self.names if profile.holds(name, list, dict) and not profile.is_about(name)]:
            raise profile.unclear(f"{lists[0]!r} holds {'objects' if profile.holds(lists[0], dict) else 'lists'}")
        words = [] if profile.holds_sentences(guess) else list(map(str, self.values[guess]))
        if len(self.names) > 1 and 2 * len({*words}) < len(words):
            raise profile.unclear(f"{guess!r} holds the same words again and again")
        return self.shape(Shape("text", text=guess))

    def check_question(self, name: str) -> None:
        """Raise UsageError if the column of texts answers another one."""
        if question := column_doubts.question_to(self.profile, name):
            written_cells.check_text(self.profile, name, is_named=False)
            raise self.profile.unclear(f"{name!r} may be the answer to {question!r}", (question, name))

    def guess(self, sizes: dict[str, int]) -> str:
        """The column that holds most of the text by far. Raises UsageError if there is none."""
        profile = self.profile
        if profile.question_and_answer():
            raise profile.unclear()
        texts = [column for column in self.names if profile.holds(column, str)]
        guesses = [column for column in texts if sizes[column] and not ABOUT.fullmatch(column)]
        if not guesses:  # titles, with nothing that they stand above
            prose = [column for column in texts if sizes[column] and profile.holds_sentences(column)]
            named = [column for column in prose if not ABOUT.fullmatch(last_word(column))]  # such as File Content
            guesses = prose if len(prose) == 1 else named
        if len(self.names) == 1:
            guesses = texts
        if not guesses:
            raise profile.unclear()
        guess = max(guesses, key=sizes.__getitem__)
        for other in texts:
            # a word, such as a sentiment, stands beside sentences
            is_prose = other in guesses and profile.holds_sentences(other)
            times = CLEARLY_LONGER if is_prose and len(guesses) > 1 else LONGER
            if other != guess and times * sizes[other] >= max(1, sizes[guess]):
                raise profile.unclear(f"{other!r} holds as much text as {guess!r}" if times == LONGER else "")
            if is_prose and profile.holds(guess, FromBytes) and not profile.holds(other, FromBytes):
                raise profile.unclear(f"{guess!r} holds bytes, {other!r} texts")
        return guess
