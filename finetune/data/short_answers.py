"""Short answers in a column beside the text that they answer, told from classes, flags and counts."""

from __future__ import annotations

import re
from typing import Any

from finetune.data.column_names import as_word, can_be_verdict
from finetune.data.column_profile import ROWS, Profile, texts_in
from finetune.data.nested import is_noted
from finetune.data.row_shape import parse_messages
from finetune.data.rows import SENTENCE_END

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
NUMBER = re.compile(r"[-+]?[\d.,]+%?")
CODED = re.compile(r"\d|://")  # ids, dates and addresses
# ids, dates, addresses, names and tags without a space; a number of something
TOKEN = re.compile(r"(@\w\S*|\S*[\d_]\S*|\w+://\S*)(\s+[\d:.+-]+)?|\d[\d.,]*\s+\w+")
TAG = re.compile(r"[A-Za-z][\w-]*[_:][\w:-]+")  # an intent or a class such as NUM:date
NOTHING = {"", "null", "none", "nan", "n/a", "na", "-"}
CHECKED = {"accept", "reject", "ignore"}  # answers of an annotator in Prodigy
AT_END = 3  # words: an answer, and a token such as </s> behind it
CLASSES, FEW = 6, 4  # so few different words can be classes; so few rows seldom have a class each
REFUSAL = 3  # words of one answer to all texts, which is no thanks


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
    if not any(kinds):
        return False
    is_sure, is_reply, is_output, is_label = kinds
    is_listed = profile.holds(name, list) or profile.holds(name, dict)
    values = [cell for value in profile.values[name] for cell in _cells(value) if as_word(cell) not in NOTHING]
    if not values or (is_label and is_listed) or _stands_in(profile, text, name, is_output):
        return False
    words = {as_word(value) for value in values}
    asks, differs = are_questions(profile, text), len(words) > CLASSES and 2 * len(words) > len(values)
    if all(isinstance(value, bool) for value in values):
        return is_sure and asks
    if all(map(_is_number, values)):
        is_count = name.strip().lower().endswith("s")  # answers: 3
        return (is_sure and not is_count and (asks or differs)) or (is_output and asks and differs)
    is_verdict, is_each = can_be_verdict(words), len(words) == len(values) >= FEW
    has_words = any(isinstance(value, str) and " " in value.strip() for value in values)
    if is_sure:
        is_class = not (len(words) > CLASSES or is_each or has_words or _is_choice(profile, text, name, words))
        return not words <= CHECKED and (asks or not (is_verdict or is_class))
    if is_reply:
        is_said = _most(SENTENCE_END, profile.values[name]) and (
            len(words) > 1 or len(str(values[0]).split()) >= REFUSAL
        )
        is_said |= len(words) > 1 and 2 * len(words) > len(values)
        return asks or (is_said and not is_verdict and not _most(TOKEN, values, whole=True))
    if _most(TAG, values, whole=True) or (name.strip().lower() == "labels" and not has_words):
        return False
    if is_label or _most(CODED, values):
        return asks and differs
    return differs or (is_each and has_words)


def _is_number(value: Any) -> bool:
    is_word = isinstance(value, str) and NUMBER.fullmatch(value.strip()) is not None
    return is_word or isinstance(value, int | float)


def _most(pattern: re.Pattern[str], values: list[Any], whole: bool = False) -> bool:
    find = pattern.fullmatch if whole else pattern.search
    return 2 * sum(isinstance(value, str) and find(value.strip()) is not None for value in values) > len(values)


def _is_choice(profile: Profile, text: str, name: str, words: set[str]) -> bool:
    """Whether answers are letters of choices, which stand in the text or in other columns."""
    if any(len(word) > 1 for word in words):
        return False
    columns = {column.strip().lower() for column in profile.names}
    options = [re.findall(r"(?<!\w)(\w)[).:\]]", str(row.get(text)).lower()) for row in profile.rows[:ROWS]]
    is_listed = all(set(found) & words for found in options)
    return is_listed or words <= columns or bool(profile.given(text, name))


def _cells(value: Any) -> list[Any]:
    """The texts and numbers of a cell, at any depth, without those that are about its text."""
    value = parse_messages(value)
    if isinstance(value, dict):
        value = [below for key, below in value.items() if not is_noted(key)]
    return [cell for one in value for cell in _cells(one)] if isinstance(value, list) else [value]


def _stands_in(profile: Profile, text: str, name: str, is_output: bool) -> bool:
    """Whether the words of a column stand in the text beside them, those of a letter or two at its end; of an output,
    as of a lemma, most do, and as the beginning of a word."""
    found, count = 0, 0
    end = "" if is_output else r"(?!\w)"
    for row in profile.rows[:ROWS]:
        everything = " ".join(texts_in(row.get(text))).lower()
        last = re.findall(r"\w+", everything)[-AT_END:]
        value = row.get(name)
        cells = [str(value)] if isinstance(value, int | float) else texts_in(value)
        for words in (cell.strip().lower() for cell in cells):
            if words in NOTHING:
                continue
            is_there = re.search(rf"(?<!\w){re.escape(words)}{end}", everything) is not None
            found += words in last if len(words) <= 2 else is_there
            count += 1
    return count > 0 and (2 * found > count if is_output else found == count)
