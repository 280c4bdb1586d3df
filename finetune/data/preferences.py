"""Pairs of a chosen and a rejected answer, by the names of their columns: refused, with the way to learn the chosen
ones."""

from __future__ import annotations

from finetune.common.errors import UsageError
from finetune.data import ways_out
from finetune.data.column_names import MESSAGES, PAIRS, QUESTIONS
from finetune.data.column_profile import Profile
from finetune.data.row_shape import column_flag

# (what a rejected answer is called, what the chosen one beside it is called), also as parts of a name
OPPOSITES = (
    *(("rejected", word) for word in ("chosen", "accepted", "preferred")),
    *((word, "preferred") for word in ("non_preferred", "nonpreferred", "dispreferred")),
)


def check(profile: Profile) -> None:
    """Raise UsageError for pairs of a chosen and a rejected answer, with the way to learn the chosen ones."""
    if chosen := chosen_of(profile):
        way = _way(profile, chosen)
        raise UsageError(f"{profile.place}: pairs of a chosen and a rejected answer; to learn the chosen ones {way}")


def chosen_of(profile: Profile) -> str | None:
    """The column of the chosen answers, beside one of rejected ones."""
    chosen = profile.column("chosen")
    if chosen and profile.column("rejected"):
        return chosen
    if any(profile.column(prompt) and profile.column(completion) for prompt, completion in PAIRS):
        return None  # which are learned
    talks = any(map(profile.holds_messages, profile.names))
    if profile.column("text") or not (talks or profile.first(("prompt", *QUESTIONS))):
        return _text_of_autotrain(profile)  # reviews or reasons, beside the text that they are about
    names = [name.strip().lower() for name in profile.names]
    pairs = [(name, name.replace(*words)) for name in names for words in OPPOSITES if words[0] in name]
    found = ((profile.column(rejected), profile.column(chosen)) for rejected, chosen in pairs)
    named = next((chosen for rejected, chosen in found if rejected and chosen and _is_answer(profile, chosen)), None)
    return named or _text_of_autotrain(profile)


def _is_answer(profile: Profile, name: str) -> bool:
    """Whether a column can hold answers, and not numbers or verdicts."""
    return profile.holds_sentences(name) or profile.holds(name, list, dict)


def _text_of_autotrain(profile: Profile) -> str | None:
    """The chosen answers as AutoTrain has them: `text` behind `prompt`, beside `rejected_text`."""
    prompt, text = profile.column("prompt"), profile.column("text")
    is_behind = prompt and text and profile.column("rejected_text") and not profile.stands_in(prompt, text)
    return text if is_behind else None


def _way(profile: Profile, chosen: str) -> str:
    """How to learn the chosen answers with their questions."""
    answers = profile.values[chosen]
    if ways_out.is_whole(answers):
        return f"name {column_flag('messages', chosen)}"
    talk = next((name for name in map(profile.column, MESSAGES) if name and profile.holds_messages(name)), None)
    question = talk or profile.first(("prompt", *QUESTIONS))
    if not question or question == chosen:
        return f"name {column_flag('messages' if profile.holds_messages(chosen) else 'text', chosen)}"
    is_text, is_list = (profile.holds(question, kind) and profile.holds(chosen, kind) for kind in (str, list))
    if is_text and not talk:
        return f"name {profile.prompt_ways([question], chosen)}"
    if is_list and profile.holds_messages(chosen):
        return f"name {ways_out.flags([question, chosen])}"
    return f"add them to {profile.joined(question, chosen)}"
