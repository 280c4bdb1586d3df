"""Random tables in random dialects of csv and forms of JSON: what is read is what was written, or it is refused."""

import csv
import io
import json
import random
from pathlib import Path

import pytest
from front_door import documents_of, is_same

WORDS = """the river flows over old stones and nobody knows why ok, long; yes | no "quoted" 5" it's naïve café 漢字 😀
a\tb #1 100% x=1 {"a": \\n \\ C:\\dir -- — ' '' "" ,, ;; sep=; [1] <b> & NA null 007 1,5 2020-01-01 \u2028""".split()
OTHERS = {
    "id": lambda rng, i: i,
    "label": lambda rng, i: rng.choice(["pos", "neg"]),
    "date": lambda rng, i: f"2020-01-{i % 28 + 1:02}",
    "n": lambda rng, i: rng.randint(0, 99),
    "note": lambda rng, i: rng.choice(["", "x", "a note"]),
}


def text(rng, words, space):
    made = " ".join(rng.choice(words) for _ in range(rng.randint(1, 12)))
    return made.replace(" ", rng.choice(space), 1)


def columns_of(rng):
    names = ["text", *rng.sample(sorted(OTHERS), rng.randint(0, 3))]
    rng.shuffle(names)
    return names


def table(rng):
    """(names of columns, rows, texts)."""
    words = WORDS[: rng.choice([12, len(WORDS)])]
    space = rng.choice([" ", "\n\t "])  # with line ends, or of one line each
    texts = [text(rng, words, space) for _ in range(rng.randint(8, 30))]
    names = columns_of(rng)
    rows = [[made if name == "text" else OTHERS[name](rng, i) for name in names] for i, made in enumerate(texts)]
    return names, rows, texts


def write_csv(rng, names, rows):
    out = io.StringIO()
    # of one column nobody could tell the separator
    delimiter, end = rng.choice(",,;\t|" if len(names) > 1 else ","), rng.choice(["\n", "\r\n"])
    quoting = rng.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
    writer = csv.writer(out, delimiter=delimiter, quoting=quoting, lineterminator=end)
    writer.writerows([names, *rows])
    above = rng.choice(["", "", "", f"sep={delimiter}{end}", f"A title{end}", f"Title{end}{end}"])
    content = rng.choice(["", "\ufeff"]) + above + out.getvalue()
    Path("a.csv").write_bytes(content.encode())
    return ["a.csv", *rng.choice([[], ["--text_column=text"]])]


def write_unquoted_csv(rng, names, rows):
    """Without any quotes, so that cells with separators and line ends fall apart: most of these are refused."""
    delimiter = rng.choice(",;\t|")
    lines = [delimiter.join(map(str, row)) for row in [names, *rows]]
    Path("a.csv").write_text("\n".join(lines) + "\n", encoding="utf-8", newline="")
    return ["a.csv"]


def write_json(rng, names, rows):
    objects = [dict(zip(names, row)) for row in rows]
    form, indent, ascii_only = rng.choice(["lines", "array", "data"]), rng.choice([None, 1]), rng.random() < 0.5
    if form == "lines":
        content = "".join(
            json.dumps(row, ensure_ascii=ascii_only) + rng.choice(["\n", "\r\n", "\n\n"]) for row in objects
        )
    else:
        value = objects if form == "array" else {"version": 2, "data": objects}
        content = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    name = rng.choice(["a.jsonl", "a.json"] if form == "lines" else ["a.json"])
    Path(name).write_text(rng.choice(["", "\ufeff"]) + content, encoding="utf-8", newline="")
    return [name]


@pytest.mark.parametrize(
    "write, count, must_read",
    [
        (write_csv, 40, 0.8),
        pytest.param(write_csv, 150, 0.8, marks=pytest.mark.heavy),
        (write_unquoted_csv, 60, 0.0),
        (write_json, 60, 1.0),
    ],
    ids=["csv", "csv, more", "csv without quotes", "json"],
)
def test_random_tables_are_read_as_they_are_or_refused(write, count, must_read, byte_tokenizer, command):
    directory, byte_of = byte_tokenizer
    was_read = 0
    for seed in range(count):
        rng = random.Random(seed)
        names, rows, texts = table(rng)
        arguments = write(rng, names, rows)
        code, out, err = command(
            "prepare", *arguments, "--out_dir=out", f"--tokenizer={directory}", "--doctor=false", "--overwrite=true"
        )
        assert code in (0, 2) and (code == 0 or len(err.strip().splitlines()) == 1), (seed, err)
        if code == 0:
            found = documents_of("out", byte_of, 0)
            if "cell without text" in out or "cells without text" in out:  # among sentences a word for nothing is none
                texts = [each for each in texts if each not in ("NA", "null")]
            assert is_same(found, texts), (seed, out, [each for each in found if each not in texts])
            was_read += 1
    assert was_read >= must_read * count
