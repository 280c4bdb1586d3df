"""Files that are one JSON object: one document with its lists, one conversation, a dictionary, or rows."""

import json

from front_door import as_column, either, json_lines, of, plain, reads, refuses, texts
from front_door_talks import TALKS, N, pair, sharegpt

T, P = texts(), plain()
STORY = " ".join(P)
WHICH = ["which column|beside", "story|script|plot|letter"]


def of_one(**members):
    return {"a.json": json.dumps(members, indent=1, ensure_ascii=False)}


def a_file_each(make):
    return {f"d/{i:02}.json": json.dumps(make(i)) for i in N}


ONE_DOCUMENT = [
    either("a story with tags", of_one(headline="X", story=STORY, tags=["a", "b"]), [[STORY]], WHICH),
    either("a story behind its tags", of_one(tags=["a", "b"], story=STORY), [[STORY]], WHICH),
    either("a film with its cast", of_one(title="X", script=STORY, cast=["Anna", "Ben"]), [[STORY]], WHICH),
    either("a plot with genres of one length", of_one(plot=STORY, genres=["a"], stars=["b"]), [[STORY]], WHICH),
    either(
        "a directory of stories",
        a_file_each(lambda i: {"headline": "X", "story": T[i], "keywords": ["a", "b"]}),
        [T],
        WHICH,
        "d",
    ),
    refuses("a letter with its answers", of_one(letter=STORY, comments=as_column(P)), ["letter", "comments", "jq"]),
    refuses("a letter behind its answers", of_one(comments=as_column(P), letter=STORY), ["letter", "comments", "jq"]),
    refuses("a poem of lines", of_one(title="Ode", author="X", lines=P), ["lines", "title", "jq -r '.lines"]),
    refuses("a recipe", of_one(name="Soup", ingredients=["salt"], steps=P), ["steps", "jq -r"]),
    refuses("a song of verses", of_one(artist="X", **{"the verses": P[:3]}), [r'\."the verses"']),
    refuses(
        "names with a description",
        of_one(description="A list of trees", source="https://example.org", trees=["ash", "red oak", "elm"] * 9),
        ["list 'trees' beside 'description'", r"jq -r '\.trees\[\]' FILE > out.txt", r"jq -c '\.trees\[\]'"],
    ),
    either("a plot with its genres", of_one(description=STORY, genres=["sad", "long"]), [[STORY]], "description"),
    refuses(
        "lists within objects beside one",
        {"a.json": json.dumps({"trees": {"broad": {"a": ["ash", "elm"]}, "other": ["fir", "yew"]}, "herbs": ["dill"]})},
        ["4 texts in the lists of 'trees' and others beside the list 'herbs'", r"jq -c '\.\. \| strings' FILE"],
    ),
    refuses(
        "a dictionary of numbers, with the words of pandas",
        of_one(**{"data": 1, "schema": 2, **{f"word{i}": i for i in range(40)}}),
        ["one object of 42 numbers", r"jq -c 'keys_unsorted\[\]' FILE > out.jsonl"],
    ),
    either("a text and a list", of_one(text=STORY, tags=["a", "b"]), [[STORY]], "text"),
]
ROWS_IN_IT = [
    reads("texts with a name", of_one(name="My texts", version="1.0", language="en", texts=T), T),
    reads("texts with a description", of_one(description="What the children of class 4 wrote in May", data=T), T),
    reads("rows with a description", of_one(description="A long word about the rows. " * 9, data=as_column(T)), T),
    reads("rows with a notice", of_one(copyright="All rights are with the children. " * 9, items=as_column(T)), T),
    reads("columns with a date", of_one(date="2024-01-01", source="the school", text=T), T),
    reads("two columns of an object", of_one(text=T, id=list(range(12))), T),
    refuses(
        "lists of texts as splits", of_one(train=T, test=T[:3]), ["splits", r"jq -c '\.train\[\]' FILE > train.jsonl"]
    ),
    refuses("lists of one length as splits", of_one(train=T, validation=T), ["splits", "validation.jsonl"]),
]
TWO = [f"{P[0]}, and nobody knows why it was built there.", P[1]]
SHORT = ["First version of all the rows.", "Rows with faults were taken out."]
BESIDE_ROWS = [
    refuses(
        "stories beside poems",
        of_one(stories=TWO, poems=as_column(P)),
        ["texts under 'stories' beside rows under 'poems'", r"jq -c '\.poems\[\]' FILE", r"jq -c '\.stories\[\]' FILE"],
    ),
    refuses("poems before stories", of_one(poems=as_column(P), stories=TWO), "texts under 'stories'"),
    refuses(
        "short stories beside poems", of_one(stories=["It was so.", "So it was!"], poems=as_column(P)), "'stories'"
    ),
    refuses("stories behind a null", of_one(stories=[None, *as_column(P)], poems=as_column(P)), "'stories'"),
    refuses(
        "an introduction beside poems",
        of_one(intro={"text": "A long story"}, poems=as_column(P)),
        ["texts under 'intro' beside rows under 'poems'", r"jq -c '\.intro' FILE"],
    ),
    refuses(
        "an introduction deep in it",
        of_one(intro={"parts": [{"body": P[0]}]}, poems=as_column(P)),
        ["'intro'", r"jq -c '\.intro \| \.\. \| strings'"],
    ),
    refuses("long sentences beside many rows", of_one(stories=TWO[:1] * 3, poems=as_column(P * 9)), "'stories'"),
    reads(
        "tweets with what they refer to",
        of_one(
            data=[{"id": str(i), "text": one} for i, one in enumerate(P)],
            includes={"users": [{"name": "Anna Smith"}], "tweets": [{"id": "9", "text": "It was so, and it is."}]},
            meta={"result_count": 12},
        ),
        P,
    ),
    *[
        reads(f"rows with their {key}", of_one(**{key: SHORT, "data": as_column(P)}), P)
        for key in ("changelog", "terms_of_use", "history", "version_history", "rules")
    ],
    reads(
        "two short sentences beside many rows", of_one(hints=["It was so.", "So it was!"], data=as_column(P * 9)), P * 9
    ),
    refuses("an introduction beside a list of texts", of_one(poems=P, intro={"text": "A long story"}), "'intro'"),
    reads(
        "what is known of rows",
        of_one(
            version=1,
            info={"description": "What the children wrote in May, all of it. " * 5, "contributor": "Anna Smith"},
            authors=["Anna Smith of the school", "Ben Jones of another school"] * 3,
            columns={"text": "what the children wrote, as they wrote it, with all that is wrong in it, and more of it"},
            data=as_column(P),
        ),
        P,
    ),
    reads(
        "rows with classes",
        of_one(intents=[f"book a table for {i}" for i in range(30)], keywords=["old", "quiet"], examples=as_column(P)),
        P,
    ),
    reads(
        "the answer of a server",
        of_one(status={"code": 200, "message": "all is well"}, paging={"next": "the next page"}, results=as_column(P)),
        P,
    ),
    reads("columns with the names of their labels", of_one(text=P, label_names={"0": "very bad", "1": "so good"}), P),
]
CONVERSATIONS = [
    reads("files of one conversation", a_file_each(lambda i: {"messages": pair(i)}), TALKS, "d"),
    reads(
        "files of one conversation of ShareGPT",
        a_file_each(lambda i: {"id": i, "conversations": sharegpt(i)}),
        TALKS,
        "d",
    ),
    reads(
        "files of one conversation with its model",
        a_file_each(lambda i: {"model": "m", "messages": pair(i), "temperature": 0.5, "choices": [{"index": 0}]}),
        TALKS,
        "d",
        says="not read: model",
    ),
    reads("conversations under a key", of_one(conversations=[{"messages": pair(i)} for i in N]), TALKS),
    reads("lists of messages under a key", of_one(conversations=[pair(i) for i in N]), TALKS),
    refuses("one conversation, a message without a role", of_one(messages=[*pair(1), {"content": "x"}]), "a.json"),
]
DICTIONARIES = [
    refuses(
        "questions with answers", of_one(**{f"Why is house {i} so old?": one for i, one in enumerate(P)}), "to_entries"
    ),
    refuses("texts by dotted keys", of_one(**{f"menu.item{i}": one for i, one in enumerate(P)}), "to_entries"),
    refuses("texts by numbers", of_one(**{str(i): one for i, one in enumerate(P)}), "to_entries"),
    refuses("a dictionary of words", of_one(**{f"word{i}": f"what word {i} means" for i in range(60)}), "to_entries"),
    reads("a text with many facts", of_one(text=STORY, **{f"fact_{i}": "x" for i in range(60)}), [STORY]),
]
ENTRIES = [{"key": f"Why is house {i} so old?", "value": one} for i, one in enumerate(P)]
WAYS_OUT = [
    reads("entries of a dictionary", {"a.jsonl": json_lines(ENTRIES)}, P, "--text_column=value"),
    reads("columns of one list", of_one(text=[row["text"] for row in of(("text", T))]), T),
]
CASES = ONE_DOCUMENT + ROWS_IN_IT + BESIDE_ROWS + CONVERSATIONS + DICTIONARIES + WAYS_OUT
