"""Cells that hold a value as JSON or Python writes it: messages, lists and rows, and answers that really are JSON."""

import json

from front_door import csv_text, json_lines, plain, reads, refuses, talk
from front_door_talks import TALKS, N, lines_of, pair

P = plain()
PAIR, ALPACA, ASKED = ("prompt", "completion"), ("instruction", "output"), ("question", "answer")
NAMED = "--prompt_column=question --completion_column=answer"
AS_THEY_ARE = "--prompt_template='{prompt}' --completion_column=completion"


def table(make, names=PAIR):
    """A csv of the cells that `make` gives for each number."""
    return {"a.csv": csv_text([make(i) for i in N], names)}


def lines_of_names(make, names):
    return lines_of(lambda i: dict(zip(names, make(i))))


def asked(i):
    return f"What is {i}?"


def answers(make):
    """What is learned if the answer is a text, whatever it looks like."""
    return [talk(f"user: {asked(i)}", f"assistant: {make(i)}") for i in N]


def question(i):
    return pair(i)[:1]


def answer(i):
    return pair(i)[1:]


def as_json(i):
    return json.dumps(question(i)), json.dumps(answer(i))


def with_history(i):
    return asked(i), "", f"It is {i}.", json.dumps([["Hi", "Hello"]])


MESSAGES = [
    reads("a prompt and a completion as JSON", table(as_json), TALKS),
    reads("a question and an answer as JSON, named", table(as_json, ASKED), TALKS, NAMED),
    reads("an instruction and an output as JSON", table(as_json, ALPACA), TALKS),
    reads("single messages as JSON", table(lambda i: [json.dumps(one) for one in pair(i)]), TALKS),
    reads("a completion as JSON", lines_of(lambda i: {"prompt": question(i), "completion": as_json(i)[1]}), TALKS),
    reads(
        "messages of ShareGPT in cells",
        table(
            lambda i: [json.dumps([{"from": k, "value": v}]) for k, v in (("human", asked(i)), ("gpt", f"It is {i}."))]
        ),
        TALKS,
    ),
    reads(
        "a history as JSON",
        table(with_history, (*ALPACA[:1], "input", *ALPACA[1:], "history")),
        [talk("user: Hi", "assistant: Hello", f"user: {asked(i)}", f"assistant: It is {i}.") for i in N],
    ),
    refuses(
        "messages as Python writes them, in a pair", table(lambda i: (question(i), answer(i))), ["Python", "jsonl"]
    ),
    refuses("answers as Python's messages", table(lambda i: (asked(i), answer(i))), ["'completion'", "Python"]),
    refuses("answers as messages", table(lambda i: (asked(i), as_json(i)[1])), ["'completion'", "messages"]),
    refuses("answers as whole talks", table(lambda i: (asked(i), json.dumps(pair(i)))), ["'completion'", "messages"]),
    refuses("prompts as messages", table(lambda i: (as_json(i)[0], "Yes, so it is")), ["'prompt'", "messages"]),
    refuses(
        "an input below a prompt of messages",
        lines_of(lambda i: {"instruction": question(i), "input": "Say so.", "output": answer(i)}),
        ["row 1", "'input'"],
    ),
    refuses(
        "messages as texts in a list",
        lines_of(lambda i: {"conversations": list(map(json.dumps, pair(i)))}),
        ["row 1", "message"],
        "--messages_column=conversations",
    ),
]
LISTS = [
    *[
        reads(f"answers as {what}", make_file(lambda i, make=make: (asked(i), str(make(i))), names), answers(make))
        for what, make in {
            "lists of Python": lambda i: ["It", f"is {i}"],
            "words of Python": lambda i: ["The", "film", f"was{i}"],
            "entities of Python": lambda i: {"text": f"Rome{i}", "type": "LOC"},
            "lists of entities of Python": lambda i: [{"text": f"Rome{i}", "type": "LOC"}],
            "ways of Python": lambda i: {"from": f"Rome{i}", "to": "Oslo"},
            "values of Python": lambda i: {"value": i, "unit": "kg"},
            "roles of a film of Python": lambda i: {"role": "king", "content": f"He is {i}"},
            "bytes of a program": lambda i: b"\x01ab%d" % i,
        }.items()
        for make_file, names in ((lines_of_names, ALPACA),)
    ],
    reads("answers as lists of Python in csv", table(lambda i: (asked(i), ["It", i])), answers(lambda i: ["It", i])),
    reads(
        "questions as lists of Python",
        table(lambda i: (["b", "a", f"c{i}"], ["a", "b", f"c{i}"])),
        [talk(f"user: {['b', 'a', f'c{i}']}", f"assistant: {['a', 'b', f'c{i}']}") for i in N],
    ),
    refuses(
        "answers as messages of ShareGPT in Python",
        table(lambda i: (asked(i), [{"from": "gpt", "value": f"It is {i}"}])),
        ["'completion'", "messages", "Python"],
    ),
    refuses("answers as lists of numpy", table(lambda i: (asked(i), f"['It' 'is {i}']")), ["'completion'", "Python"]),
    refuses(
        "answers of SQuAD in csv",
        table(lambda i: (asked(i), {"text": ["so"], "answer_start": [i]}), ASKED),
        ["'answer'", "Python"],
        NAMED,
    ),
    refuses("answers as bytes", table(lambda i: (asked(i), b"It is so")), ["'completion'", "bytes"]),
    reads(
        "lists of Python as they are", table(lambda i: (asked(i), ["It", i])), answers(lambda i: ["It", i]), AS_THEY_ARE
    ),
]
ROWS = [
    *[
        refuses(
            f"{what} as JSON in {name!r}",
            lines_of(lambda i, name=name, make=make: {name: json.dumps(make(i))}),
            [f"'{name}'", "JSON", "fromjson"],
        )
        for what, make in (("conversations", lambda i: {"messages": pair(i)}), ("texts", lambda i: {"text": P[i]}))
        for name in ("conversation", "data", "text")
    ],
    refuses("messages as JSON in 'data'", lines_of(lambda i: {"data": json.dumps(pair(i))}), "--messages_column=data"),
    refuses("objects of Python as text", lines_of(lambda i: {"text": str({"text": P[i]})}), "Python"),
    refuses("messages within texts", {"a.jsonl": json_lines(json.dumps(pair(i)) for i in N)}, "fromjson"),
    refuses("messages of Python within texts", {"a.jsonl": json_lines(str(pair(i)) for i in N)}, "Python"),
]


def extracted(i):
    return json.dumps({"name": f"house {i}", "text": P[i]})


STAY = [
    reads("answers that are JSON objects", table(lambda i: (asked(i), extracted(i))), answers(extracted)),
    *[
        reads(f"answers that are {what}", table(lambda i, make=make: (asked(i), make(i))), answers(make))
        for what, make in {
            "JSON lists": lambda i: json.dumps(["It", f"is {i}"]),
            "questions as JSON": lambda i: json.dumps([{"question": P[i], "answer": "So"}]),
            "talks as JSON": lambda i: json.dumps(
                [{"role": "user", "content": P[i]}, {"role": "assistant", "content": "So"}]
            ),
            "roles of a film as JSON": lambda i: json.dumps({"role": "the king", "content": P[i]}),
            "Python, some of them": lambda i: f"['a', {i}]" if i % 2 else f"x = {i}",
            "calls in brackets": lambda i: f"[look(place={i})]",
        }.items()
    ],
    reads(
        "JSON files in a column",
        lines_of(lambda i: {"id": i, "content": json.dumps({"name": P[i], "v": "1"})}),
        [json.dumps({"name": one, "v": "1"}) for one in P],
    ),
    reads(
        "rows as JSON, named", lines_of(lambda i: {"data": extracted(i)}), list(map(extracted, N)), "--text_column=data"
    ),
    reads(
        "prompts as JSON, as they are",
        table(lambda i: (as_json(i)[0], "Yes")),
        [talk(f"user: {as_json(i)[0]}", "assistant: Yes") for i in N],
        AS_THEY_ARE,
    ),
]
CASES = MESSAGES + LISTS + ROWS + STAY
