"""Messages: what people and models said, in the spellings of OpenAI, ShareGPT, Claude, Gemini and their like."""

from __future__ import annotations

import functools
import re
from typing import Any, NamedTuple

from finetune.common.formatting import unify_newlines
from finetune.data.rows import name_of_value

ROLES = {
    "user": "user human prompter customer person instruction question".split(),
    "assistant": "assistant gpt ai bot chatbot chatgpt bing bard model agent answer response".split(),
    "system": "system developer".split(),
    "tool": "tool function observation function_response ipython tool_response".split(),
}
ROLE_OF = {spelling: role for role, spellings in ROLES.items() for spelling in spellings}
# of a message
ROLE_KEYS, CONTENT_KEYS = ("role", "from", "speaker", "author", "sender"), ("content", "value", "text", "parts")
# of a question with its answer in one object
ASKED = {"input": "user", "prompt": "user", "output": "assistant", "completion": "assistant"}
# whether a message is learned
LEARN, HIDE = ("weight", "train", "training", "trainable", "loss", "loss_weight"), ("mask", "masked")
# a key that says in another way what is learned, such as train_detail, loss_mask or ignore
TEXT_PARTS = ("text", "input_text", "output_text")  # kinds of parts of a content
OTHER_FLAG = re.compile(r"(.*[_.-])?(train|loss|mask|weight|learn|supervis|ignore|reject)", re.IGNORECASE)
MESSAGE = re.compile(r"""\s*\{\s*["'](role|from|content|value)["']\s*:""")  # as JSON or Python writes it
CALL_ROLES = ("function_call", "tool_call", "function_calls", "tool_calls", "function_calling")


class Turn(NamedTuple):
    """A message. `raw` is the message as it was, for a chat template of the tokenizer's own."""

    role: str
    content: str | None
    is_target: bool
    raw: dict[str, Any]


class _Keys(NamedTuple):
    """The keys of a message, by what they mean."""

    role: str
    contents: list[str]
    flags: list[str]
    others: list[str]


def are_messages(value: object) -> bool:
    """Whether it looks like a list of messages, with role and content or with from and value, or of pairs."""
    is_list = isinstance(value, list) and bool(value)
    return is_list and all(
        isinstance(one, dict) and (any(key in one for key in ROLE_KEYS) or _is_pair(one)) for one in value
    )


def are_replies(value: object) -> bool:
    """Whether it is a list of texts, which user and assistant could say in turn, and not messages as JSON."""
    is_list = isinstance(value, list) and len(value) > 1
    return is_list and all(isinstance(one, str) and not MESSAGE.match(one) for one in value)


def _is_pair(pair: dict[str, Any]) -> bool:
    """Whether it is a question with its answer."""
    return _asks_and_answers(tuple(pair)) and all(isinstance(text, str) for text in pair.values())


@functools.lru_cache(1024)
def _asks_and_answers(keys: tuple[str, ...]) -> bool:
    return len(keys) == 2 and {_role_of_key(key) for key in keys} == {"user", "assistant"}


def _role_of_key(key: str) -> str | None:
    return ASKED.get(key.lower()) or ROLE_OF.get(key.lower())


def is_answered(messages: list[dict[str, Any]]) -> bool:
    """Whether the last of such messages is the assistant's."""
    role = next((messages[-1][key] for key in ROLE_KEYS if messages[-1].get(key)), "assistant")
    return ROLE_OF.get(str(role).strip().lower()) == "assistant"


def is_flag(key: str) -> bool:
    """Whether a key of a message says what is learned."""
    return key in LEARN + HIDE or OTHER_FLAG.match(key) is not None


def turns_of(value: object) -> list[Turn]:
    """The turns of a list of messages, in the spelling of OpenAI, ShareGPT and their like. Raises ValueError."""
    if not isinstance(value, list) or not value:
        raise ValueError(f"a list of messages is needed, not {name_of_value(value)}")
    messages = []
    for message in value:
        if isinstance(message, dict) and _is_pair(message):
            said = {_role_of_key(key): text for key, text in message.items()}
            messages += [_turn({"role": role, "content": said[role]}) for role in ("user", "assistant")]
        else:
            messages.append(_turn(message))
    return messages


def turns_of_replies(replies: list[str]) -> list[Turn]:
    """The turns of texts that user and assistant say in turn."""
    return turns_of([{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(replies)])


def _turn(message: object) -> Turn:
    if not isinstance(message, dict):
        raise ValueError(f"a message is an object with role and content, not {name_of_value(message)}")
    keys = _keys(tuple(key for key, value in message.items() if value is not None))  # merged tables fill up with null
    role_key, contents, flags, others = keys if keys.role and keys.contents else _keys(tuple(message))
    given = message.get(role_key)
    if not isinstance(given, str) or not (contents or message.get("tool_calls")):
        raise ValueError(f"a message needs role and content, both text, but found {str(message)[:60]}")
    role = _role(given)
    content = _content(message[contents[0]] if contents else None)
    if any(message[key] is not None and _content(message[key]) != content for key in contents[1:]):
        raise ValueError(f"a message has {' and '.join(contents)}, and they differ; keep one of them")
    given_flags = {key: message[key] for key in flags if message[key] is not None}
    is_target = not given_flags or _is_learned(given_flags, role)
    raw = {key: unified(message[key]) for key in others if message[key] is not None}
    raw |= {"role": role, "content": content}
    return Turn(role, content, role == "assistant" and is_target, raw)


@functools.lru_cache(1024)
def _keys(keys: tuple[str, ...]) -> _Keys:
    """What the keys of a message mean: most messages have the same."""
    role = next((key for key in ROLE_KEYS if key in keys), "")
    contents = [key for key in CONTENT_KEYS if key in keys]
    if contents != ["parts"]:
        contents = [key for key in contents if key != "parts"]
    hidden = {"from", "value", role, *contents, *LEARN, *HIDE}
    return _Keys(
        role,
        contents,
        flags=[key for key in keys if OTHER_FLAG.match(key)],
        others=[key for key in keys if key not in hidden],
    )


@functools.lru_cache(1024)
def _role(given: str) -> str:
    spelling = re.sub(r"[\s-]+", "_", given.strip().lower())
    if spelling in CALL_ROLES:
        raise ValueError(
            f"the role {given!r} is a tool call as text; write it as tool_calls in a message of the assistant,"
            " which a chat template of the tokenizer's own can render: --tokenizer=DIR"
        )
    if spelling not in ROLE_OF:
        talk = f'a talk between people is a text, {{"text": "{given}: ..."}}'
        raise ValueError(f"the role {given!r} is none of {', '.join(sorted(ROLE_OF))}; {talk}")
    return ROLE_OF[spelling]


def _is_learned(given: dict[str, Any], role: str) -> bool:
    """Whether the flags of a message let it be learned. Raises ValueError for flags that are not known."""
    for key, choice in given.items():
        if key not in LEARN + HIDE:
            if role == "assistant" and choice != []:
                raise ValueError(
                    f"a message has {key}, which is not known; give weight, 0 or 1, to say what is learned"
                )
        elif choice not in (0, 1):
            raise ValueError(f"{key} of a message is 0 or 1, not {choice!r}; a weight in between is not supported")
        elif choice and role != "assistant" and key.startswith("train"):
            raise ValueError(f"{key} of a message by the {role}: only messages of the assistant can be learned")
    return all(given.get(key, True) for key in LEARN) and not any(given.get(key) for key in HIDE)


def unified(value: Any) -> Any:
    """A value of JSON with the line ends of its texts as \\n."""
    if isinstance(value, str):
        return unify_newlines(value)
    if isinstance(value, dict):
        return {key: unified(one) for key, one in value.items()}
    return [unified(one) for one in value] if isinstance(value, list) else value


def _content(value: object) -> str | None:
    """The text of a message, also of one that is a list of parts."""
    if value is None or isinstance(value, str):
        return value and unify_newlines(value)
    if isinstance(value, list):
        return unify_newlines("".join(map(_text_of_part, value)))
    raise ValueError(f"the content of a message must be text, not {name_of_value(value)}")


def _text_of_part(part: object) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, dict) and part.get("type", "text") in TEXT_PARTS and not part.get("thought"):
        keys = ("text", "value", "content") if "type" in part else ("text",)  # OpenAI's, LLaMA-Factory's
        if (text := next((part[key] for key in keys if isinstance(part.get(key), str)), None)) is not None:
            return text
    kind = part.get("type", "object") if isinstance(part, dict) else name_of_value(part)
    raise ValueError(f"a part of a message is {kind!r}, and only text can be learned")
