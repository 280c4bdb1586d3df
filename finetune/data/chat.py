"""Chat data: conversations as text, and chat templates.

Each message is a line with its role, then its content. Only what the assistant says is a target, with an end-of-text
token after each of its messages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from finetune.common.errors import UsageError
from finetune.common.files import read_json
from finetune.data.documents import Chunk
from finetune.data.tokenizer import END_OF_TEXT

Message = dict[str, str]  # role, content

# the text of `chunks` as a chat_template of transformers, exported with the tokenizer
TEMPLATE = (
    "{% for message in messages %}{{ message['role'].capitalize() + ':\\n' + message['content'] + (eos_token if"
    " message['role'] == 'assistant' else '\\n\\n') }}{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:\\n' }}{%"
    " endif %}"
)


def messages_of(row: dict[str, Any], columns: list[str]) -> list[Message]:
    """The messages of a table row: its column(s) of messages, or a prompt and a completion as user and assistant.

    Raises ValueError if a value has another type."""
    values: dict[str, Any] = {name: row.get(name) for name in columns}
    are_texts = len(columns) == 2 and not any(isinstance(value, list) for value in values.values())
    expected, description = (str, "text") if are_texts else (list, "a list of messages")
    for name, value in values.items():
        if not isinstance(value, expected) or value == []:
            raise ValueError(f"column {name!r} must be {description}, not {name_of_type(value)}")
    if are_texts:
        return [{"role": role, "content": text} for role, text in zip(("user", "assistant"), values.values())]
    messages = [message for value in values.values() for message in value]
    for message in messages:
        if not is_message(message):
            raise ValueError(f"a message needs role and content, both text, but found {str(message)[:60]}")
    if not any(message["role"] == "assistant" and message["content"] for message in messages):
        raise ValueError("no message of the assistant has content, so there is nothing to learn")
    return messages


def is_message(value: object) -> bool:
    """Whether it is a dict with role and content, both text."""
    return isinstance(value, dict) and all(isinstance(value.get(key), str) for key in ("role", "content"))


def name_of_type(value: object) -> str:
    if value is None:
        return "null"
    return "an empty list" if value == [] else f"a value of type {type(value).__name__}"


def chunks(messages: list[Message]) -> Iterator[Chunk]:
    """A conversation as the Chunks of one document."""
    for number, message in enumerate(messages, 1):
        is_last = number == len(messages)
        if message["role"] == "assistant":
            yield Chunk("Assistant:\n", is_target=False)
            yield Chunk(message["content"], is_last=is_last, eot_after=not is_last)
        else:
            yield Chunk(f"{message['role'].capitalize()}:\n{message['content']}\n\n", is_last=is_last, is_target=False)


def template_of(directory: str | Path) -> str | None:
    """The chat template of a model directory, or None. Of several named templates, the one named default."""
    directory = Path(directory)
    if (directory / "chat_template.jinja").is_file():
        return (directory / "chat_template.jinja").read_text(encoding="utf-8")
    try:
        found = read_json(directory / "tokenizer_config.json").get("chat_template")
        return {each["name"]: each["template"] for each in found}.get("default") if isinstance(found, list) else found
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def render(template: str, messages: Iterable[Message]) -> str:
    """The text of messages up to the assistant's next one, as apply_chat_template of transformers renders it. Raises
    UsageError."""
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment  # the template came with a model, from anybody

    def raise_exception(reason: str) -> NoReturn:
        raise TemplateError(reason)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    tokens = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT}
    try:
        compiled = environment.from_string(template, globals={"raise_exception": raise_exception})
        return compiled.render(messages=messages, add_generation_prompt=True, **tokens)
    except (TemplateError, TypeError, ValueError, ArithmeticError) as error:
        raise UsageError(f"the model's chat template fails on these messages: {error}") from None
