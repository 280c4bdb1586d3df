"""Refusals whose way out test_front_door_advice.py types as they write it, with the documents that it must give."""

import json

from front_door import csv_text, json_lines, plain, reads, refuses, talk
from front_door_tables import parquet
from front_door_talks import TALKS, sharegpt

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

ROWS = [{"text": one} for one in P]


def an_object(**members):
    return {"a.json": json.dumps(members, indent=1)}


OBJECTS = [
    (
        refuses("an object of conversations", an_object(made="x", **{f"c{i}": sharegpt(i) for i in range(12)}), "'c0'"),
        TALKS,
    ),
    (
        refuses(
            "lists of rows as splits",
            an_object(made="x", train=ROWS[:10], test=[{"text": "It is not read."}], valid=ROWS[10:], tags=["a"]),
            ["its lists are splits", r"jq -c '\.test\[\]' FILE > test.jsonl"],
        ),
        P,
    ),
    (refuses("rows by what they are about", an_object(gardens=ROWS[:5], rivers=ROWS[5:]), "rows of all"), P),
    (refuses("rows beside their licenses", an_object(data=ROWS, licenses=[{"id": 1}]), "'licenses'"), P),
]


def user(i):
    return [{"role": "user", "content": f"What is {i}?"}]


def bot(i):
    return [{"role": "assistant", "content": f"It is {i}."}]


def of(make):
    """A file whose row i is `make(i)`."""
    return lines(make(i) for i in range(12))


def questions(answer):
    """Rows of questions with `answer(i)`, and a column that is not read."""
    return [{"question": f"What is {i}?", "kind": "x", "answer": answer(i)} for i in range(12)]


def said(answer, *given):
    return [talk(f"user: {''.join(given)}What is {i}?", f"assistant: {answer(i)}") for i in range(12)]


LISTED = questions(lambda i: [f"It is {i}."])
SQUAD = [
    {"context": GIVEN, "question": row["question"], "answers": {"text": row["answer"], "answer_start": [i]}}
    for i, row in enumerate(LISTED)
]
UNANSWERED = {"context": GIVEN, "question": "Why?", "answers": {"text": [], "answer_start": []}}
COMPLETIONS = [{"model": "a", "response": "It is so."}, {"model": "b", "response": "No."}]
FIRST = "first make texts of 'answer'"
ANSWERS = [
    (refuses("answers in lists", lines(LISTED), FIRST), TALKS),
    (refuses("answers in lists, in an array", {"a.json": json.dumps(LISTED, indent=1)}, FIRST), TALKS),
    (refuses("answers in lists, under a key", {"a.json": json.dumps({"my data": LISTED})}, FIRST), TALKS),
    (refuses("answers that are numbers", lines(questions(lambda i: i)), FIRST), said(str)),
    (
        refuses("answers that are true or false", lines(questions(lambda i: i > 5)), FIRST),
        said(lambda i: "true" if i > 5 else "false"),
    ),
    (
        refuses(
            "answers that are places in a list",
            lines({**row, "choices": ["one", "two", "three"]} for row in questions(lambda i: i % 3)),
            FIRST,
        ),
        said(lambda i: ("one", "two", "three")[i % 3]),
    ),
    (
        refuses("SQuAD with its lists", lines([*SQUAD, UNANSWERED]), "'answers'"),
        said(lambda i: f"It is {i}.", GIVEN, "\n"),
    ),
    (
        refuses(
            "several completions of each instruction",
            of(lambda i: {"instruction": f"What is {i}?", "completions": COMPLETIONS}),
            "of several in a list the first",
        ),
        said(lambda i: "It is so."),
    ),
    (refuses("completions that are numbers", of(lambda i: {**asked()[i], "completion": i}), "must be text"), said(str)),
]
IN_MESSAGES = [
    (refuses(name, of(make), words), TALKS)
    for name, make, words in [
        ("messages with an ideal", lambda i: {"input": user(i), "ideal": f"It is {i}."}, "'ideal'"),
        ("messages with ideals", lambda i: {"input": user(i), "ideal": [f"It is {i}."]}, "'ideal'"),
        ("prompts of messages with answers", lambda i: {"prompt": user(i), "answer": f"It is {i}."}, "'answer'"),
        ("messages with a reference", lambda i: {"messages": user(i), "reference_answer": f"It is {i}."}, "ends in"),
        ("a question before messages", lambda i: {"question": f"What is {i}?", "trajectory": bot(i)}, "'trajectory'"),
        ("a prompt of messages", lambda i: {"prompt": user(i), "completion": f"It is {i}."}, "holds messages"),
        ("a completion of messages", lambda i: {"prompt": f"What is {i}?", "completion": bot(i)}, "holds messages"),
    ]
]
TASKS = [
    (
        refuses(
            "tasks of self-instruct",
            of(
                lambda i: {
                    "instruction": "Do it.",
                    "name": "n",
                    "instances": [{"input": f"{i}", "output": f"It is {i}."}],
                }
            ),
            "write a row for each of 'instances'",
        ),
        [talk(f"user: Do it.\n\n{i}", f"assistant: It is {i}.") for i in range(12)],
    )
]
AUTOTRAIN = ("prompt", "text", "rejected_text")
PREFERENCES = [
    (refuses(f"the chosen ones: {name}", of(make), "pairs of a chosen"), documents)
    for name, make, documents in [
        ("a text behind messages", lambda i: {"messages": user(i), "chosen": f"It is {i}.", "rejected": "No."}, TALKS),
        (
            "a text behind ShareGPT",
            lambda i: {"conversations": sharegpt(i)[:1], "chosen": f"It is {i}.", "rejected": "No."},
            TALKS,
        ),
        ("a message", lambda i: {"prompt": f"What is {i}?", "chosen": bot(i)[0], "rejected": bot(0)[0]}, TALKS),
        ("messages behind a text", lambda i: {"prompt": f"What is {i}?", "chosen": bot(i), "rejected": bot(0)}, TALKS),
        ("messages behind messages", lambda i: {"prompt": user(i), "chosen": bot(i), "rejected": bot(0)}, TALKS),
        ("a text behind a prompt", lambda i: {"prompt": user(i), "chosen": f"It is {i}.", "rejected": "No."}, TALKS),
        (
            "a text behind a context",
            lambda i: {"question": f"What is {i}?", "context": GIVEN, "chosen": f"It is {i}.", "rejected": "No."},
            answered("\n", GIVEN),
        ),
        (
            "named as responses",
            lambda i: {"prompt": f"What is {i}?", "chosen_response": f"It is {i}.", "rejected_response": "It is so."},
            TALKS,
        ),
        (
            "of OpenAI",
            lambda i: {
                "input": {"messages": user(i), "tools": []},
                "preferred_output": bot(i),
                "non_preferred_output": bot(0),
            },
            TALKS,
        ),
    ]
] + [
    (
        refuses(
            "the chosen ones: of AutoTrain",
            {"a.csv": csv_text(((f"What is {i}?", f"It is {i}.", "No.") for i in range(12)), AUTOTRAIN)},
            "pairs of a chosen",
        ),
        TALKS,
    )
]
NAMED = "--prompt_column=prompt --completion_column=completion"
READ = [
    refuses(
        "a chosen answer behind texts said in turn",
        of(lambda i: {"context": ["Hello?", "Hello!", "And?"], "chosen": f"It is {i}.", "rejected": "No."}),
        "a list of messages with 'context'$",
    ),
    refuses(
        "a split of an array",
        {"a.json": json.dumps([{"text": one, "split": ("train", "test")[i % 2]} for i, one in enumerate(P)])},
        r"jq -c '\.\[\] \| select\(\.split == \"train\"\)' FILE > train.jsonl",
    ),
    refuses(
        "rows within a column, in an array",
        {"a.json": json.dumps([{"_source": {"text": one}} for one in P])},
        r"jq -c '\.\[\] \| \._source' FILE > out.jsonl makes",
    ),
    reads(
        "texts that hold the prompt beside rejected ones",
        of(lambda i: {"prompt": f"{i}", "text": f"{i} is {P[i]}", "rejected_text": "No."}),
        [f"{i} is {one}" for i, one in enumerate(P)],
    ),
    reads(
        "numbers of what was accepted and rejected",
        of(lambda i: {"text": P[i], "accepted": f"{i}", "rejected": "2"}),
        P,
    ),
    refuses(
        "answers in lists of parquet",
        parquet({key: [row[key] for row in LISTED] for key in LISTED[0]}),
        "first make texts of 'answer'; then name it with",
        "a.parquet",
    ),
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
ADVICE = PEOPLE + PROMPTS + ANSWERS + IN_MESSAGES + TASKS + PREFERENCES + OBJECTS
CASES = [case for case, _ in ADVICE] + READ
