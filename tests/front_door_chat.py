"""Conversations in the forms that people exchange them."""

import json

from front_door import END, csv_text, either, json_lines, learned, looks_like, reads, refuses, talk, without
from front_door_talks import ROW_5, SYSTEM, TALKS, N, lines_of, messages, one_odd, pair, sharegpt, turn

FORMS = [
    reads("messages", messages(pair), TALKS),
    reads(
        "messages with ids beside",
        lines_of(lambda i: {"id": f"id{i}", "source": "web " * 20, "messages": pair(i)}),
        TALKS,
    ),
    reads("a named column of messages", messages(pair, "dialogue"), TALKS, "--messages_column=dialogue"),
    either("messages of another name", messages(pair, "dialogue"), [TALKS], ["dialogue", "--messages_column"]),
    reads(
        "messages of several turns",
        messages(lambda i: [turn("system", "Be kind."), *pair(i), turn("user", "And?"), turn("assistant", "Bye.")]),
        [
            talk("system: Be kind.", f"user: What is {i}?", f"assistant: It is {i}.", "user: And?", "assistant: Bye.")
            for i in N
        ],
    ),
    reads("conversations of role and content", messages(pair, "conversations"), TALKS),
    reads("ShareGPT", {"a.json": json.dumps([{"id": f"x{i}", "conversations": sharegpt(i)} for i in N])}, TALKS),
    reads("ShareGPT in lines", lines_of(lambda i: {"conversations": sharegpt(i), "id": f"x{i}"}), TALKS),
    reads(
        "ShareGPT with a system turn",
        lines_of(lambda i: {"conversations": [{"from": "system", "value": "Be kind."}, *sharegpt(i)]}),
        SYSTEM,
    ),
    either(
        "ShareGPT with a system text beside",
        lines_of(lambda i: {"system": "Be kind.", "conversations": sharegpt(i)}),
        [SYSTEM],
        "system",
    ),
    reads("ShareGPT of user and chatgpt", lines_of(lambda i: {"conversations": sharegpt(i, "user", "chatgpt")}), TALKS),
    *(
        reads(f"ShareGPT of {gpt}", lines_of(lambda i, gpt=gpt: {"conversations": sharegpt(i, "user", gpt)}), TALKS)
        for gpt in ("bing", "bard")
    ),
    either(
        "ShareGPT with tools",
        lines_of(
            lambda i: {
                "conversations": [
                    sharegpt(i)[0],
                    {"from": "function_call", "value": "look"},
                    {"from": "observation", "value": "sun"},
                    sharegpt(i)[1],
                ]
            }
        ),
        [
            [looks_like("What", "look", "sun", learned(f"It is {i}.")) for i in N],
            [looks_like("What", "⟦look", "sun", learned(f"It is {i}.")) for i in N],
        ],
        ["(row|line) 1", "function_call|observation"],
    ),
    either(
        "ShareGPT begun by gpt",
        lines_of(lambda i: {"conversations": [{"from": "gpt", "value": "Hi."}, *sharegpt(i)]}),
        [[talk("assistant: Hi.", f"user: What is {i}?", f"assistant: It is {i}.") for i in N]],
        "row|line",
    ),
    reads("a list a line", {"a.jsonl": json_lines(pair(i) for i in N)}, TALKS),
    reads("lists in an array", {"a.json": json.dumps([pair(i) for i in N])}, TALKS),
    either(
        "one conversation as an array",
        {"a.json": json.dumps([t for i in N for t in pair(i)])},
        [[talk(*(part for i in N for part in (f"user: What is {i}?", f"assistant: It is {i}.")))]],
        "role|column|message",
    ),
    either(
        "messages as JSON in csv",
        {"a.csv": csv_text([[json.dumps(pair(i))] for i in N], ["messages"])},
        [TALKS],
        "messages",
    ),
    refuses("no turn of an assistant", one_odd(5, {"messages": [turn("user", "Hi")]}), [ROW_5, "assistant"]),
    refuses("an empty list", one_odd(5, {"messages": []}), [ROW_5, "empty"]),
    refuses("null for messages", one_odd(5, {"messages": None}), ROW_5),
    reads(
        "a bad conversation, skipped",
        one_odd(5, {"messages": []}),
        without(TALKS, 5),
        "--on_bad_row=skip",
        says=r"\b1\b",
    ),
    refuses("text for messages", one_odd(5, {"messages": "Hi"}), ROW_5),
    refuses(
        "a message without content",
        one_odd(5, {"messages": [turn("user", "Hi"), {"role": "assistant"}]}),
        [ROW_5, "content"],
    ),
    refuses(
        "a message without a role",
        one_odd(5, {"messages": [turn("user", "Hi"), {"content": "Hello"}]}),
        [ROW_5, "role"],
    ),
    reads(
        "a user's turn at the end",
        messages(lambda i: [*pair(i), turn("user", "Thanks")]),
        [looks_like(TALKS[i], "User:\nThanks") for i in N],
    ),
    reads(
        "messages merged with null for keys of the other table",
        lines_of(
            lambda i: {
                "messages": [
                    {"role": None, "content": None, "from": "human", "value": f"What is {i}?"},
                    {"role": "assistant", "content": f"It is {i}.", "from": None, "value": None},
                ]
            }
        ),
        TALKS,
    ),
    reads(
        "an empty system_prompt beside a system",
        lines_of(lambda i: {"system_prompt": "", "system": "Be kind.", "messages": pair(i)}),
        SYSTEM,
    ),
    reads("systemPrompt", lines_of(lambda i: {"systemPrompt": "Be kind.", "messages": pair(i)}), SYSTEM),
    reads(
        "two equal messages of the system",
        lines_of(lambda i: {"system_prompt": "Be kind.", "system": "Be kind.", "messages": pair(i)}),
        SYSTEM,
    ),
    refuses(
        "two messages of the system that differ",
        lines_of(lambda i: {"system_prompt": "Be kind.", "system": "Be short.", "messages": pair(i)}),
        ["system_prompt", "'system'", "differ"],
    ),
    refuses(
        "a second message of the system, in a later row",
        lines_of(
            lambda i: (
                {"system": "Be short.", "messages": pair(i)} | ({"system_prompt": "Be kind."} if i == 1999 else {})
            ),
            2000,
        ),
        ["system_prompt", "'system'", "differ"],
    ),
    refuses(
        "answers of the validation rows that are all hidden",
        messages(lambda i: pair(i, **({} if i == 0 else {"weight": 0}))),
        ["drawn for validation", "--seed=N"],
    ),
    refuses("answers that are all hidden", messages(lambda i: pair(i, weight=0)), ["weight 0", "to be learned"]),
    either(
        "two answers in a row",
        messages(lambda i: [*pair(i), turn("assistant", "More.")]),
        [
            [talk(f"user: What is {i}?", f"assistant: It is {i}.", "assistant: More.") for i in N],
            [looks_like(f"What is {i}?", f"⟦It is {i}.", f"More.{END}⟧") for i in N],
        ],
        "assistant",
    ),
]

CASES = FORMS
