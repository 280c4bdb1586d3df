"""A csv of answers is cleaned, prepared and trained on; the csv grows; training goes on with the old split kept. No
validation document is ever trained on, no mask and no row is lost."""

import csv
import json
import random
import re
from pathlib import Path

import pytest
from front_door import documents_of, is_same, talk

COLUMNS = ("--prompt_column=question", "--completion_column=answer")
MODEL = """
    --init_from=scratch --n_layer=1 --n_head=2 --n_embd=16 --block_size=128 --batch_size=8 --max_iters=12
    --gradient_accumulation_steps=1 --learning_rate=3e-3 --eval_interval=6 --device=cpu --dtype=float32 --cpu_threads=1
""".split()


def answers(first, count):
    """(question, answer) of some numbers, with line ends, quotes and letters beyond ASCII."""
    rng = random.Random(first)
    places = ["café", "Straße", "river", "garden", '5" shelf', "harbour, old"]
    return [
        (f"Where is item {i}?", f'It is in the {rng.choice(places)}.\nAsk {i * 7} for it; "please".')
        for i in range(first, first + count)
    ]


def misread(row):
    """UTF-8 that was read as Windows-1252."""
    return tuple(text.encode().decode("cp1252") for text in row)


def write(name, rows):
    with open(name, "w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file, delimiter=";").writerows([("question", "answer"), *rows])


@pytest.fixture
def done(command):
    """A function that runs a command that must succeed and returns what it printed."""

    def call(*arguments):
        code, out, err = command(*arguments)
        assert code == 0, err
        return out

    return call


def as_documents(rows):
    return [talk(f"user: {question}", f"assistant: {answer}") for question, answer in rows]


def answers_of(documents):
    return [re.fullmatch("User:.*⟦(.*)<end>⟧", document, re.S)[1] for document in documents]


def test_a_csv_that_grows_keeps_its_validation_rows_apart(byte_tokenizer, command, done):
    tokenizer, byte_of = byte_tokenizer
    first, more = answers(0, 680), answers(680, 100)
    faulty = [row for row in first if "café" in row[1]][:10]
    exported = [misread(row) if row in faulty else row for row in first]
    exported = [*exported, *exported[100:120]]
    random.Random(1).shuffle(exported)
    assert len(exported) == 700
    write("answers.csv", exported)

    # what the doctor sees in the csv, and what it writes
    doctor = ("doctor", "answers.csv", *COLUMNS, f"--tokenizer={tokenizer}")
    seen = done(*doctor)
    assert "20 documents that repeat an earlier one" in seen and "recipes/instruction.yaml" in seen
    assert "UTF-8 read as something else" in seen and "--fix=" in seen
    done(*doctor, "--fix=dedup,encoding", "--out_dir=clean")
    assert done(*doctor) == seen  # nothing changed in the csv

    # the clean directory is data as it is, with its masks, and without what was removed
    out = done("prepare", "clean", "--out_dir=data/answers", f"--tokenizer={tokenizer}")
    assert "to be learned" in out and "repeat an earlier one" not in out
    assert is_same(documents_of("data/answers", byte_of, 0), as_documents(first))
    train, val = (documents_of("data/answers", byte_of, 0, [split]) for split in ("train", "val"))
    assert len(train) == 612 and len(val) == 68
    done("train", "--dataset=data/answers", "--out_dir=out1", *MODEL)

    # data that a run was trained on are not replaced unseen
    grown = [*exported, *more]
    random.Random(2).shuffle(grown)
    write("answers.csv", grown)
    done(*doctor, "--fix=dedup,encoding", "--out_dir=clean2")
    bins = {path: path.read_bytes() for path in Path("data/answers").iterdir() if path.is_file()}
    code, _, error = command("prepare", "clean2", "--out_dir=data/answers", f"--tokenizer={tokenizer}")
    assert code == 2 and "out1" in error
    assert all(path.read_bytes() == content for path, content in bins.items())

    # the old split is kept, and the new rows are split as always
    kept = ("--keep_split=data/answers", f"--tokenizer={tokenizer}")
    out = done("prepare", "clean2", "--out_dir=data/grown", *kept)
    assert "68 documents stay in val, 612 in train; 100 are new" in out
    new_train, new_val = (documents_of("data/grown", byte_of, 0, [split]) for split in ("train", "val"))
    assert is_same([*new_train, *new_val], as_documents([*first, *more]))
    assert set(val) < set(new_val) and set(train) < set(new_train)
    assert not set(new_train) & set(new_val) and len(new_val) == 78

    # training goes on, and both runs are measured on the old validation documents
    flags = [flag for flag in MODEL if not flag.startswith(("--init_from", "--n_"))]
    done("train", "--dataset=data/grown", "--init_from=out1", "--out_dir=out2", *flags)
    losses = {}
    for run in ("out1", "out2"):
        done("eval", f"--out_dir={run}", "--dataset=data/answers", "--device=cpu")
        event = json.loads(Path(run, "metrics.jsonl").read_text().splitlines()[-1])
        assert event["event"] == "evaluation" and event["documents"] == 68
        assert event["targets"] == sum(len(answer.encode()) + 1 for answer in answers_of(val))
        losses[run] = event["loss"]
    assert losses["out2"] < losses["out1"]
    out = done("compare", "out1", "out2")
    assert "data/answers" in out and "data/grown" in out and "validated on different data" in out
