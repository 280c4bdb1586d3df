"""The turns of conversations: roles, weights, parts of content, tools."""

import json

from front_door import END, changed, either, json_lines, learned, looks_like, reads, refuses, talk, without
from front_door_talks import ROW_5, SKIPPED, SYSTEM, TALKS, N, lines_of, messages, one_odd, pair, roles, turn

TURNS = [
    *(
        reads(f"roles {user} and {assistant}", roles(user, assistant), TALKS)
        for user, assistant in [
            ("User", "Assistant"),
            ("USER", "ASSISTANT"),
            ("human", "ai"),
            ("Human", "AI"),
            ("human", "gpt"),
            ("user", "bot"),
            ("User ", "assistant"),
        ]
    ),
    either(
        "roles of a game",
        roles("narrator", "assistant"),
        [[talk(f"narrator: What is {i}?", f"assistant: It is {i}.") for i in N]],
        ["narrator", "(row|line) 1"],
    ),
    refuses("an answer by nobody known", roles("user", "robot"), ["robot|assistant", "(row|line) 1"]),
    reads(
        "an odd role late in a conversation",
        messages(lambda i: [*pair(i), turn("user", "And?"), turn("Assistant", "Bye.")]),
        [talk(f"user: What is {i}?", f"assistant: It is {i}.", "user: And?", "assistant: Bye.") for i in N],
    ),
    either(
        "a developer's turn",
        messages(lambda i: [turn("developer", "Be kind."), *pair(i)]),
        [SYSTEM, [looks_like("Be kind.", TALKS[i]) for i in N]],
        "developer",
    ),
    reads(
        "weight 0 of one turn",
        messages(lambda i: [*pair(i, weight=0), turn("user", "And?"), turn("assistant", "Bye.", weight=1)]),
        [talk(f"user: What is {i}?", f"assistant-: It is {i}.", "user: And?", "assistant: Bye.") for i in N],
    ),
    either(
        "weight 0 of the only turn",
        {"a.jsonl": json_lines({"messages": pair(i, **({"weight": 0} if i == 4 else {}))} for i in N)},
        [without(TALKS, 5), changed(TALKS, 5, talk("user: What is 4?", "assistant-: It is 4."))],
        ROW_5,
    ),
    either("half a weight", messages(lambda i: pair(i, weight=0.5)), [], ["(row|line) 1", "weight"]),
    either(
        "an empty answer among others",
        messages(lambda i: [turn("user", "Hi"), turn("assistant", ""), *pair(i)]),
        [
            [looks_like("User:\nHi\n\nAssistant:\n", TALKS[i]) for i in N],
            [talk("user: Hi", "assistant: ", f"user: What is {i}?", f"assistant: It is {i}.") for i in N],
        ],
        "(row|line) 1",
    ),
    reads(
        "names",
        messages(lambda i: [turn("user", f"What is {i}?", name="bob"), turn("assistant", f"It is {i}.", name="bot")]),
        TALKS,
    ),
    reads(
        "content in text parts",
        messages(
            lambda i: [
                turn("user", [{"type": "text", "text": f"What is {i}?"}]),
                turn("assistant", [{"type": "text", "text": f"It is {i}."}]),
            ]
        ),
        TALKS,
    ),
    reads(
        "content in parts of LLaMA-Factory",
        messages(
            lambda i: [
                turn("user", [{"type": "text", "value": f"What is {i}?"}], loss_weight=0.0),
                turn("assistant", [{"type": "text", "value": f"It is {i}."}], loss_weight=1.0),
            ]
        ),
        TALKS,
    ),
    reads(
        "content in two parts",
        messages(
            lambda i: [
                turn("user", [{"type": "text", "text": "What"}, {"type": "text", "text": f"is {i}?"}]),
                turn("assistant", f"It is {i}."),
            ]
        ),
        [looks_like("User:\nWhat", f"is {i}?\n\nAssistant:\n{learned(f'It is {i}.')}") for i in N],
    ),
    reads(
        "parts late",
        one_odd(11, {"messages": [turn("user", [{"type": "text", "text": "Hi"}]), turn("assistant", "Hello")]}),
        changed(TALKS, 11, talk("user: Hi", "assistant: Hello")),
    ),
    refuses(
        "an image among the parts",
        one_odd(
            5,
            {
                "messages": [
                    turn(
                        "user",
                        [{"type": "image_url", "image_url": {"url": "a.png"}}, {"type": "text", "text": "What?"}],
                    ),
                    turn("assistant", "A cat."),
                ]
            },
        ),
        [ROW_5, "image"],
    ),
    reads(
        "an image among the parts, skipped",
        one_odd(5, {"messages": [turn("user", [{"type": "image"}]), turn("assistant", "A cat.")]}),
        without(TALKS, 5),
        "--on_bad_row=skip",
        says=r"\b1\b",
    ),
    either(
        "a number as content",
        one_odd(5, {"messages": [turn("user", "How many?"), turn("assistant", 4)]}),
        [changed(TALKS, 5, talk("user: How many?", "assistant: 4"))],
        ROW_5,
    ),
    either(
        "a number as content in an array",
        {
            "a.json": json.dumps(
                changed(
                    [{"messages": pair(i)} for i in N],
                    5,
                    {"messages": [turn("user", "How many?"), turn("assistant", 4)]},
                )
            )
        },
        [changed(TALKS, 5, talk("user: How many?", "assistant: 4"))],
        "row 5",
    ),
    refuses(
        "null as content",
        one_odd(5, {"messages": [turn("user", "Hi"), turn("assistant", None)]}),
        [ROW_5, "content|null"],
    ),
    refuses(
        "an object as content",
        one_odd(5, {"messages": [turn("user", {"parts": ["Hi"]}), turn("assistant", "Hello")]}),
        ROW_5,
    ),
    either(
        "a tool call",
        messages(
            lambda i: [
                turn("user", "Weather?"),
                turn(
                    "assistant",
                    None,
                    tool_calls=[{"id": "c", "type": "function", "function": {"name": "forecast", "arguments": "{}"}}],
                ),
                turn("tool", "sunny", tool_call_id="c"),
                turn("assistant", f"It is sunny {i}."),
            ]
        ),
        [[looks_like("Weather?", "forecast", "sunny", learned(f"It is sunny {i}.")) for i in N]],
        ["(row|line) 1", "tool"],
    ),
    reads(
        "tool calls, skipped",
        one_odd(
            5,
            {
                "messages": [
                    turn("user", "Weather?"),
                    turn(
                        "assistant",
                        None,
                        tool_calls=[
                            {"id": "c", "type": "function", "function": {"name": "forecast", "arguments": "{}"}}
                        ],
                    ),
                    turn("tool", "sunny"),
                    turn("assistant", "Sunny."),
                ]
            },
        ),
        without(TALKS, 5),
        "--on_bad_row=skip",
        says=r"\b1\b",
    ),
    either(
        "a call beside content",
        messages(
            lambda i: [
                turn("user", "Weather?"),
                turn("assistant", "Let me see.", tool_calls=[{"function": {"name": "forecast", "arguments": "{}"}}]),
                turn("assistant", f"Sunny {i}."),
            ]
        ),
        [[looks_like("Let me see.", "forecast", f"Sunny {i}.{END}⟧") for i in N]],
        ["(row|line) 1", "tool"],
    ),
    either(
        "an old function call",
        messages(
            lambda i: [
                turn("user", "Weather?"),
                turn("assistant", None, function_call={"name": "forecast", "arguments": "{}"}),
                turn("function", "sunny", name="forecast"),
                turn("assistant", f"Sunny {i}."),
            ]
        ),
        [[looks_like("Weather?", "forecast", "sunny", learned(f"Sunny {i}.")) for i in N]],
        ["(row|line) 1", "function|content|null"],
    ),
    either(
        "functions beside messages",
        lines_of(lambda i: {"messages": pair(i), "functions": [{"name": "forecast"}]}),
        [[looks_like("forecast", TALKS[i]) for i in N]],
        "functions|tools",
    ),
    either("pictures beside messages", lines_of(lambda i: {"messages": pair(i), "images": ["a.png"]}), [], "images"),
    either(
        "thoughts of an answer",
        messages(lambda i: pair(i, reasoning_content="think hard")),
        [[looks_like("think hard", f"It is {i}.") for i in N]],
        ["(row|line) 1", "reasoning_content"],
    ),
    either(
        "an answer that trains not",
        messages(lambda i: [*pair(i, train=False), *pair(i)]),
        [
            [
                talk(f"user: What is {i}?", f"assistant-: It is {i}.", f"user: What is {i}?", f"assistant: It is {i}.")
                for i in N
            ]
        ],
        "train",
    ),
    either(
        "an answer of spaces in a conversation",
        messages(lambda i: pair(i) if i != 4 else [turn("user", "Hi"), turn("assistant", " ")]),
        [without(TALKS, 5)],
        ROW_5,
        says=SKIPPED,
    ),
    either(
        "tools beside messages",
        lines_of(lambda i: {"messages": pair(i), "tools": [{"type": "function", "function": {"name": "forecast"}}]}),
        [[looks_like("forecast", TALKS[i]) for i in N]],
        "tools",
    ),
    reads(
        "marks of a template as text",
        messages(
            lambda i: [turn("user", "<|endoftext|> and User:"), turn("assistant", f"Assistant:\n<|endoftext|> {i}")]
        ),
        [talk("user: <|endoftext|> and User:", f"assistant: Assistant:\n<|endoftext|> {i}") for i in N],
    ),
    *[
        reads(
            f"line ends of Windows in {what}",
            messages(
                lambda i, make=make: [turn("user", make(f"What\r\nis {i}?")), turn("assistant", make(f"It\ris {i}."))]
            ),
            [talk(f"user: What\nis {i}?", f"assistant: It\nis {i}.") for i in N],
        )
        for what, make in {
            "contents": str,
            "parts of contents": lambda text: [{"type": "text", "text": text}],
            "parts that are texts": lambda text: [text],
            "a line end over two parts": lambda text: text.replace("\r\n", "\r|\n").split("|"),
        }.items()
    ],
]

CASES = TURNS
