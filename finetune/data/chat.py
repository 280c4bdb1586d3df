"""Chat data: conversations as text, and chat templates.

In our template each message is a line with its role, then its content. Only what the assistant says is a target, with
an end-of-text token after each of its messages. A tokenizer with a chat template of its own renders with that."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from finetune.common.errors import UsageError
from finetune.common.formatting import unify_newlines
from finetune.data import bpe_files
from finetune.data.bpe_files import END_OF_TEXT
from finetune.data.documents import Chunk
from finetune.data.rows import name_of_value

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
LEARN, HIDE = ("weight", "train", "training", "loss", "loss_weight"), ("mask", "masked")  # whether a message is learned
# contents of a message that a text template has no place for
CALLS = ("tool_calls", "function_call", "audio", "refusal", "images", "reasoning_content", "thinking")


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


def turns_of(value: object) -> list[Turn]:
    """The turns of a list of messages, in the spelling of OpenAI, ShareGPT and their like. Raises ValueError."""
    if not isinstance(value, list) or not value:
        raise ValueError(f"a list of messages is needed, not {name_of_value(value)}")
    return [_turn(message) for message in value]


def _turn(message: object) -> Turn:
    if not isinstance(message, dict):
        raise ValueError(f"a message is an object with role and content, not {name_of_value(message)}")
    given = next((message[key] for key in ROLE_KEYS if key in message), None)
    contents = [message[key] for key in CONTENT_KEYS if key in message]
    if not isinstance(given, str) or not (contents or message.get("tool_calls")):
        raise ValueError(f"a message needs role and content, both text, but found {str(message)[:60]}")
    role = ROLE_OF.get(given.strip().lower())
    if role is None:
        talk = f'a talk between people is a text, {{"text": "{given}: ..."}}'
        raise ValueError(f"the role {given!r} is none of {', '.join(sorted(ROLE_OF))}; {talk}")
    content = _content(contents[0] if contents else None)
    learned = {key: message[key] for key in LEARN if message.get(key) is not None}
    hidden = {key: message[key] for key in HIDE if message.get(key) is not None}
    for key, choice in {**learned, **hidden}.items():
        if choice not in (0, 1):
            raise ValueError(f"{key} of a message is 0 or 1, not {choice!r}; parts of a weight are not supported")
    flags = {"from", "value", *LEARN, *HIDE}
    raw = {key: value for key, value in message.items() if key not in flags and value is not None}
    raw |= {"role": role, "content": content}
    return Turn(role, content, role == "assistant" and all(learned.values()) and not any(hidden.values()), raw)


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


def check(conversation: Conversation, has_template: bool) -> None:
    """Raise ValueError if there is nothing to learn, or something that our own template cannot render."""
    turns = conversation.turns
    if not any(
        turn.role == "assistant" and ((turn.content or "").strip() or turn.raw.get("tool_calls")) for turn in turns
    ):
        raise ValueError("no message of the assistant has content, so there is nothing to learn")
    if has_template:
        return
    advice = "which only a chat template of the tokenizer's own can render: --tokenizer=DIR"
    if conversation.tools:
        raise ValueError(f"it offers tools, {advice}")
    for turn in turns:
        if found := [key for key in CALLS if turn.raw.get(key)]:
            raise ValueError(f"a message has {found[0]}, {advice}")
        if turn.content is None:
            raise ValueError("the content of a message is null")


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
    line."""
    from jinja2 import TemplateError
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        everything: dict[str, Any] = {**names, **arguments}
        return render_jinja_template([messages], chat_template=template, **everything)
    except (TemplateError, TypeError, ValueError, ArithmeticError) as error:
        raise ValueError(str(error).strip().partition("\n")[0]) from None
