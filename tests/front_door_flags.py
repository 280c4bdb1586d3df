"""Flags and other keys of messages, blank ones, and good answers beside bad ones."""

from front_door import reads, refuses, talk, without
from front_door_talks import SYSTEM, TALKS, N, lines_of, messages, one_odd, pair, turn

MORE = [turn("user", "And?"), turn("assistant", "Bye.")]


def answers_with(key, value, *more):
    return messages(lambda i: [*pair(i, **{key: value}), *more])


def calls_by(role):
    return messages(lambda i: [turn("user", "Hi"), turn(role, '{"name": "f"}'), turn("tool", "3"), *pair(i)])


def labelled(row, label, values):
    return lines_of(lambda i: {**row(i), label: values[i % 2]})


CASES = [
    *(
        refuses(f"{key} of an answer", answers_with(key, value), ["(row|line) 1", key])
        for key, value in [
            ("reasoning", "One and one."),
            ("thought", "One and one."),
            ("train_detail", [{"begin_offset": 0, "end_offset": 2, "train": False}]),
            ("loss_mask", 0),
            ("loss_weight", 0.5),
            ("ignore", True),
            ("rejected", "Bad."),
        ]
    ),
    *(
        reads(
            f"{key} of one answer",
            answers_with(key, value, *MORE),
            [talk(f"user: What is {i}?", f"assistant-: It is {i}.", "user: And?", "assistant: Bye.") for i in N],
        )
        for key, value in [("train", False), ("training", False), ("trainable", False), ("loss", 0), ("mask", 1)]
    ),
    reads(
        "citations of an answer", messages(lambda i: pair(i, citations=[1])), TALKS, says="12 messages with 'citations'"
    ),
    refuses(
        "a question to be learned",
        messages(lambda i: [turn("user", "Hi", train=True), *pair(i)]),
        ["(row|line) 1", "train", "assistant"],
    ),
    refuses(
        "content and text that differ",
        messages(lambda i: [turn("user", "Hi", text="Bye"), *pair(i)]),
        ["(row|line) 1", "content and text", "differ"],
    ),
    reads(
        "the system in a column and a message",
        lines_of(lambda i: {"system": "Be kind.", "messages": [turn("system", "Be kind."), *pair(i)]}),
        SYSTEM,
    ),
    refuses(
        "another system in a column",
        lines_of(lambda i: {"system": "Be rude.", "messages": [turn("system", "Be kind."), *pair(i)]}),
        ["(row|line) 1", "'system'", "differ"],
    ),
    *(
        refuses(f"the role {role}", calls_by(role), ["(row|line) 1", role, "tool_calls"])
        for role in ("function_call", "function-call", "tool_call")
    ),
    reads(
        "a blank answer",
        one_odd(5, {"messages": [turn("user", "Hi"), turn("assistant", " \n\u200b")]}),
        without(TALKS, 5),
        says="1 row without an answer",
    ),
    reads(
        "a blank question",
        one_odd(5, {"messages": [turn("user", "\t"), turn("assistant", "Hello")]}),
        without(TALKS, 5),
        says="1 row without a question",
    ),
    reads(
        "answers without questions",
        messages(lambda i: [turn("assistant", f"It is {i}.")]),
        [talk(f"assistant: It is {i}.") for i in N],
        says="12 conversations without a question",
    ),
    *(
        refuses(f"{label} beside {what}", labelled(row, label, values), [label, "bad ones"])
        for label, values in [("label", [1, 0]), ("label", ["good", "bad"]), ("kto_tag", [True, False])]
        for what, row in [
            (f"messages, {values[1]}", lambda i: {"messages": pair(i)}),
            (f"outputs, {values[1]}", lambda i: {"instruction": f"What is {i}?", "output": f"It is {i}."}),
        ]
    ),
    refuses(
        "conversations with two last answers",
        lines_of(
            lambda i: {
                "conversations": [*pair(i), turn("user", "And?")],
                "chosen": turn("assistant", "Good."),
                "rejected": turn("assistant", "Bad."),
            }
        ),
        ["chosen", "rejected"],
    ),
]
