"""A row of a table as the Chunks of a document."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from finetune.common.formatting import unify_newlines
from finetune.data import chat
from finetune.data.chat import Conversation
from finetune.data.chat_template import ChatTemplate
from finetune.data.documents import Chunk
from finetune.data.row_shape import Shape, fill_template, parse_messages
from finetune.data.rows import LeftOut, is_blank, name_of_value
from finetune.data.text_files import SURROGATE
from finetune.data.turns import Turn, turns_of, turns_of_replies, unified
from finetune.data.written_cells import messages_in


def document_of(row: Any, shape: Shape, template: ChatTemplate | None, said: Counter[str]) -> Iterable[Chunk]:
    """The Chunks of a row, without half surrogate pairs. `said` counts what a user should know of it. Raises ValueError
    if it cannot be used, and LeftOut."""
    chunks = list(_chunks_of(row, shape, template, said))
    try:
        "".join(chunk.text for chunk in chunks).encode()
    except UnicodeEncodeError:  # JSON can spell what UTF-8, and so a vocabulary, cannot hold
        said["row with half of a surrogate pair, read as U+FFFD"] += 1
        return [chunk._replace(text=SURROGATE.sub("\ufffd", chunk.text)) for chunk in chunks]
    return chunks


def _chunks_of(row: Any, shape: Shape, template: ChatTemplate | None, said: Counter[str]) -> Iterable[Chunk]:
    if shape.kind != "text":
        conversation = _conversation(row, shape)
        chat.check(conversation, template.words if template else None)
        said.update(chat.remarks(conversation, template.words if template else ()))
        return [template.chunk(conversation)] if template else chat.chunks(conversation.turns)
    value = _cell(row, shape.text)
    if isinstance(value, list) and value and all(isinstance(one, str) for one in value):
        value = "\n".join(value)
    if not isinstance(value, str):
        what = f"column {shape.text!r}" if shape.text else "a row"
        raise ValueError(f"{what} must be text, not {name_of_value(value)}")
    if is_blank(value):
        raise LeftOut("row without text")
    return [Chunk(unify_newlines(value), is_last=True)]


def _cell(row: Any, column: str | None) -> Any:
    if column is None:
        return row
    if not isinstance(row, dict):
        raise ValueError(f"it must be an object with the column {column!r}, not {name_of_value(row)}")
    return row.get(column)


def _conversation(row: Any, shape: Shape) -> Conversation:
    system = _cell(row, shape.system) if shape.system else None
    if isinstance(system, dict):  # a message, as Gemini's
        turns = turns_of([{**system, "role": "system"}])
    else:
        turns = turns_of([{"role": "system", "content": system}]) if system else []
    tools = _tools(_cell(row, shape.tools)) if shape.tools else None
    if shape.kind == "messages":
        value = parse_messages(_cell(row, shape.messages))
        if not isinstance(value, list) or value == []:
            what = f"column {shape.messages!r}" if shape.messages else "a row"
            raise ValueError(f"{what} must be a list of messages, not {name_of_value(value)}")
        is_texts = shape.replies and all(isinstance(text, str) for text in value)
        messages = turns_of_replies(value) if is_texts else turns_of(value)
        return Conversation(_after_system(turns, messages, shape), tools)
    for pair in parse_messages(_cell(row, shape.history)) or [] if shape.history else []:
        if not isinstance(pair, list) or len(pair) != 2:
            raise ValueError(f"column {shape.history!r} must be a list of [question, answer]")
        turns += turns_of([{"role": role, "content": text} for role, text in zip(("user", "assistant"), pair)])
    return Conversation(turns + _pair(row, shape), tools)


def _after_system(system: list[Turn], turns: list[Turn], shape: Shape) -> list[Turn]:
    """The messages behind the column of the system, which can stand in the first of them too."""
    if system and turns[0].role == "system":
        if (turns[0].content or "").strip() != (system[0].content or "").strip():
            raise ValueError(f"column {shape.system!r} and the message of the system differ; keep one of them")
        return turns
    return system + turns


def _pair(row: Any, shape: Shape) -> list[Turn]:
    """The turns of a prompt and a completion, each a text or a list of messages, which can stand as JSON."""
    answer = _cell(row, shape.completion)
    question = fill_template(shape.template, row) if shape.template else _cell(row, shape.prompt)
    if not shape.template:  # whose cells are taken as they are
        asked, answered = messages_in(question), messages_in(answer)
        question, answer = (asked, answered) if asked and answered else (question, answer)
    if isinstance(question, list) and isinstance(answer, list):
        if shape.extra and _cell(row, shape.extra):
            raise ValueError(f"column {shape.extra!r} cannot be added to a prompt of messages")
        before = [turn._replace(is_target=False) for turn in turns_of(question)]  # the prompt is not learned
        return before + turns_of(answer)
    extra = _cell(row, shape.extra) if shape.extra else None
    is_empty = question is None or (isinstance(question, str) and is_blank(question))
    if is_empty and isinstance(extra, str):
        question, extra = extra, None  # Alpaca's rows can have the question in `input` alone
    for name, text, what in ((shape.prompt, question, "a question"), (shape.completion, answer, "an answer")):
        if isinstance(text, str) and is_blank(text):
            raise LeftOut(f"row without {what}")
        if not isinstance(text, str):
            raise ValueError(f"column {name!r} must be text, not {name_of_value(text)}")
    if extra is not None and not isinstance(extra, str):
        raise ValueError(f"column {shape.extra!r} must be text, not {name_of_value(extra)}")
    if extra and extra.strip():
        question = f"{question}\n\n{extra}"
    return turns_of([{"role": "user", "content": question}, {"role": "assistant", "content": answer}])


def _tools(value: Any) -> list[Any] | None:
    value = parse_messages(value)
    if value and not isinstance(value, list):
        raise ValueError(f"tools must be a list, not {name_of_value(value)}")
    return unified(value) or None
