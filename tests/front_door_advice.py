"""Refusals whose way out test_front_door_advice.py types as they write it, with the documents that it must give."""

import json

from front_door import json_lines, plain, reads, refuses, talk

P = plain()
SAYS = [("Anna" if i % 2 else "Ben", text) for i, text in enumerate(P)]
TALK = "".join(f"{name}: {text}\n" for name, text in SAYS)


def parts(text):
    """A text in the blocks of Slack."""
    return [{"type": "rich_text", "elements": [{"type": "text", "text": text}]}]


TELEGRAM = [
    {"id": 0, "type": "service", "actor": "Ben", "action": "create_group", "text": "", "text_entities": []},
    *({"from": name, "text": text, "text_entities": [{"type": "plain", "text": text}]} for name, text in SAYS),
    {"from": "Ben", "photo": "a.jpg", "text": "", "text_entities": []},
]
SLACK = [{"user": name, "text": text, "ts": "1", "blocks": parts(text)} for name, text in SAYS]

# (a refusal, the documents of its way out)
PEOPLE = [
    (refuses("Telegram with entities", {"a.json": json.dumps({"messages": TELEGRAM})}, r"jq -r .*\.from"), [TALK]),
    (refuses("Slack with blocks", {"a.json": json.dumps(SLACK)}, r"jq -r .*\.user"), [TALK]),
]


def asked(**more):
    """Rows of a prompt, a completion and more columns."""
    return [{"prompt": f"What is {i}?", "completion": f"It is {i}.", **more} for i in range(12)]


def lines(rows):
    return {"a.jsonl": json_lines(rows)}


def answered(*said, before=()):
    """Conversations whose question is followed by what is said."""
    return [talk(*before, f"user: What is {i}?{''.join(said)}", f"assistant: It is {i}.") for i in range(12)]


GIVEN = "The house is old, and three rivers run beside it through the garden."
SCHEMA = "A table of houses has the columns name, age, street and the number of windows."
TURNS = [["Hello?", "Hello!"]]
BEFORE = ["user: Hello?", "assistant: Hello!"]
ALPACA = [{"instruction": row["prompt"], "input": GIVEN, "output": row["completion"]} for row in asked()]
PROMPTS = [
    (
        refuses("a verdict beside a context", lines(asked(context=GIVEN, label=True)), "bad ones"),
        answered("\n\n", GIVEN),
    ),
    (
        refuses("a verdict beside turns before", lines(asked(history=TURNS, label=True)), "bad ones"),
        answered(before=BEFORE),
    ),
    (
        refuses("a verdict beside a schema", lines(asked(context=GIVEN, schema=SCHEMA, label=True)), "bad ones"),
        answered("\n", GIVEN, "\n", SCHEMA),
    ),
    (
        refuses("a schema beside an input", lines([{**row, "schema": SCHEMA} for row in ALPACA]), "'schema' is not"),
        answered("\n", GIVEN, "\n", SCHEMA),
    ),
    (
        refuses("a schema beside a context", lines(asked(context=GIVEN, schema=SCHEMA)), "'schema' is not"),
        answered("\n", GIVEN, "\n", SCHEMA),
    ),
    (
        refuses("a schema beside turns before", lines(asked(history=TURNS, schema=SCHEMA)), "'schema' is not"),
        answered("\n", SCHEMA, before=BEFORE),
    ),
    (
        refuses("choices beside a schema", lines(asked(schema=SCHEMA, choices="A) B)")), "'schema' and 'choices' are"),
        answered("\n", SCHEMA, "\n", "A) B)"),
    ),
    (
        refuses("an input beside a context", lines(asked(input=GIVEN, context=SCHEMA)), "'input' and 'context' both"),
        answered("\n", GIVEN, "\n", SCHEMA),
    ),
    (
        refuses("a text of the turns before", lines(asked(history="Hello? Hello!")), "'history' is not"),
        answered("\n", "Hello? Hello!"),
    ),
    (
        refuses(
            "options beside a text and its question",
            lines([{"text": GIVEN, "question": "Why?", "options": "A) B)", "answer": one} for one in P]),
            "'answer' may be the answer to 'text'",
        ),
        [talk(f"user: {GIVEN}\nWhy?\nA) B)", f"assistant: {one}") for one in P],
    ),
    (
        refuses(
            "an instruction with an input and an answer",
            lines({"instruction": row["instruction"], "input": GIVEN, "answer": row["output"]} for row in ALPACA),
            "which column",
        ),
        [talk(f"user: {GIVEN}\nWhat is {i}?", f"assistant: It is {i}.") for i in range(12)],
    ),
]
NAMED = "--prompt_column=prompt --completion_column=completion"
READ = [
    reads("a context beside named columns", lines(asked(context=GIVEN)), answered("\n\n", GIVEN), NAMED),
    reads("a text of the turns before, left out", lines(asked(history="Hello?")), answered(), NAMED),
    reads(
        "messages of the turns before, left out",
        lines(asked(history=[{"role": "user", "content": "Hello?"}])),
        answered(),
        NAMED,
    ),
    reads(
        "an input that is learned",
        lines([{"instruction": row["output"], "input": GIVEN} for row in ALPACA]),
        [talk(f"user: It is {i}.", f"assistant: {GIVEN}") for i in range(12)],
        "--prompt_column=instruction --completion_column=input",
    ),
]
ADVICE = PEOPLE + PROMPTS
CASES = [case for case, _ in ADVICE] + READ
