"""The texts within lists and objects: as much as a column of texts may hold."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from finetune.data.column_names import ABOUT, CODE, META, NamePattern
from finetune.data.rows import has_words

# lists and objects about a text, or about the answer of a server, by parts of their names
NOTED = NamePattern(
    r"(.*_)?(annotat\w+|entit(y|ies)|spans?|tokens?|mentions?|hashtags?|columns?|fields?|headers?|features?|dtypes?"
    r"|config\w*|settings?|options|param(eter)?s?|arg(ument)?s?|properties|request|query|pagination|paging|links?"
    r"|facets?|references|bibliography|contributors?|publisher|contact|provider|owner|warnings?|errors?|debug|logs?"
    r"|tools?|functions?|guidelines?)(_.*)?"
)
WORDS = 4  # of a text that is more than the value of a key
CHARACTERS = 20  # the same of a script without spaces
# columns beside a prompt and its answer that it is about, by parts of their names, and the turns before it
GIVEN = NamePattern(
    r"(.*_)?(contexts?|passages?|documents?|docs|chunks?|snippets?|paragraphs|articles|sources|excerpts?|retriev\w*"
    r"|search_results?|web_results?|knowledge|evidences?|facts|background)(_?(texts?|contents?|list|\d+))?"
)
BEFORE = NamePattern(
    r"(previous|prior|preceding|earlier|past)_(turns?|messages?|dialog(ue)?s?|conversations?|utterances?)"
)
# columns that are about how the answer was made, or say it again
MADE = NamePattern(
    r".*(step|trace|chain|plan|call|candidate|generation|alternativ|variant|paraphras|turn|conversation|message|log"
    r"|evaluat|assess|judg|verif|analys|grad|rubric|constraint|keyword|neg_).*"
)


def is_noted(key: str) -> bool:
    """Whether what stands under a key is about a text, and no text."""
    return any(pattern.fullmatch(key) for pattern in (ABOUT, META, NOTED))


def is_given(key: str) -> bool:
    """Whether a list or an object is what a prompt is about, by its name."""
    return bool(BEFORE.fullmatch(key) or (GIVEN.fullmatch(key) and not MADE.fullmatch(key)))


def texts_within(value: Any) -> Iterator[tuple[str, str]]:
    """(key, text) of the texts of several words in a list or an object, at any depth, but not of what is noted."""
    stack = [("", value)]
    while stack:
        key, one = stack.pop()
        if isinstance(one, dict):
            stack += [(name, below) for name, below in reversed(one.items()) if not is_noted(name)]
        elif isinstance(one, list):
            stack += [(key, below) for below in reversed(one)]
        elif isinstance(one, str) and has_words(one.strip()) and not CODE.fullmatch(one.strip()):
            yield key, one


def size_within(value: Any, beside: str) -> int:
    """Characters of the texts in a list or an object that do not stand in the text beside it."""
    if not isinstance(value, list | dict):
        return 0
    texts = [text for _, text in texts_within(value) if _is_long(text) and text.strip() not in beside]
    return sum(map(len, texts))


def _is_long(text: str) -> bool:
    return len(text.split()) >= WORDS or (not text.isascii() and len(text) >= CHARACTERS)
