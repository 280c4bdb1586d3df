"""A column beside those that are taken: an answer, a verdict, a split, or what the question is about."""

import json

from front_door import csv_text, json_lines, of, plain, reads, refuses, talk
from front_door_talks import TALKS, N, asked, lines_of, pair

P = plain()
LONG = [f"{text}. {text}, and so it has been for years; nobody knows why." for text in P]
SHORT = ["yes" if i % 2 else "no" for i in N]
GIVEN = "Nobody had said so before the year began."


def beside(**columns):
    return lines_of(lambda i: {**asked(i), **{name: values[i] for name, values in columns.items()}})


def short_answer(question, answer, values=SHORT):
    return refuses(
        f"short answers, {question} and {answer}",
        {"a.jsonl": json_lines(of((question, P), (answer, values)))},
        [f"--prompt_column={question} --completion_column={answer}"],
    )


def verdict(name, *values):
    return refuses(
        f"a verdict {name} of {values[0]}",
        beside(**{name: [values[i % len(values)] for i in N]}),
        [f"'{name}' tells good completions from bad ones", "--prompt_column=prompt --completion_column=completion"],
    )


def harmless(name, *values):
    return reads(
        f"{name} of {values[0]} beside a pair",
        beside(**{name: [values[i % len(values)] for i in N]}),
        TALKS,
        says=f"not read: {name}",
    )


def about(name, value=GIVEN, words=("--prompt_column=prompt --completion_column=completion leaves it out",)):
    return refuses(f"{name} beside a pair", beside(**{name: [value] * 12}), [f"'{name}' is not read", *words])


def beside_talks(name, value, words):
    return refuses(f"{name} beside messages", lines_of(lambda i: {"messages": pair(i), name: value}), words)


def question_last(*columns, key="messages"):
    ask = [*pair(1), {"role": "user", "content": "Why?"}]
    return lines_of(lambda i: {key: ask, **dict.fromkeys(columns, f"Because of {i}, they say.")})


ANSWERS = [
    short_answer("question", "answer"),
    short_answer("question", "final_answer", [str(i) for i in N]),
    short_answer("problem", "answer", list(N)),
    short_answer("prompt", "response"),
    short_answer("input", "output"),
    short_answer("inputs", "targets"),
    short_answer("instruction", "label"),
    short_answer("question", "correct", ["A"] * 12),
    short_answer("q", "a"),
    short_answer("Frage", "Antwort"),
    short_answer("english", "german", ["fluss"] * 12),
    short_answer("user", "assistant", LONG),
    short_answer("human", "bot", LONG),
    short_answer("article", "highlights", P[::-1]),
    short_answer("prompt", "canonical_solution", LONG),
    refuses(
        "cards of Anki",
        {"a.csv": csv_text([(P[i], "fluss") for i in N], ["Front", "Back"])},
        "--prompt_column=Front --completion_column=Back",
    ),
    reads(
        "a source beside a story", {"a.jsonl": json_lines(of(("source", ["Daily News"] * 12), ("story", LONG)))}, LONG
    ),
    reads("a label beside a review", {"a.jsonl": json_lines(of(("review", P), ("label", SHORT)))}, P),
    refuses(
        "text as the question",
        {"a.jsonl": json_lines(of(("text", P), ("response", P[::-1])))},
        "--prompt_column=text --completion_column=response.*--text_column=text",
    ),
    refuses(
        "text as a task, with code",
        {"a.jsonl": json_lines(of(("text", P), ("code", [f"def f():\n    return {i}  # {P[i]}" for i in N])))},
        "--prompt_column=text --completion_column=code",
    ),
    refuses(
        "text as what a question is about",
        {"a.jsonl": json_lines(of(("text", LONG), ("question", P), ("answer", ["the river"] * 12)))},
        r"--prompt_template='\{text\}\\n\{question\}' --completion_column=answer",
    ),
    reads(
        "text made of a question and its answer",
        {"a.jsonl": json_lines([{"text": f"{P[i]}? {P[-i]}!", "question": P[i], "response": P[-i]} for i in N])},
        [f"{P[i]}? {P[-i]}!" for i in N],
    ),
    reads("a summary beside text", {"a.jsonl": json_lines(of(("text", LONG), ("summary", P)))}, LONG),
]

ASKED = [f"What stands beside the {text.split()[1]} of house {i}?" for i, text in enumerate(P)]
WORDS = "Katze Hund Maus Esel Huhn Ente Gans Kuh Schaf Ziege Fisch Vogel".split()


def beside_text(name, values, texts, column="text", says=None):
    """Values beside texts: refused as their answers, or read if `says` has what is not read."""
    label = f"{name} of {values[0]!r} beside {column}: {texts[0][:9]}"
    files = {"a.jsonl": json_lines({column: texts[i], name: values[i % len(values)]} for i in range(len(texts)))}
    if says:
        return reads(label, files, texts, says=f"not read: {says}")
    return refuses(label, files, [f"--prompt_column={column} --completion_column={name}", f"--text_column={column}"])


SHORT_ANSWERS = [
    refuses(
        "short answers beside text in a csv",
        {"a.csv": csv_text(list(zip(ASKED, WORDS))[:4], ["text", "answer"])},
        "--prompt_column=text --completion_column=answer",
    ),
    beside_text("answer", WORDS, ASKED),
    beside_text("answer", ["4"], ASKED),
    beside_text("answer", [4, 5], ASKED),
    beside_text("answer", [True, False], ASKED),
    beside_text("answer", WORDS, P),
    beside_text("answer", ["A", "B"], [f"{text} A) x B) y" for text in P]),
    beside_text("answers", [[word] for word in WORDS], ASKED),
    beside_text("answers", [{"text": [word], "answer_start": [3]} for word in WORDS], ASKED),
    beside_text("Solution", WORDS, P),
    beside_text("response", ["No, it is not."], P),
    beside_text("response", ["no"], ASKED),
    beside_text("target", WORDS, P),
    beside_text("translation", WORDS, P),
    beside_text("label", WORDS, ASKED),
    beside_text("answer", WORDS, ASKED, "content"),
    beside_text("response", WORDS, ASKED, "sentence"),
    beside_text("answers", WORDS, ASKED, "question"),
    beside_text("responses", WORDS, ASKED, "query"),
    beside_text("model_answer", WORDS, ASKED, "question"),
    beside_text("output", [f"{i} days" for i in N], ASKED),
    beside_text("answer", WORDS[3:10], P),
    beside_text("answer", ["keep", "drop"], ASKED),
    beside_text("replies", [[f"So it is, {word}"] for word in WORDS], P),
    beside_text("reply", [{"id": i, "text": f"{WORDS[i]} it is"} for i in N], P),
    refuses(
        "a name with a space in the flag",
        {"a.jsonl": json_lines(of(("question", ASKED), ("final answer", WORDS)))},
        "--prompt_column=question --completion_column='final answer', or --text_column=question",
    ),
    refuses(
        "letters of choices in a column",
        lines_of(lambda i: {"text": P[i], "choices": ["x", "y"], "answer": "AB"[i % 2]}),
        "--prompt_column=text --completion_column=answer",
    ),
]
TAGS = [["B-PER", "O"], ["O", "O"], ["B-LOC", "O", "O"]]
NO_ANSWERS = [
    beside_text("label", ["pos", "neg"], P, says="label"),
    beside_text("label", ["LOC", "HUM", "NUM", "ENTY"], ASKED, says="label"),
    beside_text("target", ["sport", "news", "art"], P, says="target"),
    beside_text("target", [1, 2, 3], ASKED, says="target"),
    beside_text("target", [i * 0.13 for i in range(1, 13)], P, says="target"),
    beside_text("targets", [["joy"], ["anger"], ["joy", "fear"]], P, says="targets"),
    beside_text("answers", [1, 2, 3], ASKED, says="answers"),
    beside_text("replies", list(range(1, 13)), P, says="replies"),
    beside_text("response", [200, 404], P, says="response"),
    beside_text("response", ["agree", "disagree"], P, says="response"),
    beside_text("answer", [text.split()[1] for text in P], P, says="answer"),
    beside_text("answer", ["4"], [f"{text}? #### 4</s>" for text in P], says="answer"),
    beside_text("answer", ["accept", "ignore"], ASKED, says="answer"),
    beside_text("answer", ["positive", "negative"], P, says="answer"),
    beside_text("topic", WORDS, P, says="topic"),
    beside_text("target", [text.split()[1] if i % 3 else "NULL" for i, text in enumerate(P)], P, says="target"),
    beside_text("target", [text.split()[1][:4] for text in P], P, says="target"),
    beside_text("target", TAGS, P, says="target"),
    beside_text("gold", [f"B-{word}_X" for word in WORDS], P, says="gold"),
    beside_text("output", ["joy", "anger", "fear", "envy"], P[:4], says="output"),
    beside_text("response", ["positive", "negative", "neutral"], P[:3], says="response"),
    beside_text("replies", [[f"t1_a{i}", f"t1_b{i}"] for i in N], P, says="replies"),
    *(
        beside_text("reply", [form.format(i) for i in N], P, says="reply")
        for form in ("t1_ab{}c", "@user{}", "R_1xy{}", "2024-05-0{}", "2024-05-01 10:0{}", "{} days", "{}/20")
    ),
    beside_text("assistant", [f"model-{i}" for i in N], P, says="assistant"),
    beside_text("reply", [{"id": i, "user": f"u{i} the great one"} for i in N], P, says="reply"),
    beside_text("solution", ["open", "closed"], P, says="solution"),
    beside_text("answer", ["keep", "drop", "unsure"], P, says="answer"),
    beside_text("answer", ["B", "C"], P, says="answer"),
    beside_text("label", [[[i, i + 4, "TERM"]] for i in N], ASKED, says="label"),
    beside_text("label", [[word] for word in WORDS], ASKED, says="label"),
    beside_text("label", [f"intent_{word}" for word in WORDS], ASKED, says="label"),
    beside_text("label", [f"NUM:{word}" for word in WORDS], ASKED, says="label"),
    beside_text("labels", WORDS, ASKED, "question", says="labels"),
    reads(
        "thanks to every third review",
        {"a.csv": csv_text([(P[i], "" if i % 3 else "Thanks!") for i in N], ["text", "reply"])},
        P,
        says="not read: reply",
    ),
    beside_text("translations", [{"de": "Der Fluss war lang.", "fr": "Le fleuve est long."}], P, says="translations"),
]

PARTS = [f"{text}. {text}, and nobody knows why." for text in P]
CUT = [f"{text}, and nobody" for text in P]
MORE = {
    "paragraphs": PARTS[:3],
    "sections": [{"heading": "One", "text": PARTS[0]}, {"heading": "Two", "text": PARTS[1]}],
    "extended_tweet": {"full_text": PARTS[0], "entities": {}},
    "absätze": ["这条河很长，没有人知道它从哪里来，也没有人知道它到哪里去，可是每年都有人来看它，问它。"] * 3,
}
ABOUT_TEXT = {
    "tags": ["a", "b c"],
    "token_ids": list(range(500)),
    "tokens": PARTS[0].split() * 9,
    "entities": [{"text": "the river of house 0 is", "label": "a place of water", "start": 3}],
    "annotations": [{"annotator": "a", "comment": PARTS[0] * 5}],
    "scores": [0.5] * 300,
    "user": {"description": PARTS[0] * 5},
    "attributes": {"color": "dark blue", "made in": "the far north"},
    "metadata": {"note": PARTS[0] * 5},
    "comments": [{"user": "a", "said": "So it is, then."}],
}


def pair_beside(name, value):
    return reads(f"{name} in a list beside a pair", beside(**{name: [value] * 12}), TALKS, says=f"not read: {name}")


LISTS = [
    *(
        refuses(
            f"more text in {name} than in text",
            lines_of(lambda i, name=name, value=value: {"text": f"A lead {i}.", name: value}),
            [f"'{name}' holds more text than 'text'", "--text_column="],
        )
        for name, value in MORE.items()
    ),
    *(
        reads(
            f"text with its {name}",
            lines_of(lambda i, name=name, value=value: {"text": PARTS[i], name: value}),
            PARTS,
            says=f"not read: {name}",
        )
        for name, value in ABOUT_TEXT.items()
    ),
    reads("text with its sentences", lines_of(lambda i: {"text": PARTS[i], "sentences": [PARTS[i]] * 5}), PARTS),
    reads("lists named", lines_of(lambda i: {"text": "A lead", "parts": [PARTS[i]]}), PARTS, "--text_column=parts"),
    refuses(
        "text cut short beside a whole tweet",
        lines_of(
            lambda i: {"text": f"{CUT[i]}… https://t.co/abc", "extended_tweet": {"full_text": f"{CUT[i]} knows."}}
        ),
        ["'text' is cut short", "'extended_tweet' holds all"],
    ),
    refuses(
        "text cut short beside the whole",
        lines_of(lambda i: {"text": f"{CUT[i]}...", "full_text": f"{CUT[i]} knows why."}),
        ["'text' is cut short", "'full_text' holds all"],
    ),
    refuses(
        "text cut short within a word, in some rows",
        lines_of(lambda i: {"text": CUT[i][:-5] + "…" if i < 2 else P[i], "body": CUT[i] if i < 2 else P[i]}),
        ["'text' is cut short", "'body' holds all"],
    ),
    *[
        reads(
            f"dots of the author as {rest}",
            lines_of(lambda i, rest=rest: {"text": f"{CUT[i]}...", "html": f"{CUT[i]}{rest}"}),
            [f"{text}..." for text in CUT],
        )
        for rest in (
            "<eos>",
            "<ellipsis/>",
            " , [PAUSE]",
            "&hellip;",
            " . . . </s>",
            "<br/><br/>",
            " ELLIPSIS",
            " [...]",
        )
    ],
    reads(
        "dots of the author, once with a context that begins alike",
        lines_of(lambda i: {"text": f"{CUT[i]}...", "context": f"{CUT[i]} knows why." if i == 3 else "It was so."}),
        [f"{text}..." for text in CUT],
    ),
    reads(
        "dots of the author",
        lines_of(lambda i: {"text": f"{CUT[i]}...", "title": CUT[i], "raw": f"{CUT[i]}... https://t.co/abc"}),
        [f"{text}..." for text in CUT],
    ),
    about("retrieved_chunks", [GIVEN, GIVEN]),
    about("search_results", [{"url": "https://example.org", "snippet": GIVEN}]),
    about("source_documents", [GIVEN, GIVEN]),
    about("knowledge", {"facts_known": GIVEN}),
    about("previous_turns", [GIVEN, GIVEN]),
    *(
        pair_beside(name, [GIVEN])
        for name in (
            "follow_ups related_questions suggested_questions sub_questions decomposition rewrites edits aliases"
            " distractors negs common_mistakes highlights skills citations preferences models neg_passages"
            " knowledge_points"
        ).split()
    ),
    pair_beside("moderation", {"flagged": False, "reasons": [GIVEN]}),
    pair_beside("safety", {"note": GIVEN}),
    pair_beside("chunks", ["It is as it was"]),
    pair_beside("candidates", [GIVEN]),
    pair_beside("steps", [GIVEN]),
    pair_beside("evaluation", {"notes": GIVEN}),
    pair_beside("rejected_responses", [GIVEN]),
    pair_beside("tags", ["a", "b"]),
    pair_beside("metadata", {"license_text": GIVEN}),
    pair_beside("parts", ["What is"]),
]

VERDICTS = [
    verdict("quality", "good", "bad"),
    verdict("verdict", "correct", "incorrect"),
    verdict("status", "accepted", "rejected"),
    verdict("accepted", "yes", "no"),
    verdict("approved", True, False),
    verdict("passed", True, False),
    verdict("reward", 0, 1),
    verdict("vote", 1, -1),
    verdict("helpful", 1, 0),
    verdict("outcome", "pass", "fail"),
    verdict("label", "👍", "👎"),
    verdict("label", "positive", "negative"),
    verdict("what_they_thought", "Good", "Bad"),
    verdict("review", "✅", "❌"),
    harmless("score", 1, 2, 3, 4),
    harmless("status", "done"),
    harmless("split", "train"),
    harmless("category", "qa", "poem"),
    harmless("sentiment", "positive", "negative"),
    harmless("reasoning", f"{GIVEN} {GIVEN}"),
    harmless("rejected_completion", GIVEN),
    refuses(
        "a verdict on messages",
        lines_of(lambda i: {"messages": pair(i, rating="good" if i % 2 else "bad")}),
        ["'rating' of messages", "weight", "--messages_column=messages"],
    ),
    refuses(
        "a verdict on conversations",
        lines_of(lambda i: {"messages": pair(i), "ignore": i % 2 == 0}),
        ["'ignore' tells good", "--messages_column=messages"],
    ),
    refuses(
        "preferences without a prompt",
        lines_of(lambda i: {"chosen": f"{P[i]} {i}", "rejected": "No."}),
        "--text_column=chosen$",
    ),
    refuses(
        "preferences that are conversations",
        lines_of(lambda i: {"prompt": "What?", "chosen": pair(i), "rejected": pair(i)}),
        "--messages_column=chosen$",
    ),
    refuses(
        "preferences that are messages",
        lines_of(lambda i: {"conversations": pair(i)[:1], "chosen": pair(i)[1], "rejected": pair(i)[1]}),
        r"\.conversations \+= \[\.chosen\]",
    ),
]

PROMPTS = [
    about("document", words=[r"--prompt_template='\{prompt\}\\n\{document\}' --completion_column=completion"]),
    about("passage"),
    about("schema", "cars: name, wheels"),
    about("choices", "A) x B) y"),
    about("options", ["x", "y"]),
    about("source_text"),
    about("persona", "A pirate."),
    about("facts", {"a": "The river is long."}),
    about("article", GIVEN + "".join(f" It is {i}." for i in range(12))),
    about("whatever", f"{GIVEN} {GIVEN}"),
    reads(
        "a template with the passage",
        beside(passage=[GIVEN] * 12),
        [talk(f"user: What is {i}?\n{GIVEN}", f"assistant: It is {i}.") for i in N],
        r"'--prompt_template={prompt}\n{passage}' --completion_column=completion",
    ),
    reads(
        "the passage left out",
        beside(passage=[GIVEN] * 12),
        TALKS,
        "--prompt_column=prompt --completion_column=completion",
    ),
    reads("an empty document", beside(document=[""] * 12), TALKS),
    reads("a question that stands in the prompt", beside(question=[f"What is {i}?" for i in N]), TALKS),
    reads("prompt and completion in a text", beside(text=[f"Q: What is {i}? A: It is {i}." for i in N]), TALKS),
    reads(
        "a message of the system",
        beside(system_message=["Be kind."] * 12),
        [talk("system: Be kind.", f"user: What is {i}?", f"assistant: It is {i}.") for i in N],
    ),
    refuses(
        "a context of questions",
        {"a.jsonl": json_lines(of(("context", LONG), ("question", P), ("answer", P)))},
        r'--prompt_template="\{context\}\\n\{question\}" --completion_column=answer',
    ),
    refuses(
        "prompts that are empty",
        lines_of(lambda i: {"prompt": "", "completion": P[i]}),
        ["no row has a question", "--text_column=completion"],
    ),
    reads(
        "completions as texts", lines_of(lambda i: {"prompt": "", "completion": P[i]}), P, "--text_column=completion"
    ),
]

CONVERSATIONS = [
    refuses("an answer beside messages", question_last("response"), [r"\.messages \+= ", "assistant", "response"]),
    refuses(
        "an answer beside a conversation",
        question_last("target", key="conversation"),
        [r"\.conversation \+= ", "target"],
    ),
    reads("the last answer twice", lines_of(lambda i: {"messages": pair(i), "response": f"It is {i}."}), TALKS),
    beside_talks("context", GIVEN, ["'context' is not read", "--messages_column=messages"]),
    beside_talks("documents", [{"text": GIVEN}], ["'documents' is not read"]),
    beside_talks("persona", "A pirate.", ["'persona' is not read"]),
    beside_talks("instruction", "Talk like a pirate.", ["'instruction' is not read"]),
    reads("the prompt of messages again", lines_of(lambda i: {"messages": pair(i), "prompt": f"What is {i}?"}), TALKS),
    reads(
        "a message of the system beside messages",
        lines_of(lambda i: {"messages": pair(i), "system_message": "Be kind."}),
        [talk("system: Be kind.", f"user: What is {i}?", f"assistant: It is {i}.") for i in N],
    ),
    reads(
        "pairs of input and output",
        lines_of(lambda i: {"source": "x", "conversation": [{"input": f"What is {i}?", "output": f"It is {i}."}]}),
        TALKS,
    ),
    reads(
        "pairs of an answer and its question",
        lines_of(lambda i: {"conversations": [{"assistant": f"It is {i}.", "user": f"What is {i}?"}]}),
        TALKS,
    ),
    reads(
        "an export of Claude",
        {
            "a.json": json.dumps(
                [
                    {
                        "uuid": str(i),
                        "chat_messages": [
                            {"sender": "human", "text": f"What is {i}?", "attachments": []},
                            {"sender": "assistant", "text": f"It is {i}.", "content": [{"text": f"It is {i}."}]},
                        ],
                    }
                    for i in N
                ]
            )
        },
        TALKS,
    ),
    reads(
        "contents of Gemini",
        lines_of(
            lambda i: {
                "systemInstruction": {"role": "system", "parts": [{"text": "Be kind."}]},
                "contents": [
                    {"role": "user", "parts": [{"text": f"What is {i}?"}]},
                    {"role": "model", "parts": [{"text": f"It is {i}."}]},
                ],
            }
        ),
        [talk("system: Be kind.", f"user: What is {i}?", f"assistant: It is {i}.") for i in N],
    ),
    refuses(
        "thoughts among the parts",
        lines_of(
            lambda i: {
                "contents": [
                    {"role": "user", "parts": [{"text": "What?"}]},
                    {"role": "model", "parts": [{"text": "Well", "thought": True}, {"text": f"It is {i}."}]},
                ]
            }
        ),
        ["row 1", "part of a message"],
    ),
    refuses(
        "texts said in turn",
        lines_of(lambda i: {"conversations": [f"What is {i}?", f"It is {i}."], "source": "x"}),
        "--messages_column=conversations",
    ),
    reads(
        "texts said in turn, named",
        lines_of(lambda i: {"conversations": [f"What is {i}?", f"It is {i}."], "source": "x"}),
        TALKS,
        "--messages_column=conversations",
    ),
    refuses("messages of a name for things", lines_of(lambda i: {"items": pair(i)}), "--messages_column=items"),
    reads(
        "messages of a name for things, named", lines_of(lambda i: {"items": pair(i)}), TALKS, "--messages_column=items"
    ),
]


def in_splits(name, *values):
    return {"a.csv": csv_text([(P[i], values[i % len(values)]) for i in N], ["text", name])}


SPLITS = [
    refuses("rows of train and test", in_splits("split", "train", "test"), ["'split' gives", "df.split"]),
    refuses("rows of two sets", in_splits("Set", "Train", "Dev"), "'Set' gives"),
    refuses("rows of a test", in_splits("is_test", "0", "1"), "'is_test' gives"),
    refuses(
        "a split of pairs",
        beside(split=["train"] * 6 + ["validation"] * 6),
        ["'split' gives", r"jq -c 'select\(\.split == \"train\"\)'"],
    ),
    refuses(
        "a split beyond the sample",
        {"a.jsonl": json_lines({"text": f"Text {i}", "split": "test" if i > 1100 else "train"} for i in range(1200))},
        "'split' gives",
    ),
    reads("all rows of a split", in_splits("split", "test"), P),
    reads("rows of splits, named", in_splits("split", "train", "test"), P, "--text_column=text"),
    reads("a column of trains", in_splits("vehicle", "train", "bus"), P),
]

PASS = [
    reads(
        "contents with a label",
        {"a.csv": csv_text([(P[i], ("positive", "negative")[i % 2]) for i in N], ["contents", "label"])},
        P,
    ),
    reads(
        "tweets with a target",
        {"a.csv": csv_text([(i % 2 * 4, i, "anna smith", P[i]) for i in N], ["target", "ids", "user", "text"])},
        P,
    ),
    reads(
        "an article with its abstract",
        {"a.csv": csv_text([(f"{text} {text} {text}", P[0]) for text in LONG], ["article", "abstract"])},
        [f"{text} {text} {text}" for text in LONG],
    ),
    reads(
        "messages with what is known of them",
        lines_of(
            lambda i: {
                "conversation": pair(i, toxic=False, language="English"),
                "instruction": f"What is {i}?",
                "response": f"It is {i}.",
                "input_quality": ("good", "excellent", "average")[i % 3],
                "knowledge": GIVEN,
                "toxic": False,
                "llama_guard": "safe",
            }
        ),
        TALKS,
    ),
    reads(
        "Alpaca with the whole prompt",
        lines_of(
            lambda i: {
                "instruction": f"What is {i}?",
                "output": f"It is {i}.",
                "prompt": f"Below is a task.\n\n### Instruction:\nWhat is {i}?\n\n### Output:\nIt is {i}.",
            }
        ),
        TALKS,
    ),
]

TEXTS = [
    reads(
        "a product beside its review",
        {"a.csv": csv_text([("Blue lamp", text) for text in LONG], ["Product", "Review"])},
        LONG,
        says="column 'Review'",
    ),
    reads(
        "titles and texts in Chinese",
        {"a.csv": csv_text([("河流", f"这条河很长，第{i}年也没有人知道它从哪里来。") for i in N], ["标题", "内容"])},
        [f"这条河很长，第{i}年也没有人知道它从哪里来。" for i in N],
    ),
    reads(
        "headlines alone",
        {"a.csv": csv_text([(f"202401{i + 10}", P[i]) for i in N], ["publish_date", "headline_text"])},
        P,
    ),
    reads(
        "lists about the document",
        lines_of(
            lambda i: {
                "title": P[i],
                "body": LONG[i],
                "tags": ["a", "b"],
                "keywords": ["c"],
                "metadata": {"a": "b"},
                "embedding": [0.5, 1, None],
                "licenses": ["MIT"],
            }
        ),
        LONG,
        says="column 'body'",
    ),
    refuses(
        "two columns of sentences",
        {"a.jsonl": json_lines(of(("body", LONG), ("comment", P)))},
        "which column is the text",
    ),
    refuses(
        "a play, a line a row",
        {"a.csv": csv_text([(("KING", "QUEEN")[i % 2], P[i]) for i in N], ["Player", "PlayerLine"])},
        "is a talk",
    ),
]

CASES = ANSWERS + SHORT_ANSWERS + NO_ANSWERS + LISTS + VERDICTS + PROMPTS + CONVERSATIONS + SPLITS + PASS + TEXTS
