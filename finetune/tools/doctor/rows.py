"""Documents as rows of JSON, from which `prepare` makes the same documents: texts, and conversations with what is
learned of them."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from finetune.data import chat
from finetune.data.chat import Conversation
from finetune.data.chat_template import ChatTemplate
from finetune.data.documents import Chunk
from finetune.tools.doctor.encoding_faults import repair

Row = dict[str, Any]
ASSISTANT = "Assistant:\n"
# where a message, or an assistant's turn, begins in a text of our chat template
MESSAGE = re.compile(r"(?:^|(?<=\n\n))(System|User|Tool):\n")
TURN = re.compile(r"(?:^|(?<=\n\n))Assistant:\n")


@dataclass(frozen=True)
class Recorder(ChatTemplate):
    """Stands in for the chat template of a tokenizer: keeps each conversation beside its Chunk, of which only the text
    is used, to compare documents."""

    conversations: deque[Conversation] = field(default_factory=deque)

    def chunk(self, conversation: Conversation) -> Chunk:
        self.conversations.append(conversation)
        text, spans = "", []
        for turn in conversation.turns:
            text += f"{turn.role.capitalize()}:\n"
            said = "\n".join([turn.content or "", *(str(turn.raw[key]) for key in chat.CALLS if turn.raw.get(key))])
            spans += [(len(text), len(text) + len(said))] if turn.is_target else []
            text += f"{said}\n\n"
        return Chunk(text, is_last=True, spans=tuple(spans))


def row_of_conversation(conversation: Conversation, repairs: bool) -> Row:
    """`messages`, and the tools that the conversation offers."""
    messages = []
    for turn in conversation.turns:
        weight = {"weight": 0} if turn.role == "assistant" and not turn.is_target else {}
        messages.append({**turn.raw, **weight})
    row: Row = {"messages": messages}
    if conversation.tools:
        row["tools"] = conversation.tools
    return _repaired(row) if repairs else row


def _repaired(value: Any) -> Any:
    """A value of JSON with all its texts repaired."""
    if isinstance(value, str):
        return repair(value)[0]
    if isinstance(value, list):
        return [_repaired(one) for one in value]
    return {key: _repaired(one) for key, one in value.items()} if isinstance(value, dict) else value


def row_of_chunks(chunks: Sequence[Chunk]) -> Row:
    """`text`, or the `messages` of a document in our chat template. Raises ValueError if its form is another."""
    if all(chunk.is_target and not chunk.eot_after and chunk.spans is None for chunk in chunks):
        return {"text": "".join(chunk.text for chunk in chunks)}
    messages: list[Row] = []
    context, answer, has_answer = "", "", False
    for number, chunk in enumerate(chunks, 1):
        if chunk.is_target:
            answer, has_answer = answer + chunk.text, True
        elif has_answer:
            raise ValueError("a text that is not learned follows one that is, without an end-of-text")
        else:
            context += chunk.text
        if chunk.eot_after or number == len(chunks):
            messages += _messages(context, answer if has_answer else None, chunk.eot_after)
            context, answer, has_answer = "", "", False
    return {"messages": messages}


def _messages(context: str, answer: str | None, is_turn: bool) -> Iterable[Row]:
    """The messages up to an end-of-text: of `context` and, if it is not None, of the learned `answer`. With `is_turn`
    the last one is the assistant's."""
    last: Row = {"role": "assistant"}
    if answer is not None:
        if not context.endswith(ASSISTANT):
            raise ValueError("what is learned is not an assistant's turn")
        context, last["content"] = context.removesuffix(ASSISTANT), answer
    elif is_turn or not context.endswith("\n\n") or (MESSAGE.match(context) is None and TURN.match(context)):
        *_, turn = [None, *TURN.finditer(context)]
        if turn is None:
            raise ValueError("it ends within a message")
        last |= {"content": context[turn.end() :], "weight": 0}
        context = context[: turn.start()]
    starts = [match.start() for match in MESSAGE.finditer(context)]
    if context and (not starts or starts[0] > 0 or not context.endswith("\n\n")):
        raise ValueError("it does not begin with a message")
    messages = []
    for start, end in zip(starts, [*starts[1:], len(context)]):
        role, _, content = context[start:end].partition(":\n")
        messages.append({"role": role.lower(), "content": content.removesuffix("\n\n")})
    return [*messages, last] if "content" in last else messages


def as_pair(row: Row) -> Row | None:
    """The same conversation as `prompt` and `completion`; None if they cannot hold it."""
    messages = row.get("messages", [])
    is_plain = row.keys() == {"messages"} and all(message.keys() == {"role", "content"} for message in messages)
    if not is_plain or [message["role"] for message in messages] != ["user", "assistant"]:
        return None
    prompt, completion = (message["content"] for message in messages)
    has_both = bool(prompt and prompt.strip() and completion and completion.strip())
    return {"prompt": prompt, "completion": completion} if has_both else None
