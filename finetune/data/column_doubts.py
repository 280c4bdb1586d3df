"""Tables in which a column that is not read says that the rest is not what it seems: refused, with the way out."""

from __future__ import annotations

from typing import Any

from finetune.common.errors import UsageError
from finetune.data import short_answers, ways_out
from finetune.data.column_names import (
    ABOUT,
    ANSWER_LIKE,
    ANSWERS,
    ASKS,
    BESIDE_TEXT,
    FURTHER,
    GENERATED,
    IN_SPLIT,
    MEDIA,
    MESSAGES,
    PAIRS,
    QUESTIONS,
    SYSTEMS,
    split_of,
    tells_good_from_bad,
)
from finetune.data.column_profile import Profile
from finetune.data.nested import is_given
from finetune.data.row_shape import Shape, column_flag, jq_path, parse_messages
from finetune.data.turns import CONTENT_KEYS, ROLE_KEYS, ROLE_OF, are_messages, is_answered, is_flag
from finetune.data.ways_out import flags, prompt_flags

NAMED_QUESTIONS = ("question", "questions", "prompt", "prompts", "instruction", "instructions", "query", "human")
# each tree in the order of its messages, with those that were asked for again
CHATGPT = (
    'jq -c \'.[] | {messages: [.mapping[].message | select(.author.role? | IN("user", "assistant")) | {role:'
    ' .author.role, content: ([.content.parts[]? | strings] | join(""))} | select(.content != "")]} |'
    ' select(any(.messages[]; .role == "assistant"))\' FILE > out.jsonl'
)
AS_MUCH = 2  # an answer of at least one so-many-th of the text; a list of more than so many times the prompt


def check_rows(profile: Profile) -> None:
    """Raise UsageError for rows that are less than a document, or that tell good answers from bad ones."""
    check_wholeness(profile)
    columns = answered_columns(profile)
    label = next(
        (name for name in profile.names if name not in columns and tells_good_from_bad(name, profile.values[name])),
        None,
    )
    if columns and label:
        raise verdict(profile, label, columns)


def check_wholeness(profile: Profile) -> None:
    """Raise UsageError for rows that are less than a document, and for those with pictures or sounds."""
    role, content = profile.first(ROLE_KEYS), profile.first(CONTENT_KEYS)
    if role and content and all(str(value).strip().lower() in ROLE_OF for value in profile.values[role]):
        raise UsageError(
            f"{profile.place}: its rows are single messages ({role!r}, {content!r}); a row is a conversation, a list"
            ' of messages such as {"messages": [{"role": ..., "content": ...}, ...]}'
        )
    if (ids := profile.column("input_ids")) and all(map(profile.is_about, profile.names)):
        raise UsageError(
            f"{profile.place}: {ids!r} holds tokens, and texts are read; give the texts that they were made of"
        )
    if profile.column("current_node") and profile.holds(profile.column("mapping"), dict):
        raise UsageError(f"{profile.place}: is an export of ChatGPT, whose messages are trees; {CHATGPT} writes rows")
    media = profile.first(MEDIA)
    if media and (profile.column("messages") or profile.column("conversations") or profile.column("prompt")):
        raise UsageError(
            f"{profile.place}: {media!r} belongs to the conversations, and only text is learned; leave such rows out"
        )


def answered_columns(profile: Profile) -> list[str]:
    """The columns of a prompt and its completion, or of conversations, by their names; [] if there are none."""
    talks = [[name] for name in map(profile.column, MESSAGES) if name and profile.holds_messages(name)]
    pairs = [[name for name in map(profile.column, pair) if name] for pair in PAIRS]
    return next((found for found in (*(pair for pair in pairs if len(pair) == 2), *talks)), [])


def verdict(profile: Profile, label: str, columns: list[str]) -> UsageError:
    """The error of a column that is a verdict on answers."""
    flagged = flags(columns) if len(columns) == 1 else profile.prompt_ways(columns[:1], columns[1])
    return UsageError(
        f"{profile.place}: {label!r} tells good completions from bad ones; leave the bad ones out, and name {flagged}"
    )


def check_conversations(profile: Profile, name: str, used: list[str]) -> None:
    """Raise UsageError if the answer to conversations, or what they are about, stands in another column."""
    answer = profile.answer_to(name)
    for row in profile.rows:
        messages = parse_messages(row.get(name))
        if answer and row.get(answer) and are_messages(messages) and not is_answered(messages):
            raise UsageError(
                f"{profile.place}: {name!r} ends in a question, and its answer is in {answer!r}; add it to"
                f" {profile.joined(name, answer)}"
            )
    if key := _message_verdict(profile.values[name]):
        raise UsageError(
            f"{profile.place}: {key!r} of messages tells good answers from bad ones; a message with"
            f' "weight": 0 is not learned; to learn all, name {flags([name])}'
        )
    for other in profile.given(name, *used, *_asked(profile, name)):
        if not profile.is_known(other, name):
            raise UsageError(
                f"{profile.place}: {other!r} is not read, and the conversations may be about it; write it into their"
                f" first message, or leave it out with {flags([name])}"
            )


def _message_verdict(conversations: list[Any]) -> str | None:
    """The key of messages that is a verdict on them."""
    lists = [value for value in map(parse_messages, conversations) if are_messages(value)]
    found: dict[str, list[Any]] = {}
    for key, value in (item for messages in lists for message in messages for item in message.items()):
        if key not in (*ROLE_KEYS, *CONTENT_KEYS) and not is_flag(key) and value is not None:
            found.setdefault(key, []).append(value)
    return next((key for key, values in found.items() if tells_good_from_bad(key, values)), None)


def _asked(profile: Profile, name: str) -> list[str]:
    """Columns named as a list of messages too, which are other versions of it."""
    return [other for other in profile.names if other != name and profile.holds_messages(other)]


def check_systems(profile: Profile, used: str, names: list[str]) -> None:
    """Raise UsageError if one of the names is a column of the system's messages too, and differs from the one used."""
    for name in names:
        is_system = name.strip().lower() in SYSTEMS and name != used and any(profile.values[name])
        if is_system and not profile.stands_in(name, used):
            raise UsageError(
                f"{profile.place}: {used!r} and {name!r} both hold messages of the system, and they differ; keep one of"
                " the columns"
            )


def check_pair(profile: Profile, shape: Shape, usual: float | None = None) -> None:
    """Raise UsageError if a column that belongs to the prompt is not read. `usual` is the size of a prompt in the first
    rows where those lack the column, which then cannot be named in a template."""
    prompt, completion = shape.prompt or "", shape.completion or ""
    read = max(usual or 1, prompt_size(profile, shape))
    asked = profile.given(*shape.used())
    missing = []
    for name in shape.left_out:
        is_other = ABOUT.fullmatch(name) or FURTHER.fullmatch(name) or prompt.lower() in name.lower()
        is_long = profile.holds(name, str) and profile.size(name) >= read
        if profile.holds(name, list, dict) and is_given(name):
            is_long = profile.size_within(name, prompt, completion) > AS_MUCH * read
        is_input = name in asked or (is_long and not is_other)
        if is_input and any(profile.values[name]) and not profile.is_known(name, prompt, completion):
            missing.append(name)
    if missing:
        is_one = len(missing) == 1
        them, verb = ("it", "is") if is_one else ("them", "are")
        added = [shape.extra] if shape.extra and any(profile.values.get(shape.extra, [])) else []
        way = f"write {them} into the prompt"
        if usual is None and profile.are_texts(prompt, *added, *missing):
            way = f"{prompt_flags([prompt, *added, *missing], completion)} reads {them}"
        raise UsageError(
            f"{profile.place}: {' and '.join(map(repr, missing))} {verb} not read, and may belong to the prompt: {way};"
            f" {flags([prompt, completion])} leaves {them} out"
        )


def prompt_size(profile: Profile, shape: Shape) -> int:
    """Characters of the prompts that are read."""
    return sum(profile.size(name) for name in shape.used() if name != shape.completion and name in profile.names)


def check_text(profile: Profile, name: str) -> None:
    """Raise UsageError if the column `text` is the question to an answer beside it, or what both are about."""
    questions = [known for known in QUESTIONS if not ABOUT.fullmatch(known)]
    question = next(
        (found for found in map(profile.column, questions) if found != name and profile.holds(found, str)), None
    )
    known = [found for found in map(profile.column, (*ANSWERS, *BESIDE_TEXT)) if found]
    known += short_answers.named_as_answers(profile)
    for answer in dict.fromkeys((*known, *profile.names)):
        if answer == name or not any(profile.values[answer]):
            continue
        is_long = profile.holds_sentences(answer) and AS_MUCH * profile.size(answer) >= profile.size(name)
        is_whole = answer in known and (is_long or question) and not _is_joined(profile, name, question, answer)
        if is_whole or short_answers.is_answer(profile, name, answer):
            ways = profile.prompt_ways([name, question] if question else [name], answer)
            first = profile.make_texts(answer)
            leaves = f"{column_flag('text', name)} leaves {answer!r} out"
            raise UsageError(
                f"{profile.place}: which column is the text? {answer!r} may be the answer to {name!r}:"
                f" {first and f'first {first}; then '}name it with {ways}, or {leaves}"
            )


def question_to(profile: Profile, answer: str) -> str | None:
    """The column of questions that a column named `text`, or as an answer, answers; None if there is none."""
    is_text = answer.strip().lower() == "text"
    if not (is_text or ANSWER_LIKE.fullmatch(answer) or GENERATED.fullmatch(answer)):
        return None
    for name in profile.names:
        is_asked = ASKS.fullmatch(name.strip()) or not ABOUT.fullmatch(name.strip())
        is_known = name.strip().lower() in NAMED_QUESTIONS if is_text else is_asked
        asks = profile.holds(name, str) and (
            profile.holds_sentences(name) or short_answers.are_questions(profile, name)
        )
        if name != answer and is_known and asks and not profile.stands_in(name, answer):
            return name
    return None


def _is_joined(profile: Profile, text: str, question: str | None, answer: str) -> bool:
    """Whether a text holds an answer beside it, and the question."""
    return profile.stands_in(answer, text) and (not question or profile.stands_in(question, text))


class Splits:
    """Watches rows for a column that gives them to several splits, which would all be trained on."""

    def __init__(self, rows: list[dict[str, Any]], place: str, kind: str, jq: str | None) -> None:
        self.place, self.kind, self.jq = place, kind, jq
        names = dict.fromkeys(name for row in rows for name in row)
        values = {name: [row[name] for row in rows if row.get(name) not in (None, "")] for name in names}
        named = [name for name, found in values.items() if found and all(split_of(name, value) for value in found)]
        self.found: dict[str, dict[str, Any]] = {name: {} for name in named}

    def check(self, row: dict[str, Any]) -> None:
        """Raise UsageError at the second split of a column."""
        for name, seen in self.found.items():
            split = split_of(name, row.get(name))
            if split:
                seen.setdefault(split, row[name])
            if len(seen) > 1:
                splits = [str(value) for value in seen.values()]
                raise UsageError(
                    f"{self.place}: {name!r} gives its rows to splits ({', '.join(splits)}), and all would be trained"
                    f" on; write each into a file of its name{self._way(name, splits[0])}, and prepare their directory;"
                    " to take all rows, name their columns (--text_column=, ...)"
                )

    def _way(self, name: str, split: str) -> str:
        if IN_SPLIT.fullmatch(name) or not name.isidentifier() or self.kind == "a dataset":
            return ""
        if self.kind == "json":
            command = ways_out.jq(self.jq, f'select({jq_path(name)} == "{split}")', f"{split}.jsonl")
            return command and f" ({command})"
        return f" (pandas: df[df.{name} == '{split}'])"
