"""Talks between people, whose rows are utterances: documents would lose who speaks."""

import json

from front_door import csv_text, json_lines, plain, reads, refuses

P = plain()
SAYS = [("Anna" if i % 2 else "Ben", t) for i, t in enumerate(P)]
TALK = [{"speaker": name, "text": t} for name, t in SAYS]
OUT = ["lose who speaks", "'Ben: ", "--text_column=text"]
TELEGRAM = [
    {"id": i, "type": "message", "date": "2024-01-01T10:00:00", "from": name, "text": t, "text_entities": []}
    for i, (name, t) in enumerate(SAYS)
]
SLACK = [{"type": "message", "user": name, "text": t, "ts": f"1700000000.{i}"} for i, (name, t) in enumerate(SAYS)]
DISCORD = [{"id": str(i), "content": t, "author": {"id": name, "name": name}} for i, (name, t) in enumerate(SAYS)]
MESSENGER = [{"sender_name": name, "timestamp_ms": i, "content": t} for i, (name, t) in enumerate(SAYS)]
ARTICLES = [{"author": name, "title": "It", "text": t} for name, t in SAYS]
MAIL = [{"from": name, "to": "Carl", "subject": "It", "body": t} for name, t in SAYS]

TAVERN = [{"name": name, "is_user": name == "Ben", "mes": t} for name, t in SAYS]


def node(number, role, text):
    said = {"author": {"role": role}, "content": {"content_type": "text", "parts": [text]}}
    return {"id": str(number), "message": role and said, "parent": number and str(number - 1), "children": []}


TREE = {
    str(i): node(i, role, t) for i, (role, t) in enumerate(zip((None, "system", "user", "assistant"), ["", "", *P]))
}
CHATGPT = [
    {"title": t, "create_time": 1.0, "mapping": TREE, "current_node": "3", "id": str(i)} for i, t in enumerate(P)
]

CASES = [
    refuses("an export of ChatGPT", {"conversations.json": json.dumps(CHATGPT)}, ["export of ChatGPT", "jq -c"]),
    refuses("a talk of people", {"a.json": json.dumps({"conversation": TALK})}, [*OUT, "jq"]),
    refuses("a talk of people in lines", {"a.jsonl": json_lines(TALK)}, OUT),
    refuses("a talk of people in an array", {"a.json": json.dumps(TALK, indent=1)}, OUT),
    refuses("a talk of people in csv", {"a.csv": csv_text(SAYS, header=("speaker", "text"))}, OUT),
    refuses("a play in csv", {"a.csv": csv_text(SAYS, header=("character", "line"))}, "--text_column=line"),
    refuses("a chat in csv", {"a.csv": csv_text(SAYS, header=("author", "message"))}, "--text_column=message"),
    refuses("talks of people, one a row", {"a.jsonl": json_lines([{"conversation": TALK}] * 9)}, ["'Ben'", "text"]),
    refuses("an export of Telegram", {"result.json": json.dumps({"name": "x", "messages": TELEGRAM}, indent=1)}, OUT),
    refuses("an export of Slack", {"2024-01-01.json": json.dumps(SLACK, indent=1)}, OUT),
    refuses("an export of Discord", {"a.json": json.dumps({"messages": DISCORD})}, "--text_column=content"),
    refuses(
        "an export of Discord as csv",
        {"a.csv": csv_text([(*row, "", "") for row in SAYS], ("Author", "Content", "Attachments", "Reactions"))},
        "--text_column=Content",
    ),
    refuses("messages of Messenger", {"a.jsonl": json_lines(MESSENGER)}, "--text_column=content"),
    refuses("a chat of SillyTavern", {"a.jsonl": json_lines(TAVERN)}, ["lose who speaks", "--text_column=mes"]),
    reads("a chat of SillyTavern as rows", {"a.jsonl": json_lines(TAVERN)}, P, "--text_column=mes"),
    reads("a talk of people as rows", {"a.jsonl": json_lines(TALK)}, P, "--text_column=text"),
    reads("articles with their authors", {"a.jsonl": json_lines(ARTICLES)}, P),
    reads("mail", {"a.jsonl": json_lines(MAIL)}, P),
    reads("speeches", {"a.jsonl": json_lines({"speaker": str(i), "text": t} for i, t in enumerate(P))}, P),
    reads("reviews of products", {"a.csv": csv_text(SAYS, header=("name", "text"))}, P),
]
