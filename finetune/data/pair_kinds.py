"""Pairs of which one column holds messages and the other texts, or whose answers are no texts: refused, with a way."""

from __future__ import annotations

from finetune.common.errors import UsageError
from finetune.data.column_profile import Profile
from finetune.data.row_shape import Shape
from finetune.data.rows import name_of_value
from finetune.data.turns import are_messages
from finetune.data.written_cells import messages_in


def check(profile: Profile, shape: Shape) -> None:
    """Raise UsageError for a prompt and a completion of which no row can be read, because of what they hold."""
    prompt, completion = shape.prompt, shape.completion
    answers = profile.values.get(completion or "", [])
    if not completion or not answers:
        return
    questions = profile.values.get(prompt, []) if prompt else []
    is_asked, is_answered = (bool(values) and all(map(are_messages, values)) for values in (questions, answers))
    has_both = any(map(messages_in, questions)) and any(map(messages_in, answers))  # also as JSON
    if prompt and questions and is_asked != is_answered and not has_both:
        one, other = (prompt, completion) if is_asked else (completion, prompt)
        raise UsageError(
            f"{profile.place}: {one!r} holds messages, and {other!r} none; add {completion!r} to"
            f" {profile.joined(prompt, completion)}"
        )
    if not (is_answered or has_both or any(isinstance(answer, str) for answer in answers)):
        first = name_of_value(answers[0])
        raise UsageError(
            f"{profile.place}: column {completion!r} must be text, not {first}; {profile.make_texts(completion)}"
        )
