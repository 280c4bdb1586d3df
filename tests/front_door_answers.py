"""Questions with answers in columns: prompts, Alpaca, Dolly, templates."""

import json

from front_door import changed, csv_text, either, learned, looks_like, reads, refuses, talk, without
from front_door_talks import ROW_5, SKIPPED, SYSTEM, TALKS, N, asked, lines_of, one_odd, pair

COLUMNS = [
    reads("prompts and completions", lines_of(asked), TALKS),
    reads("prompts and completions in an array", {"a.json": json.dumps([asked(i) for i in N])}, TALKS),
    reads(
        "prompts and completions of csv",
        {"a.csv": csv_text([(f"What is {i}?", f"It is {i}.") for i in N], ["prompt", "completion"])},
        TALKS,
    ),
    reads(
        "named columns",
        {"a.csv": csv_text([(f"What is {i}?", f"It is {i}.", 5) for i in N], ["question", "answer", "n"])},
        TALKS,
        "--prompt_column=question --completion_column=answer",
    ),
    refuses(
        "questions and answers without names",
        lines_of(lambda i: {"question": f"What is {i}?", "answer": f"It is {i}."}),
        ["--prompt_column", "--completion_column"],
    ),
    refuses(
        "a named answer that is missing",
        lines_of(asked),
        ["'answer'", "completion"],
        "--prompt_column=prompt --completion_column=answer",
    ),
    reads(
        "lines of a prompt kept",
        lines_of(lambda i: {"prompt": f"What\n\nis {i}?\n", "completion": f" It is {i}.\n"}),
        [f"User:\nWhat\n\nis {i}?\n\n\nAssistant:\n" + learned(f" It is {i}.\n") for i in N],
    ),
    reads(
        "dates as answers",
        lines_of(lambda i: {"prompt": f"When {i}?", "completion": f"19{i + 10}-03-1{i % 10}"}),
        [talk(f"user: When {i}?", f"assistant: 19{i + 10}-03-1{i % 10}") for i in N],
    ),
    either(
        "a number as an answer",
        one_odd(5, {"prompt": "What?", "completion": 4}, asked),
        [changed(TALKS, 5, talk("user: What?", "assistant: 4"))],
        ROW_5,
    ),
    either(
        "a number as an answer in an array",
        {"a.json": json.dumps(changed([asked(i) for i in N], 5, {"prompt": "What?", "completion": 4}))},
        [changed(TALKS, 5, talk("user: What?", "assistant: 4"))],
        "row 5",
    ),
    either(
        "null as an answer",
        one_odd(5, {"prompt": "What?", "completion": None}, asked),
        [without(TALKS, 5)],
        [ROW_5, "null|completion"],
        says=SKIPPED,
    ),
    either(
        "an empty answer",
        one_odd(5, {"prompt": "What?", "completion": ""}, asked),
        [without(TALKS, 5)],
        [ROW_5, "empty|no answer|completion"],
        says=SKIPPED,
    ),
    either(
        "an answer of spaces",
        one_odd(5, {"prompt": "What?", "completion": " \n"}, asked),
        [without(TALKS, 5)],
        ROW_5,
        says=SKIPPED,
    ),
    either(
        "an empty question",
        one_odd(5, {"prompt": "", "completion": "It is."}, asked),
        [without(TALKS, 5), changed(TALKS, 5, looks_like("Assistant:\n", learned("It is.")))],
        ROW_5,
        says=r"\b1\b.*(empty|question|prompt)",
    ),
    reads(
        "an empty answer, skipped",
        one_odd(5, {"prompt": "What?", "completion": ""}, asked),
        without(TALKS, 5),
        "--on_bad_row=skip",
        says=r"\b1\b",
    ),
    refuses("an answer late missing", one_odd(11, {"prompt": "What?"}, asked), ["(row|line) 11", "completion"]),
    refuses("another kind late", one_odd(11, asked(3)), "(row|line) 11"),
    reads("a system text beside", lines_of(lambda i: {"system": "Be kind.", **asked(i)}), SYSTEM),
    either(
        "system texts beside some",
        lines_of(lambda i: {"system": "Be kind." if i % 2 else None, **asked(i)}),
        [[SYSTEM[i] if i % 2 else TALKS[i] for i in N]],
        "system",
    ),
    reads(
        "Alpaca",
        lines_of(
            lambda i: {"instruction": f"Do task {i}.", "input": f"Given {i}" if i % 2 else "", "output": f"Done {i}."}
        ),
        [
            looks_like(
                "User:\n", f"Do task {i}.", f"Given {i}" if i % 2 else "\n\n", "Assistant:\n", learned(f"Done {i}.")
            )
            for i in N
        ],
    ),
    reads(
        "named columns beside an input of numbers",
        lines_of(lambda i: {"prompt": f"What is {i}?", "input": i, "completion": f"It is {i}."}),
        TALKS,
        "--prompt_column=prompt --completion_column=completion",
    ),
    reads(
        "Alpaca with the question in its input alone",
        lines_of(
            lambda i: (
                {"instruction": "" if i % 4 == 1 else None, "input": f"What is {i}?", "output": f"It is {i}."}
                if i % 2
                else {"instruction": f"What is {i}?", "input": "", "output": f"It is {i}."}
            )
        ),
        TALKS,
    ),
    reads(
        "Alpaca in an array, no input",
        {"a.json": json.dumps([{"instruction": f"What is {i}?", "output": f"It is {i}."} for i in N])},
        TALKS,
    ),
    reads(
        "Alpaca with null inputs",
        lines_of(lambda i: {"instruction": f"What is {i}?", "input": None, "output": f"It is {i}."}),
        TALKS,
    ),
    either(
        "Alpaca with a system text",
        lines_of(
            lambda i: {"instruction": f"What is {i}?", "input": "", "output": f"It is {i}.", "system": "Be kind."}
        ),
        [SYSTEM],
        "system",
    ),
    either(
        "Alpaca with a history",
        lines_of(
            lambda i: {
                "instruction": f"What is {i}?",
                "input": "",
                "output": f"It is {i}.",
                "history": [["Hi", "Hello"]],
            }
        ),
        [[looks_like("User:\nHi", "Hello", f"What is {i}?", learned(f"It is {i}.")) for i in N]],
        "history",
    ),
    either(
        "Dolly",
        lines_of(
            lambda i: {"instruction": f"Do {i}.", "context": f"Given {i}", "response": f"Done {i}.", "category": "qa"}
        ),
        [
            [looks_like("User:\n", f"Do {i}.", f"Given {i}", learned(f"Done {i}.")) for i in N],
            [looks_like("User:\n", f"Given {i}", f"Do {i}.", learned(f"Done {i}.")) for i in N],
        ],
        ["context", "--prompt_template|--prompt_column"],
    ),
    reads(
        "a template of two columns",
        lines_of(lambda i: {"context": f"Given {i}.", "question": "Why {it}?", "answer": f"It is {i}."}),
        [talk(f"user: Given {i}.\nWhy {{it}}?", f"assistant: It is {i}.") for i in N],
        r"'--prompt_template={context}\n{question}' --completion_column=answer",
    ),
    reads(
        "a template for csv",
        {"a.csv": csv_text([(f"Given {i}", f"Why {i}?", f"So {i}.") for i in N], ["context", "question", "answer"])},
        [talk(f"user: Text: Given {i}\n\nQ: Why {i}?", f"assistant: So {i}.") for i in N],
        r"'--prompt_template=Text: {context}\n\nQ: {question}' --completion_column=answer",
    ),
    refuses(
        "a template without a column",
        lines_of(asked),
        "prompt_template",
        "'--prompt_template=Tell me' --completion_column=completion",
    ),
    refuses(
        "a template with an open brace",
        lines_of(asked),
        "prompt_template|brace",
        "'--prompt_template={prompt' --completion_column=completion",
    ),
    refuses(
        "a template of a missing column",
        lines_of(asked),
        ["context", "prompt"],
        "'--prompt_template={context}' --completion_column=completion",
    ),
    refuses(
        "a template without an answer",
        lines_of(lambda i: {"context": "Given", "answer": "So"}),
        "completion_column",
        "'--prompt_template={context}'",
    ),
    either(
        "input and output",
        lines_of(lambda i: {"input": f"What is {i}?", "output": f"It is {i}."}),
        [TALKS],
        ["--prompt_column", "--completion_column"],
    ),
    either(
        "prompt and response",
        lines_of(lambda i: {"prompt": f"What is {i}?", "response": f"It is {i}."}),
        [TALKS],
        ["--prompt_column", "--completion_column"],
    ),
    refuses(
        "preferences",
        lines_of(lambda i: {"prompt": f"What is {i}?", "chosen": "It is.", "rejected": "No."}),
        ["chosen", "--completion_column"],
    ),
    refuses(
        "answers of SQuAD",
        lines_of(
            lambda i: {
                "id": f"x{i}",
                "context": "Long text " * 9,
                "question": "Why?",
                "answers": {"text": ["So"], "answer_start": [0]},
            }
        ),
        ["answers", "column"],
    ),
    reads(
        "lists of messages as prompt and completion",
        lines_of(lambda i: {"prompt": pair(i)[:1], "completion": pair(i)[1:]}),
        TALKS,
    ),
    refuses("an end for characters", lines_of(asked), ["end-of-text"], "--tokenizer=char"),
]

CASES = COLUMNS
