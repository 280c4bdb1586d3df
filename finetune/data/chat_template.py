"""The chat template of a tokenizer: conversations rendered by transformers, with what is learned of them."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from finetune.data import bpe_files, chat
from finetune.data.chat import Conversation
from finetune.data.documents import Chunk
from finetune.data.hf_tokenizer import HFTokenizer
from finetune.data.tokenizer import Tokenizer

MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True)
class ChatTemplate:
    """A Jinja template of `apply_chat_template`. `special` are the names of special tokens that it can use."""

    source: str
    special: Mapping[str, str] = field(default_factory=dict)
    end: str | None = None  # the end-of-text token

    @functools.cached_property
    def marks_turns(self) -> bool:
        """Whether {% generation %} says what is learned."""
        return bool(MARK.search(self.source))

    @functools.cached_property
    def words(self) -> frozenset[str]:
        """Its words, among them the keys of messages that it can render."""
        return frozenset(re.findall(r"\w+", self.source))

    def chunk(self, conversation: Conversation) -> Chunk:
        """The document of a conversation, as one Chunk with the spans that are learned. Raises ValueError."""
        text = self._render(conversation, len(conversation.turns))
        spans = self._marked(conversation) if self.marks_turns else self._found(conversation, text)
        if self.end and not text.rstrip("\n").endswith(self.end):  # a document ends with it
            # a template that marks turns says all that is learned
            is_learned = conversation.turns[-1].is_target and not self.marks_turns
            spans += [] if not is_learned else [(len(text), len(text) + len(self.end))]
            text += self.end
        return Chunk(text, is_last=True, spans=tuple(spans))

    def _marked(self, conversation: Conversation) -> list[tuple[int, int]]:
        """The spans that the template marks, without those of turns with weight 0."""
        _, (marked,) = self._call(conversation.messages, conversation.tools, return_assistant_tokens_mask=True)
        spoken = [turn for turn in conversation.turns if turn.role == "assistant"]
        if len(marked) == len(spoken):
            return [(start, end) for (start, end), turn in zip(marked, spoken) if turn.is_target]
        if all(turn.is_target for turn in spoken):
            return list(marked)
        raise ValueError("its chat template marks turns of other roles than assistant, so a weight of 0 cannot apply")

    def _found(self, conversation: Conversation, text: str) -> list[tuple[int, int]]:
        """The spans from the generation prompt to the end of each turn of the assistant."""
        spans = []
        for number, turn in enumerate(conversation.turns):
            if not turn.is_target:
                continue
            before = self._render(conversation, number, add_generation_prompt=True)
            if not text.startswith(before):
                before = self._render(conversation, number)
            after = self._render(conversation, number + 1)
            if not (text.startswith(before) and text.startswith(after)):
                raise ValueError("its chat template rewrites earlier turns, so it does not show what is learned")
            spans.append((len(before), len(after)))
        return spans

    def _render(self, conversation: Conversation, count: int, add_generation_prompt: bool = False) -> str:
        """The text of the first `count` turns."""
        if not count:
            return "" if not add_generation_prompt else self._prompt_alone(conversation)
        arguments = {"add_generation_prompt": add_generation_prompt}
        (text,), _ = self._call(conversation.messages[:count], conversation.tools, **arguments)
        return text

    def _prompt_alone(self, conversation: Conversation) -> str:
        """The generation prompt without a message, "" if the template needs one."""
        try:
            (text,), _ = self._call([], conversation.tools, add_generation_prompt=True)
            return text
        except ValueError:
            return ""

    def _call(self, messages: list[dict[str, Any]], tools: list[Any] | None, **arguments: Any) -> tuple[Any, Any]:
        try:
            return chat.call_template(self.source, messages, self.special, tools=tools, **arguments)
        except ValueError as error:
            raise ValueError(f"the chat template of the tokenizer fails on it: {error}") from None


def of_tokenizer(tokenizer: Tokenizer) -> ChatTemplate | None:
    """The chat template of a tokenizer's own; None if it has none, or ours."""
    source = getattr(tokenizer, "chat_template", None)
    if source is None or source == chat.TEMPLATE:
        return None
    return ChatTemplate(source, special_names(tokenizer), tokenizer.eot_text)


def special_names(tokenizer: Tokenizer) -> dict[str, str]:
    """The special tokens that a chat template can use, such as {"eos_token": "</s>"}, as transformers names them."""
    end = tokenizer.eot_text
    if isinstance(tokenizer, HFTokenizer):
        names = dict(tokenizer.named)
    else:
        files: dict[str, bytes] = getattr(tokenizer, "files", {})
        config = bpe_files.read_object(files, "tokenizer_config.json")
        is_gpt2 = (config.get("tokenizer_class") or "GPT2Tokenizer").startswith("GPT2Tokenizer")
        names = dict.fromkeys(("bos_token", "eos_token", "unk_token"), end) if is_gpt2 and end else {}
        for known in (bpe_files.read_object(files, "special_tokens_map.json"), config):
            names |= {key: text for key in bpe_files.NAMED_TOKENS if (text := bpe_files.content(known.get(key)))}
    if end and tokenizer.chat_template in (None, chat.TEMPLATE):  # ours needs it
        names.setdefault("eos_token", end)
    return names
