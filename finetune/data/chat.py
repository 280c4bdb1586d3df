"""Chat data: conversations as text, and chat templates.

In our template each message is a line with its role, then its content. Only what the assistant says is a target, with
an end-of-text token after each of its messages. A tokenizer with a chat template of its own renders with that."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from finetune.common.errors import UsageError, first_line
from finetune.common.formatting import unify_newlines
from finetune.data import bpe_files
from finetune.data.bpe_files import END_OF_TEXT
from finetune.data.documents import Chunk
from finetune.data.rows import LeftOut, is_blank, name_of_value
from finetune.data.template_trial import try_template

Message = dict[str, str]  # role, content

GPT2_NAMES = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT}
# the text of `chunks` as a chat_template of transformers, exported with the tokenizer
TEMPLATE = (
    "{% for message in messages %}{{ message['role'].capitalize() + ':\\n' + message['content'] + (eos_token if"
    " message['role'] == 'assistant' else '\\n\\n') }}{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:\\n' }}{%"
    " endif %}"
)
ROLES = {
    "user": "user human prompter customer person instruction question".split(),
    "assistant": "assistant gpt ai bot chatbot chatgpt model agent answer response".split(),
    "system": "system developer".split(),
    "tool": "tool function observation function_response ipython tool_response".split(),
}
ROLE_OF = {spelling: role for role, spellings in ROLES.items() for spelling in spellings}
ROLE_KEYS, CONTENT_KEYS = ("role", "from", "speaker", "author"), ("content", "value", "text")  # of a message
# whether a message is learned
LEARN, HIDE = ("weight", "train", "training", "trainable", "loss", "loss_weight"), ("mask", "masked")
# a key that says in another way what is learned, such as train_detail, loss_mask or ignore
OTHER_FLAG = re.compile(r"(.*[_.-])?(train|loss|mask|weight|learn|supervis|ignore|reject)", re.IGNORECASE)
CALL_ROLES = ("function_call", "tool_call", "function_calls", "tool_calls", "function_calling")
# contents of a message that a text template has no place for
CALLS = (
    "tool_calls function_call audio refusal images reasoning_content reasoning thinking thought thoughts rationale"
).split()


class Turn(NamedTuple):
    """A message. `raw` is the message as it was, for a chat template of the tokenizer's own."""

    role: str
    content: str | None
    is_target: bool
    raw: dict[str, Any]


class Conversation(NamedTuple):
    """The turns of a row, and the tools that it offers."""

    turns: list[Turn]
    tools: list[Any] | None = None

    @property
    def messages(self) -> list[dict[str, Any]]:
        return [turn.raw for turn in self.turns]


def are_messages(value: object) -> bool:
    """Whether it looks like a list of messages, with role and content or with from and value."""
    is_list = isinstance(value, list) and bool(value)
    return is_list and all(isinstance(one, dict) and any(key in one for key in ROLE_KEYS) for one in value)


def is_answered(messages: list[dict[str, Any]]) -> bool:
    """Whether the last of such messages is the assistant's."""
    role = next(messages[-1][key] for key in ROLE_KEYS if key in messages[-1])
    return ROLE_OF.get(str(role).strip().lower()) == "assistant"


def turns_of(value: object) -> list[Turn]:
    """The turns of a list of messages, in the spelling of OpenAI, ShareGPT and their like. Raises ValueError."""
    if not isinstance(value, list) or not value:
        raise ValueError(f"a list of messages is needed, not {name_of_value(value)}")
    return [_turn(message) for message in value]


def _turn(message: object) -> Turn:
    if not isinstance(message, dict):
        raise ValueError(f"a message is an object with role and content, not {name_of_value(message)}")
    role_key = next((key for key in ROLE_KEYS if key in message), "")
    given, contents = message.get(role_key), [key for key in CONTENT_KEYS if key in message]
    if not isinstance(given, str) or not (contents or message.get("tool_calls")):
        raise ValueError(f"a message needs role and content, both text, but found {str(message)[:60]}")
    role = _role(given)
    content = _content(message[contents[0]] if contents else None)
    if any(message[key] not in (None, message[contents[0]]) for key in contents[1:]):
        raise ValueError(f"a message has {' and '.join(contents)}, and they differ; keep one of them")
    is_target = _is_learned(message, role)
    flags = {"from", "value", role_key, *contents, *LEARN, *HIDE}
    raw = {key: value for key, value in message.items() if key not in flags and value is not None}
    raw |= {"role": role, "content": content}
    return Turn(role, content, role == "assistant" and is_target, raw)


def _role(given: str) -> str:
    spelling = re.sub(r"[\s-]+", "_", given.strip().lower())
    if spelling in CALL_ROLES:
        raise ValueError(
            f"the role {given!r} is a call of a tool as text; write it as tool_calls of a message of the assistant,"
            " which a chat template of the tokenizer's own can render: --tokenizer=DIR"
        )
    if spelling not in ROLE_OF:
        talk = f'a talk between people is a text, {{"text": "{given}: ..."}}'
        raise ValueError(f"the role {given!r} is none of {', '.join(sorted(ROLE_OF))}; {talk}")
    return ROLE_OF[spelling]


def _is_learned(message: dict[str, Any], role: str) -> bool:
    """Whether the flags of a message let it be learned. Raises ValueError for flags that are not known."""
    given = {key: value for key, value in message.items() if value is not None and OTHER_FLAG.match(key)}
    for key, choice in given.items():
        if key not in LEARN + HIDE:
            if role == "assistant" and choice != []:
                raise ValueError(f"a message has {key}, which is not known; its weight, 0 or 1, says what is learned")
        elif choice not in (0, 1):
            raise ValueError(f"{key} of a message is 0 or 1, not {choice!r}; parts of a weight are not supported")
        elif choice and role != "assistant" and key.startswith("train"):
            raise ValueError(f"{key} of a message by the {role}: only messages of the assistant can be learned")
    return all(given.get(key, True) for key in LEARN) and not any(given.get(key) for key in HIDE)


def _content(value: object) -> str | None:
    """The text of a message, also of one that is a list of parts."""
    if value is None or isinstance(value, str):
        return value and unify_newlines(value)
    if isinstance(value, list):
        return "".join(map(_text_of_part, value))
    raise ValueError(f"the content of a message must be text, not {name_of_value(value)}")


def _text_of_part(part: object) -> str:
    if isinstance(part, str):
        return part
    if (
        isinstance(part, dict)
        and isinstance(part.get("text"), str)
        and part.get("type", "text") in ("text", "input_text", "output_text")
    ):
        return part["text"]
    kind = part.get("type", "object") if isinstance(part, dict) else name_of_value(part)
    raise ValueError(f"a part of a message is {kind!r}, and only text can be learned")


def check(conversation: Conversation, words: Container[str] | None) -> None:
    """Raise ValueError if there is nothing to learn, or something that the chat template of these words, or our own if
    it is None, cannot render. Raises LeftOut for a conversation of blanks."""
    turns = conversation.turns
    answers = [
        turn for turn in turns if turn.role == "assistant" and (turn.content is not None or turn.raw.get("tool_calls"))
    ]
    questions = [turn.content or "" for turn in turns if turn.role == "user"]
    if not answers:
        raise ValueError("no message of the assistant has content, so there is nothing to learn")
    if all(is_blank(turn.content or "") and not turn.raw.get("tool_calls") for turn in answers):
        raise LeftOut("row without an answer")
    if questions and all(map(is_blank, questions)):
        raise LeftOut("row without a question")
    advice = "which only a chat template of the tokenizer's own can render: --tokenizer=DIR"
    if words is not None:
        advice = "which the chat template of the tokenizer does not render"
    if conversation.tools and words is None:
        raise ValueError(f"it offers tools, {advice}")
    for turn in turns:
        if found := [key for key in CALLS if turn.raw.get(key) and key not in (words or ())]:
            raise ValueError(f"a message has {found[0]}, {advice}")
        if turn.content is None and words is None:
            raise ValueError("the content of a message is null")


def remarks(conversation: Conversation, words: Container[str]) -> Iterator[str]:
    """What is no fault of a conversation, and should be said, once for each time."""
    if all(turn.role != "user" for turn in conversation.turns):
        yield "conversation without a question"
    if conversation.tools and "tools" not in words:
        yield "conversation with tools, which are not read"
    for turn in conversation.turns:
        for key, value in turn.raw.items():
            if key not in ("role", "content") and key not in words and value not in ("", [], {}):
                yield f"message with {key!r}, which is not read"


def chunks(messages: Sequence[Turn | Message]) -> Iterator[Chunk]:
    """A conversation as the Chunks of one document, in our template."""
    for number, message in enumerate(messages, 1):
        turn = message if isinstance(message, Turn) else _turn(message)
        is_last, content = number == len(messages), turn.content or ""
        if turn.role == "assistant":
            yield Chunk("Assistant:\n", is_target=False)
            yield Chunk(content, is_last=is_last, is_target=turn.is_target, eot_after=not is_last)
        else:
            yield Chunk(f"{turn.role.capitalize()}:\n{content}\n\n", is_last=is_last, is_target=False)


def is_message(value: object) -> bool:
    """Whether it is a dict with role and content, both text."""
    return isinstance(value, dict) and all(isinstance(value.get(key), str) for key in ("role", "content"))


def template_of(directory: str | Path) -> str | None:
    """The chat template of a model directory, or None. Of several named templates, the one named default."""
    names = ("chat_template.jinja", "tokenizer_config.json")
    files = {name: (Path(directory) / name).read_bytes() for name in names if (Path(directory) / name).is_file()}
    try:
        return bpe_files.chat_template(files)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def render(template: str, messages: Iterable[Message], names: Mapping[str, str] = GPT2_NAMES) -> str:
    """The text of messages up to the assistant's next one, as apply_chat_template of transformers renders it. `names`
    are the special tokens that the template can use. Raises UsageError."""
    try:
        return call_template(template, list(messages), names, add_generation_prompt=True)[0][0]
    except ValueError as error:
        raise UsageError(f"the model's chat template fails on these messages: {error}") from None


def call_template(template: str, messages: list[Any], names: Mapping[str, str], **arguments: Any) -> Any:
    """What transformers' render_jinja_template gives for one conversation, in a sandbox. Raises ValueError of one
    line, also for a template that takes too much time or memory."""
    from jinja2 import TemplateError
    from transformers.utils.chat_template_utils import render_jinja_template

    everything: dict[str, Any] = {**names, **arguments}
    render = lambda: render_jinja_template([messages], chat_template=template, **everything)  # noqa: E731
    try:
        if template != TEMPLATE:
            try_template(template, render)
        return render()
    except (
        TemplateError,
        TypeError,
        ValueError,
        ArithmeticError,
        LookupError,
        AttributeError,
        RecursionError,
    ) as error:
        raise ValueError(first_line(error)) from None
