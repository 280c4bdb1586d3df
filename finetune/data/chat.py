"""Conversations as text: who speaks stands in a line of its own, and only what the assistant says is learned, with its
end-of-text."""

import json
from pathlib import Path

from finetune.common.errors import UsageError
from finetune.data.documents import Chunk
from finetune.data.tokenizer import END_OF_TEXT

# the same as `pieces`, for transformers: exported as the tokenizer's chat_template
TEMPLATE = (
    "{% for message in messages %}{{ message['role'].capitalize() + ':\\n' + message['content'] + (eos_token if"
    " message['role'] == 'assistant' else '\\n\\n') }}{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:\\n' }}{%"
    " endif %}"
)


def messages_of(row, columns):
    """The messages of a row of a table: its `messages`, or its prompt and completion as a user's and an assistant's.

    `columns` are one or two names. Raises ValueError in plain words where a value is of another kind.
    """
    values = {name: row.get(name) for name in columns}
    kind, wanted = (
        (str, "text")
        if len(columns) == 2 and not any(isinstance(value, list) for value in values.values())
        else (list, "a list of messages")
    )
    for name, value in values.items():
        if not isinstance(value, kind) or value == []:
            found = "nothing" if value is None or value == [] else f"a value of type {type(value).__name__}"
            raise ValueError(f"column {name!r} holds {found}, not {wanted}")
    if kind is str:
        return [{"role": role, "content": value} for role, value in zip(("user", "assistant"), values.values())]
    messages = [message for value in values.values() for message in value]
    for message in messages:
        if not isinstance(message, dict) or not all(isinstance(message.get(part), str) for part in ("role", "content")):
            raise ValueError(f"a message needs role and content, both text, and here is {str(message)[:60]}")
    if not any(message["role"] == "assistant" and message["content"] for message in messages):
        raise ValueError("the assistant says nothing in it, so there is nothing to learn")
    return messages


def pieces(messages):
    """A conversation as the Pieces of one document."""
    for number, message in enumerate(messages, 1):
        last = number == len(messages)
        if message["role"] == "assistant":
            yield Chunk("Assistant:\n", is_target=False)
            yield Chunk(message["content"], is_last=last, eot_after=not last)
        else:
            yield Chunk(f"{message['role'].capitalize()}:\n{message['content']}\n\n", is_last=last, is_target=False)


def template_of(directory):
    """The chat template of a model directory, or None. Where there are several by name, the one named default."""
    directory = Path(directory)
    if (directory / "chat_template.jinja").is_file():
        return (directory / "chat_template.jinja").read_text(encoding="utf-8")
    try:
        found = json.loads((directory / "tokenizer_config.json").read_text(encoding="utf-8")).get("chat_template")
        return {each["name"]: each["template"] for each in found}.get("default") if isinstance(found, list) else found
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def render(template, messages):
    """What a model is to go on from when these messages were said, as transformers' apply_chat_template has it. Raises
    UsageError."""
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment  # the template came with a model, which may be anybody's

    def refuse(reason):
        raise TemplateError(reason)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = refuse
    try:
        rendered = environment.from_string(template)
        return rendered.render(
            messages=messages, add_generation_prompt=True, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT
        )
    except (TemplateError, TypeError, ValueError, ArithmeticError) as error:
        raise UsageError(f"the model's chat template cannot be used on these messages: {error}") from None
