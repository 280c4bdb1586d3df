"""Refusals whose way out test_front_door_advice.py types as they write it, with the documents that it must give."""

import json

from front_door import plain, refuses

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
ADVICE = PEOPLE
CASES = [case for case, _ in ADVICE]
