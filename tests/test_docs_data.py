"""Every row of the table "you have, you type, a document is" of docs/data.md is run on files of that name."""

import gzip
import importlib.util
import io
import json
import re
import shlex
from pathlib import Path
from pydoc_data.topics import topics

import pytest
from front_door import Case, csv_text, documents_of, is_same, json_lines, looks_like, plain, talk, talks
from front_door_files import DOCX, archive
from front_door_tables import feather, parquet, saved, texts
from stand_in_hub import serving

PAGE = Path(__file__).parents[1] / "docs/data.md"
HEADINGS = ["you have", "you type", "a document is"]


def table():
    """(what one has, the arguments) of each row."""
    lines = iter(PAGE.read_text(encoding="utf-8").splitlines())
    for line in lines:
        if cells(line) == HEADINGS:
            break
    assert set(next(lines)) == set("|-")
    found = []
    for line in lines:
        if not line.startswith("|"):
            break
        have, typed, _ = cells(line)
        code = re.fullmatch(r"`(.*)`", typed)
        assert code, f"{have}: one command between backticks"
        found.append((have, shlex.split(code[1].removeprefix("finetune prepare "))))
    return found


def cells(line):
    """The cells of a row of Markdown; a bar of a cell is written with a backslash before it."""
    return [cell.strip().replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


@pytest.fixture
def hub(monkeypatch):
    """A Hub that answers, and a `datasets` that streams one dataset of it."""
    import datasets

    with serving() as server:
        monkeypatch.setattr(datasets, "load_dataset", lambda path, **_: iter([{"text": text} for text in P]))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
        yield


P = plain()
ROWS = [{"text": text, "id": number} for number, text in enumerate(P)]
PAIRS = [(f"What is {i}?", f"It is {i}.") for i in range(12)]
TEXT = "".join(f"{text}.\n" for text in P)
MESSAGES = [[{"role": "user", "content": asked}, {"role": "assistant", "content": said}] for asked, said in PAIRS]
TURNS = [[{"from": "human", "value": asked}, {"from": "gpt", "value": said}] for asked, said in PAIRS]
SPLITS = {f"corpus/{split}.jsonl": json_lines({"text": f"{split} {text}"} for text in P) for split in ("train", "test")}
SPLITS["corpus/validation.jsonl"] = json_lines({"text": f"validation {text}"} for text in P)
INSIDE = {f"corpus/{number}.txt": text for number, text in enumerate(P)}
PYTHON_DOCS = re.compile(f"{re.escape(topics['assert'])}.*{re.escape(topics['yield'][:200])}.*", re.S)

# by the source: files or a function that writes them, and the documents
SAMPLES = {
    "my.txt": ({"my.txt": TEXT}, [TEXT]),
    "reviews.txt": ({"reviews.txt": TEXT}, TEXT.splitlines()),
    "poems.txt": ({"poems.txt": "\n\n\n".join(f"{text}\n\n{text}" for text in P)}, [f"{text}\n\n{text}" for text in P]),
    "tweets.txt": ({"tweets.txt": "<|endoftext|>".join(P)}, P),
    "letters.txt": ({"letters.txt": f"Déjà – {TEXT}".encode("cp1252")}, [f"Déjà – {TEXT}"]),
    "-": ({}, [TEXT]),
    "notes/": ({**{f"notes/{i}.md": text for i, text in enumerate(P)}, "notes/.x.txt": "x", "notes/e.txt": ""}, P),
    "src/**/*.py": ({f"src/{i}/a.py": text for i, text in enumerate(P)}, P),
    "articles.jsonl": ({"articles.jsonl": json_lines({"title": "A title", "body": text} for text in P)}, P),
    "export.json": ({"export.json": json.dumps({"version": "1", "data": ROWS})}, P),
    "dump.json": ({"dump.json": "\n".join(json.dumps(row, indent=2) for row in ROWS)}, P),
    "frame.json": ({"frame.json": json.dumps({"text": {str(i): text for i, text in enumerate(P)}})}, P),
    "scraped.jsonl": ({"scraped.jsonl": '{"text": \n' + json_lines(ROWS) + '{"text": 3}\n'}, P),
    "articles.csv": ({"articles.csv": csv_text(enumerate(texts()), delimiter=";")}, texts()),
    "sentences.csv": ({"sentences.csv": csv_text([[text] for text in texts()], None)}, texts()),
    "pairs.tsv": ({"pairs.tsv": csv_text(zip(P, P[::-1]), ["english", "french"], delimiter="\t", quoting=3)}, P),
    "chapters.parquet": (
        parquet({"paragraphs": [[text, "The end."] for text in P]}, "chapters.parquet"),
        [f"{text}\nThe end." for text in P],
    ),
    "articles.feather": (feather("articles.feather"), texts()),
    "saved/": (saved({"train": {"text": P}, "validation": {"text": ["one"]}, "test": {"text": ["two"]}}), [*P, "one"]),
    "corpus/": (SPLITS, [f"{split} {text}" for split in ("train", "validation") for text in P]),
    "faq.csv": ({"faq.csv": csv_text(PAIRS, ["question", "answer"])}, talks()),
    "exam.jsonl": (
        {"exam.jsonl": json_lines({"context": "Of old.", "question": asked, "answer": said} for asked, said in PAIRS)},
        [talk(f"user: Of old.\n{asked}", f"assistant: {said}") for asked, said in PAIRS],
    ),
    "answers.jsonl": (
        {"answers.jsonl": json_lines({"prompt": asked, "completion": said} for asked, said in PAIRS)},
        talks(),
    ),
    "alpaca.json": (
        {"alpaca.json": json.dumps([{"instruction": q, "input": "Given", "output": a} for q, a in PAIRS])},
        [looks_like(f"User:\n{asked}", "Given", f"Assistant:\n⟦{said}<end>⟧") for asked, said in PAIRS],
    ),
    "sharegpt.json": ({"sharegpt.json": json.dumps([{"id": "x", "conversations": turns} for turns in TURNS])}, talks()),
    "talks.jsonl": ({"talks.jsonl": json_lines({"messages": messages} for messages in MESSAGES)}, talks()),
    "corpus.zip": ({"corpus.zip": archive(INSIDE)}, P),
    "articles.jsonl.gz": ({"articles.jsonl.gz": gzip.compress(json_lines(ROWS).encode())}, P),
    "letter.docx": ({"letter.docx": DOCX}, [re.compile(r"\s*A letter of some words\s*")]),
    "owner/name": ({}, P),
    "python_docs": ({}, [PYTHON_DOCS]),
}


def test_every_sample_is_in_the_table():
    named = [arguments[0] for _, arguments in table()]
    assert sorted(named) == sorted(SAMPLES), "samples and rows differ, or a source stands in two rows"


@pytest.mark.parametrize("have, arguments", table(), ids=lambda value: value if isinstance(value, str) else "")
def test_a_row_of_the_table_is_true(have, arguments, byte_tokenizer, command, monkeypatch, hub):
    directory, byte_of = byte_tokenizer
    files, documents = SAMPLES[arguments[0]]
    Case(have, files, arguments).write()
    if arguments[0] == "-":
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(TEXT.encode())))
    code, out, err = command(
        "prepare", *arguments, "--out_dir=out", "--doctor=false", f"--tokenizer={directory}", "--overflow=split"
    )
    if arguments[0] == "letter.docx" and not importlib.util.find_spec("markitdown"):
        assert code == 2 and "pip install 'finetune-gpt2[documents]'" in err
        return
    assert code == 0, err
    found = documents_of("out", byte_of, 0)
    assert is_same(found, documents), found
