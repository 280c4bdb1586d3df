"""Which column of a table is the text."""

import json

from front_door import as_column, csv_text, either, json_lines, of, plain, reads, refuses, texts

T, P = texts(), plain()
ROWS = as_column(T)
LONG = [f"{text}. {text}, and so it has been for years; nobody knows why." for text in P]
TEXT_COLUMN = "--text_column"

SHORT = ["yes" if i % 2 else "no" for i in range(12)]
COLUMNS = [
    reads("text beside meta", {"a.jsonl": json_lines(of(("text", T), meta={"url": "x" * 300, "tags": ["a"]}))}, T),
    reads(
        "a body beside numbers",
        {"a.jsonl": json_lines(of(("body", LONG), ("id", range(12))))},
        LONG,
        says="column 'body'",
    ),
    either(
        "an id beside content",
        {"a.jsonl": json_lines(of(("id", [f"x{i}" for i in range(12)]), ("content", LONG)))},
        [LONG],
        TEXT_COLUMN,
        says="column 'content'",
    ),
    either(
        "a title beside a body",
        {"a.json": json.dumps(of(("title", P), ("body", LONG)))},
        [LONG],
        ["title", "body", TEXT_COLUMN],
        says="column 'body'",
    ),
    refuses(
        "a label beside lists",
        {"a.jsonl": json_lines(of(("label", SHORT), ("paragraphs", [[t] for t in T])))},
        ["paragraphs", TEXT_COLUMN],
    ),
    refuses(
        "a language beside objects",
        {"a.jsonl": json_lines(of(("lang", ["en"] * 12), ("translation", [{"en": t} for t in T])))},
        ["translation", TEXT_COLUMN],
    ),
    refuses(
        "a url beside lists",
        {
            "a.json": json.dumps(
                of(("url", [f"https://a.b/{i}" for i in range(12)]), ("sentences", [[t, t] for t in T]))
            )
        },
        ["sentences", TEXT_COLUMN],
    ),
    refuses(
        "a title in row 1, a body later",
        {
            "a.jsonl": json_lines(
                [{"title": f"Title {i}", **({"body": LONG[i]} if i else {"body": None})} for i in range(12)]
            )
        },
        ["body", f"row 1|{TEXT_COLUMN}"],
    ),
    refuses(
        "a label in row 1, texts from row 4",
        {"a.jsonl": json_lines([{"label": SHORT[i], "review": LONG[i] if i > 2 else None} for i in range(12)])},
        ["review", f"row 1|{TEXT_COLUMN}"],
    ),
    either(
        "text beside longer content",
        {"a.jsonl": json_lines(of(("text", SHORT), ("content", LONG)))},
        [SHORT],
        ["content", TEXT_COLUMN],
        says="column 'text'",
    ),
    refuses(
        "two columns of texts",
        {"a.jsonl": json_lines(of(("first", LONG), ("second", LONG[::-1])))},
        ["first", "second", TEXT_COLUMN],
    ),
    refuses("numbers only", {"a.jsonl": json_lines(of(("a", range(12)), ("b", range(12))))}, ["a, b", TEXT_COLUMN]),
    refuses(
        "labels only",
        {"a.jsonl": json_lines(of(("label", SHORT), ("vector", [[0.5] * 20] * 12)))},
        ["vector|label", TEXT_COLUMN],
    ),
    reads(
        "a named column",
        {"a.jsonl": json_lines(of(("title", LONG), ("body", T)))},
        T,
        "--text_column=body",
        says="12 rows.*column 'body'",
    ),
    reads(
        "a named column of short texts",
        {"a.jsonl": json_lines(of(("title", P), ("body", LONG)))},
        P,
        "--text_column=title",
    ),
    refuses(
        "a named column that is missing",
        {"a.jsonl": json_lines(ROWS)},
        ["no column 'body'", "text"],
        "--text_column=body",
    ),
    refuses(
        "a named column late missing",
        {"a.jsonl": json_lines([*as_column(P, "body"), {"bdy": "x"}])},
        ["(row|line) 13", "body"],
        "--text_column=body",
    ),
    either(
        "a named column of numbers",
        {"a.jsonl": json_lines(of(("n", range(12)), ("text", T)))},
        [[str(i) for i in range(12)]],
        "(row|line) 1",
        "--text_column=n",
    ),
    reads(
        "a named column of lists of strings",
        {"a.jsonl": json_lines(of(("parts", [[t] for t in T]), ("n", range(12))))},
        T,
        "--text_column=parts",
    ),
    refuses(
        "a named column of lists of numbers",
        {"a.jsonl": json_lines(of(("parts", [[1, 2]] * 12)))},
        ["(row|line) 1", "parts"],
        "--text_column=parts",
    ),
    refuses(
        "a translation, named",
        {"a.jsonl": json_lines(of(("translation", [{"en": t, "fr": t} for t in T])))},
        ["translation"],
        "--text_column=translation",
    ),
]

SHORT_QUESTIONS = [f"How do I open door {i}?" for i in range(12)]
ANSWERED = (
    "Questions/Answers question/model_answer query/llm_response prompt/generated_text prompt/generation Human/AI"
    " request/reply message/reply utterance/response customer_message/agent_reply user_message/bot_response"
    " title/answer questionText/answerText Question-Title/expertAnswer Frage/Antworttext question/text prompt/text"
    " instruction/text"
).split()
NOT_ANSWERED = (
    "title/text user/text context/text subject/body user_name/response product/review headline/article".split()
)
for names in ANSWERED:
    question, answer = names.split("/")
    COLUMNS.append(
        refuses(
            f"{question} and longer {answer}",
            {"a.jsonl": json_lines(of((question, SHORT_QUESTIONS), (answer, LONG)))},
            [f"--prompt_column={question} --completion_column={answer}", TEXT_COLUMN],
        )
    )
for names in NOT_ANSWERED:
    about, body = names.split("/")
    said = [f"John Smith {i}" for i in range(12)] if about == "user_name" else SHORT_QUESTIONS
    COLUMNS.append(reads(f"{about} beside {body}", {"a.jsonl": json_lines(of((about, said), (body, LONG)))}, LONG))
COLUMNS.append(
    reads(
        "a prompt that stands in the text",
        {
            "a.jsonl": json_lines(
                of(("prompt", SHORT_QUESTIONS), ("text", [f"{q} {a}" for q, a in zip(SHORT_QUESTIONS, LONG)]))
            )
        },
        [f"{q} {a}" for q, a in zip(SHORT_QUESTIONS, LONG)],
    )
)
BESIDE_OPPOSITES = [
    ("rejected_by", "accepted_by"),
    ("rejected_reviews", "accepted_reviews"),
    ("non_preferred", "preferred"),
]
for rejected, accepted in BESIDE_OPPOSITES:
    rows = of((rejected, ["a b c"] * 12), (accepted, [f"d e {i}" for i in range(12)]), ("text", LONG))
    COLUMNS.append(reads(f"{rejected} and {accepted} beside a text", {"a.jsonl": json_lines(rows)}, LONG))
COLUMNS.append(
    refuses(
        "answers that are lists of Python",
        {
            "a.csv": csv_text(
                [(q, f"['{a}', '{a}']") for q, a in zip(SHORT_QUESTIONS, LONG)], ("The question", "Best Answer")
            )
        },
        ["'Best Answer' holds lists", "Python"],
    )
)
MOMENTS = [f"2011/01/{i + 1:02} 0{i % 10}:00" for i in range(12)]
COLUMNS += [
    refuses(f"moments under {name!r}", {"a.csv": csv_text(zip(MOMENTS, range(12)), (name, "count"))}, "which column")
    for name in ("datetime", "date", "moment")
]
COLUMNS += [
    reads(
        "a diary that begins with dates",
        {"a.jsonl": json_lines(as_column([f"{m}, {t}" for m, t in zip(MOMENTS, LONG)]))},
        [f"{m}, {t}" for m, t in zip(MOMENTS, LONG)],
    ),
    reads("moments alone", {"a.csv": "moment\n" + "\n".join(MOMENTS)}, MOMENTS),
    refuses(
        "a class beside numbers",
        {"a.csv": csv_text([(i, "long" if i % 2 else "short") for i in range(12)], ("minutes", "kind"))},
        ["'kind' holds the same words again and again", TEXT_COLUMN],
    ),
    reads(
        "names beside numbers",
        {"a.csv": csv_text([(i, f"Ann{i}") for i in range(12)], ("count", "sort"))},
        [f"Ann{i}" for i in range(12)],
    ),
    reads(
        "a class, named",
        {"a.csv": csv_text([(1, "ab"), (2, "ab"), (3, "ab")], ("n", "kind"))},
        ["ab"] * 3,
        "--text_column=kind",
    ),
    refuses(
        "lists of Python 2", {"a.csv": csv_text([(i, f"[u'{t}', u'b']") for i, t in enumerate(LONG)])}, "Python writes"
    ),
    refuses(
        "lists of what two said",
        {"a.json": json.dumps({"ai": [[q, a] for q, a in zip(SHORT_QUESTIONS, LONG)]})},
        ["row 1 is a list", r"--messages_column=turns after jq -c '\.ai\[\] \| {turns: \.}' FILE > out.jsonl"],
    ),
]
TITLES = [f"The tale of {i}" for i in range(12)]
TITLED = (
    "Title/User Review;movieTitle/userReview;title/user_message;Email Type/Email Text;Subject/Email Body"
    ";Headline/Source Text;Topic/Topic Description"
)
COLUMNS += [
    reads(f"a text and what it is called: {names}", {"a.csv": csv_text(zip(TITLES, LONG), names.split("/"))}, LONG)
    for names in TITLED.split(";")
]
COLUMNS += [
    refuses(f"two texts: {names}", {"a.csv": csv_text(zip(LONG, LONG[::-1]), names.split("/"))}, "which column")
    for names in ("Source Text/Target Text", "title/headline")
]

CASES = COLUMNS
