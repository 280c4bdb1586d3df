"""Chat data: conversations as text, and chat templates.

In our template each message is a line with its role, then its content. Only what the assistant says is a target, with
an end-of-text token after each of its messages. A tokenizer with a chat template of its own renders with that."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from finetune.common.errors import UsageError, first_line
from finetune.data import bounded_call, bpe_files
from finetune.data.bpe_files import END_OF_TEXT
from finetune.data.documents import Chunk
from finetune.data.rows import LeftOut, is_blank
from finetune.data.turns import Turn, turns_of

Message = dict[str, str]  # role, content

# what a template may make of a conversation; each turn repeats a role and, in some, the tools
MORE_TEXT, MOST_TIMES = 1 << 20, 16
GPT2_NAMES = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT}
# the text of `chunks` as a chat_template of transformers, exported with the tokenizer
TEMPLATE = (
    "{% for message in messages %}{{ message['role'].capitalize() + ':\\n' + message['content'] + (eos_token if"
    " message['role'] == 'assistant' else '\\n\\n') }}{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:\\n' }}{%"
    " endif %}"
)
# contents of a message that a text template has no place for
CALLS = (
    "tool_calls function_call audio refusal images reasoning_content reasoning thinking thought thoughts rationale"
).split()


class Conversation(NamedTuple):
    """The turns of a row, and the tools that it offers."""

    turns: list[Turn]
    tools: list[Any] | None = None

    @property
    def messages(self) -> list[dict[str, Any]]:
        return [turn.raw for turn in self.turns]


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
        if len(turn.raw) > 2 and (found := [key for key in CALLS if turn.raw.get(key) and key not in (words or ())]):
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
        turn = message if isinstance(message, Turn) else turns_of([message])[0]
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
    """The chat template of a model directory, as `bpe_files.chat_template` finds it."""
    names = ("chat_template.jinja", "tokenizer_config.json")
    files = {name: (Path(directory) / name).read_bytes() for name in names if (Path(directory) / name).is_file()}
    return bpe_files.chat_template(files)


def render(template: str, messages: Iterable[Message], names: Mapping[str, str] = GPT2_NAMES) -> str:
    """The text of messages up to the assistant's next one, as apply_chat_template of transformers renders it. `names`
    are the special tokens that the template can use. Raises UsageError."""
    try:
        return call_template(template, list(messages), names, add_generation_prompt=True)[0][0]
    except ValueError as error:
        raise UsageError(f"the model's chat template fails on these messages: {error}") from None


def call_template(template: str, messages: list[Any], names: Mapping[str, str], **arguments: Any) -> Any:
    """What transformers' render_jinja_template gives for one conversation, in a sandbox. Raises ValueError of one
    line, also for a template that takes too much time, memory or text."""
    from transformers.utils import chat_template_utils  # noqa: F401  once, and not in each child

    if template == TEMPLATE:
        return _render(template, messages, {**names, **arguments})
    return bounded_call.call(_render, template, messages, {**names, **arguments})


def _render(template: str, messages: list[Any], names: dict[str, Any]) -> Any:
    from jinja2 import TemplateError
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        rendered = render_jinja_template([messages], chat_template=template, **names)
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
    size, given = len(rendered[0][0]), len(str(messages)) + len(str(names.get("tools")))
    if size > MORE_TEXT + MOST_TIMES * given:
        raise ValueError(f"it makes {size:,} characters of a conversation of {given:,}")
    return rendered
