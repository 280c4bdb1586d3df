"""Tables that are a talk between people, one utterance a row: documents of single rows would lose who speaks."""

from __future__ import annotations

import re
from typing import Any

from finetune.common.errors import UsageError
from finetune.data.row_shape import column_flag, jq_path, shortened
from finetune.data.turns import ROLE_OF

LISTS_OF_TALK = "messages conversation conversations dialog dialogue chat chats utterances turns transcript log".split()
SPEAKERS = re.compile(r"(speaker|sender|participant|character|nick|player|actor)([ _]?name|[ _]?id)?", re.IGNORECASE)
PERHAPS = ("from", "role", "author", "user", "username", "user_name", "name", "creator", "from_name")
SAID = "text content message utterance body value line msg dialogue dialog playerline mes".split()
ONLY_SAID = ("message", "utterance", "msg", "mes")  # which no article is called
LETTER = ("to", "subject", "recipient")  # columns of mail, and of translations
# columns of Slack's, Discord's and Messenger's exports
EXPORTED = ("ts", "reactions", "attachments", "timestamp_ms", "mentions", "thread_ts", "text_entities")
NAMES = ("name", "username", "global_name", "user", "displayname", "id")  # of a speaker that is an object


def check(rows: list[dict[str, Any]], rows_of: str | None, place: str, is_json: bool) -> None:
    """Raise UsageError if rows are utterances: who speaks, and the ways out. `rows_of` is the list that holds them."""
    names = {name.strip().lower(): name for row in rows for name in row}
    said = next((names[name] for name in SAID if name in names), None)
    if said is None:
        return
    is_export = (rows_of or "").lower() in LISTS_OF_TALK or not {*names}.isdisjoint(EXPORTED)
    # not Telegram's `actor` of who came and went
    names = {key: name for key, name in names.items() if any(row.get(said) and row.get(name) for row in rows)}
    speaker = _speaker(names, rows, is_export, said)
    if speaker is None:
        return
    values = [_name(row.get(speaker)) for row in rows if row.get(said)]
    people = list(dict.fromkeys(str(value) for value in values if value))
    is_talk = (rows_of or "").lower() in LISTS_OF_TALK
    if not people or all(name.strip().lower() in ROLE_OF for name in people):
        return
    if len(people) == len(values) and not is_talk:
        return  # each speaks once, as the authors of documents
    ways = f"write it as one text of lines such as '{people[0]}: ...'{_jq(rows, speaker, said) if is_json else ''}"
    raise UsageError(
        f"{place}: is a talk with a row for each utterance ({speaker!r}: {shortened(people, 3)}); as documents,"
        f" rows lose who speaks; {ways}, or read them as documents with {column_flag('text', said)}"
    )


def _speaker(names: dict[str, str], rows: list[dict[str, Any]], is_export: bool, said: str) -> str | None:
    if found := next((names[name] for name in names if SPEAKERS.fullmatch(name)), None):
        return found
    is_mail = any(name in names for name in LETTER)
    for name in PERHAPS:
        column = names.get(name)
        if column and column != said and not (is_mail and name == "from"):
            is_object = any(isinstance(row.get(column), dict) for row in rows)
            if is_export or is_object or name == "from" or said.lower() in ONLY_SAID:
                return column
    return None


def _name(value: Any) -> Any:
    """The name of a speaker."""
    return next((value[name] for name in NAMES if value.get(name)), None) if isinstance(value, dict) else value


def _jq(rows: list[dict[str, Any]], speaker: str, said: str) -> str:
    """How jq writes the talk, if its cells are as simple as that."""
    said_by = [row for row in rows if row.get(said) not in (None, "")]  # not a picture, or that somebody came
    if not all(isinstance(row.get(key), str) for row in said_by for key in (speaker, said)):
        return ""
    name, text = jq_path(speaker), jq_path(said)
    # Telegram and Slack write the parts of a text below it, as objects with a text and no speaker
    program = f'select({name} and {text} and {text} != "") | "\\({name}): \\({text})"'
    return f", for example with jq -r '.. | objects | {program}'"
