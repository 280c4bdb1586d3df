"""What columns are commonly called, and what their values tell."""

from __future__ import annotations

import re
from typing import Any

from finetune.data.split_names import SPLITS


class NamePattern:
    """A pattern of names, which may also have spaces, hyphens or capitals (`answerText`) for its underscores."""

    PARTS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|[\s-]+")

    def __init__(self, pattern: str) -> None:
        self.pattern = re.compile(pattern, re.IGNORECASE)

    def fullmatch(self, name: str) -> re.Match[str] | None:
        return self.pattern.fullmatch(name) or self.pattern.fullmatch(self.PARTS.sub("_", name.strip()))


def last_word(name: str) -> str:
    """The word of a column's name that says what it holds."""
    return NamePattern.PARTS.sub("_", name.strip()).rpartition("_")[2]


MESSAGES = ("messages", "conversations", "conversation", "dialog", "dialogue", "chat", "chat_messages", "contents")
TALKS = (*MESSAGES, "data", "turns", "utterances", "exchanges")  # that can hold texts said in turn
SYSTEMS = (
    "system_prompt system system_message system_instruction systeminstruction systemprompt sys_prompt preamble".split()
)
# the question and its answer
PAIRS = (("prompt", "completion"), ("instruction", "output"), ("instruction", "response"))
EXTRAS = ("input", "context")  # added to the prompt
# taken only if named, because either column could be the text
QUESTIONS = (
    "question prompt instruction query input inputs input_text problem source src front q user human"
    " context post passage frage pregunta pergunta domanda vraag вопрос 问题 問題 質問 질문"
).split()
ANSWERS = (
    "answer response output completion chosen solution canonical_solution target reply outputs output_text targets tgt"
    " back a assistant bot gpt story code expected expected_output ground_truth gold final_answer correct_answer"
    " antwort respuesta resposta risposta réponse antwoord ответ 答案 回答 답변"
).split()
SHORTENED = (("article", "document", "dialogue", "dialog"), ("highlights", "summary"))
# answers to a column `text`, and answers that could also be a class of it
BESIDE_TEXT = ("translation", "translated")
CLASSES = ("label",)
ANSWER_LIKE = NamePattern(
    r"(?!.*(count|num|id$|date|time|len|score))(.*[_ ])?(answer|response|solution|completion|reply|replie|output|target"
    r"|correct|ans)s?([_ ].*)?"
)
# a column that asks, or what somebody said to whom the answer is
ASKS = NamePattern(
    r"(.*[_ ])?(questions?|prompts?|instructions?|quer(y|ies)|utterances?|requests?|frage|fragen|pregunta|pergunta"
    r"|domanda|vraag|вопрос|问题|問題|質問|질문)([_ ](texts?|body|title))?"
    r"|(user|human|customer|client|patient|student|input)s?([_ ](texts?|inputs?|messages?|said|turns?|utterances?))?"
    r"|title|subject"
)
# a text that answers it, beside those that are ANSWER_LIKE
GENERATED = NamePattern(
    r"(generat(ed|ion)s?|bot|assistant|ai|gpt\w*|model|llm|agent)([_ ](texts?|messages?|turns?|outputs?))?|antworte?n?"
    r"([_ ]?texte?)?|respuestas?|respostas?|risposte?|réponses?|antwoord(en)?|ответы?|答案|回答|답변"
)
RENDERED = re.compile(
    r"###? ?(Instruction|Response|Human|User)|<\|im_start\|>|\[INST\]"
)  # prompt and answer in one text
LANGUAGES = frozenset(
    "english german french spanish italian portuguese dutch russian chinese japanese korean arabic hindi turkish polish"
    " latin greek hebrew deutsch englisch français español en de fr es it pt nl ru zh ja ko ar".split()
)
# words that head a column, and are seldom a cell of it
HEADINGS = frozenset(
    [
        *"id index key value title headline subject name author user username url link email file path".split(),
        *"filename text texts body content document article abstract summary sentence paragraph passage".split(),
        *"tweet post message review comment quote caption description transcript question query answer".split(),
        *"prompt instruction input completion response output context label labels category class tag tags".split(),
        *"topic genre sentiment rating score stars source date time timestamp year language lang word".split(),
        *"meaning term definition translation".split(),
    ]
)
# what a prompt asks about
GIVEN = NamePattern(
    r"(self_?text|question_(body|details?|text)|(chat_?)?history|schema|suffix|previous|persona|personality|choices"
    r"|options|examples?|facts|evidence"
    r"|(input|source|given|reference)?_?(text|code|document|passage|paragraph|article|context|inputs?|table|story"
    r"|snippet|query|question|instruction|transcript)s?)"
)
# further texts of an answer, or about it
FURTHER = NamePattern(
    r".*(reject|reason|rational|think|thought|expla|cot|critique|comment|note|review|feedback|meta|test|summar|translat"
    r"|original|raw|output|response|negativ|answer|completion|label|solution).*"
)
# columns of text that is about the document
ABOUT = NamePattern(
    r"(.*_)?(id|ids|uuid|guid|key|index|hash|sha|label|labels|class|category|categories|lang|language|locale|url|uri"
    r"|link|href|title|headline|name|names|author|user|username|date|time|datetime|timestamp|created|updated|source"
    r"|split|file|filename|path|tag|tags|type|status|score|rating|version|license|country|city"
    r"|email(?!_(text|body|content|message))|keyword|topic)s?(_.*)?"
)
# lists and objects that are about the document
META = NamePattern(r"(.*_)?(meta_?(data)?|metrics|embeddings?|vectors?|scores|stats|authors)(_.*)?")
# a number, an id, a language, an address, a date or a word for nothing
CODE = re.compile(
    r"[-+]?[\d.,:/%eE-]+|[0-9a-f-]{16,}|[a-z]{2,3}([-_][A-Za-z]{2,4})?|\w+://\S*|true|false|null|none"
    r"|\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}([T ,]+\d[\d:.,+-]*\s?([AP]M|Z|[A-Z]{3,4})?)?",
    re.IGNORECASE,
)
# a list or bytes, written by print
PYTHON = re.compile(r"""\s*\[\s*(?:[\[{]|[ub]?['"]).*\]\s*$|b(['"]).*\1$""", re.DOTALL)
# a column whose numbers or plain words can tell good answers from bad ones
LABEL = NamePattern(
    r"(is_|was_|kto_|human_|user_)*(labels?|tag|good|bad|best|correct|incorrect|desirable|chosen|preferred|feedback"
    r"|rating|thumbs?(_?up|_?down)?|accept(ed|able)?|reject(ed)?|approved?|pass(ed)?|fail(ed)?|correctness|valid|reward"
    r"|votes?|score|helpful|outcome|verdict|quality|status|safe|unsafe|toxic|harmful|hallucinat(ed|ion)|deleted"
    r"|ignored?|flagged|spam)"
)
# of these one value is enough
SURE_LABEL = NamePattern(
    r"(is_|kto_|human_|user_)?(labels?|tag|good|correct|desirable|chosen|accepted|preferred|feedback|rating"
    r"|thumbs_?up)"
)
PLAIN_VERDICTS = ("0 1 true false 0.0 1.0 -1 -1.0", "yes no", "positive negative neutral", "up down", "chosen rejected")
# words that tell it in a column of any name
VERDICTS = (
    "good bad ok poor",
    "desirable undesirable",
    "correct incorrect wrong right",
    "pass fail passed failed",
    "thumbs_up thumbs_down 👍 👎",
    "accepted rejected approved accept reject pending",
    "helpful unhelpful harmful harmless",
    "safe unsafe",
    "valid invalid",
    "preferred dispreferred",
    "✅ ❌ ✓ ✗ ✔ ✘ ✖",
)
MEDIA = ("image", "images", "audio", "audios", "video", "videos")
IN_SPLIT = NamePattern(r"(is|in|for)_?(train|training|valid|validation|val|dev|eval|test|holdout)(_?set)?")


def is_usual(prompt: str, completion: str) -> bool:
    """Whether a prompt is found with its completion without flags, or is Alpaca's."""
    names = prompt.strip().lower(), completion.strip().lower()
    return names in PAIRS or names[0] == "instruction"


def as_word(value: Any) -> str:
    return str(value).strip().lower().replace(" ", "_").replace("\ufe0f", "")


def tells_good_from_bad(name: str, values: list[Any]) -> bool:
    """Whether a column is a verdict on the answers of its rows."""
    found = {as_word(value) for value in values}
    known = (*VERDICTS, *(PLAIN_VERDICTS if LABEL.fullmatch(name) else ()))
    is_sure = len(found) > 1 or (bool(found) and SURE_LABEL.fullmatch(name) is not None)
    return is_sure and any(found <= {*words.split()} for words in known)


def can_be_verdict(words: set[str]) -> bool:
    """Whether words, as `as_word` makes them, can be part of a verdict."""
    return any(words <= {*known.split()} for known in (*VERDICTS, *PLAIN_VERDICTS))


def has_heading(cells: list[str], below: list[list[str]]) -> bool:
    """Whether one of some cells is a common name of a column, and no cell of the rows below in that column."""
    columns = [{row[number].strip() for row in below if number < len(row)} for number in range(len(cells))]
    return any(cell.lower() in HEADINGS and cell not in column for cell, column in zip(cells, columns))


def split_of(name: str, value: Any) -> str | None:
    """The split that a cell names, if its column does that."""
    word = as_word(value)
    if IN_SPLIT.fullmatch(name):
        return word if word in ("0", "1", "0.0", "1.0", "true", "false", "yes", "no") else None
    return SPLITS.get(word)
