"""Short answers in a column beside the text that they answer, told from classes, flags and counts."""

from __future__ import annotations

import re
from typing import Any

from finetune.data.column_names import as_word, can_be_verdict
from finetune.data.column_profile import ROWS, Profile, texts_in

# columns of answers, by how surely they are no classes
ANSWER = re.compile(
    r"((final|correct|expected|gold|best|short|true|right|reference|ideal|human|model|target)[_ ])*(answers?|solutions?"
    r"|antwort|respuesta|resposta|risposta|réponse|antwoord|ответ|答案|回答|답변)([_ ]texts?)?",
    re.IGNORECASE,
)
REPLY = re.compile(
    r"((human|model|bot|assistant|ai|gpt\w*|expected)[_ ])*(responses?|reply|replies|completions?|translations?"
    r"|translated|assistant|gpt)([_ ]texts?)?",
    re.IGNORECASE,
)
OUTPUT = re.compile(r"targets?|target_text|tgt|outputs?|output_text|expected|expected_output|ground_truth|gold", re.I)
LABEL = re.compile(r"labels?", re.IGNORECASE)
QUESTION = re.compile(r"[?？؟][\"'”’»)\]]*\s*$")
END = re.compile(r"[.!?…。！？][\"'”’»)]*\s*$")  # of a sentence
NUMBER = re.compile(r"[-+]?[\d.,]+%?")
CODED = re.compile(r"\d|://")  # ids, dates and addresses
CHECKED = {"accept", "reject", "ignore"}  # answers of an annotator in Prodigy
AT_END = 3  # words: an answer, and a token such as </s> behind it
CLASSES, FEW = 6, 4  # so few different words can be classes; so few rows seldom have a class each


def are_questions(profile: Profile, name: str) -> bool:
    """Whether most texts of a column end in a question mark."""
    return profile.holds(name, str) and _most(QUESTION, profile.values[name])


def named_as_answers(profile: Profile) -> list[str]:
    """The columns of texts, also in lists, that are named as answers."""
    names = [name for name in profile.names if ANSWER.fullmatch(name.strip()) or REPLY.fullmatch(name.strip())]
    return [name for name in names if any(not _is_number(text) for text in texts_in(profile.values[name]))]


def is_answer(profile: Profile, text: str, name: str) -> bool:
    """Whether a column, by its name and its values, answers the texts of another, whose words do not hold it."""
    kinds = [bool(kind.fullmatch(name.strip())) for kind in (ANSWER, REPLY, OUTPUT, LABEL)]
    values = [value for value in profile.values[name] if value not in ("", [], {})]
    if not any(kinds) or not values or _stands_in(profile, text, name):
        return False
    is_sure, is_reply, is_output, is_label = kinds
    words = {as_word(value) for value in values}
    asks, differs = are_questions(profile, text), len(words) > CLASSES and 2 * len(words) > len(values)
    if all(isinstance(value, bool) for value in values):
        return is_sure and asks
    if all(map(_is_number, values)):
        is_count = name.strip().lower().endswith("s")  # answers: 3
        return (is_sure and not is_count and (asks or differs)) or (is_output and asks and differs)
    if is_sure:
        return not (words <= CHECKED or (can_be_verdict(words) and not asks))
    if is_reply:
        return asks or (len(words) > 1 and 2 * len(words) > len(values)) or _most(END, values)
    if is_label or _most(CODED, values):
        return asks and differs
    return differs or len(words) == len(values) >= FEW


def _is_number(value: Any) -> bool:
    is_word = isinstance(value, str) and NUMBER.fullmatch(value.strip()) is not None
    return is_word or isinstance(value, int | float)


def _most(pattern: re.Pattern[str], values: list[Any]) -> bool:
    return 2 * sum(isinstance(value, str) and pattern.search(value) is not None for value in values) > len(values)


def _stands_in(profile: Profile, text: str, name: str) -> bool:
    """Whether the words of a column stand in the text beside them, those of a letter or two at its end."""
    for row in profile.rows[:ROWS]:
        everything = " ".join(texts_in(row.get(text))).lower()
        last = re.findall(r"\w+", everything)[-AT_END:]
        value = row.get(name)
        for one in [str(value)] if isinstance(value, int | float) else texts_in(value):
            words = one.strip().lower()
            is_there = re.search(rf"(?<!\w){re.escape(words)}(?!\w)", everything) is not None
            if not (words in last if 0 < len(words) <= 2 else is_there or not words):
                return False
    return True
