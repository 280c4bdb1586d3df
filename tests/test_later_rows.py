"""A table whose first thousand rows look good: what begins behind them is refused, or said, and never learned in
silence."""

import json
from pathlib import Path

import pytest

FIRST = 1000  # rows by which the columns are chosen
PAIRS = [{"prompt": f"What is {i}?", "completion": f"It is the number {i}."} for i in range(FIRST + 100)]
TALKS = [
    {"messages": [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]}
    for row in PAIRS
]
TEXTS = [{"text": row["completion"]} for row in PAIRS]
VERDICT = "tells good completions from bad ones"
SPLITS = "gives its rows to splits"


def prepare(command, rows, before, after, *flags):
    """The end of prepare on rows to which `before` or, behind the first ones, `after` is added."""
    lines = [json.dumps({**row, **(before if i < FIRST else after)}) + "\n" for i, row in enumerate(rows)]
    Path("a.jsonl").write_text("".join(lines))
    return command("prepare", "a.jsonl", "--tokenizer=char", "--out_dir=d", "--doctor=false", *flags)


REFUSED = {  # (rows, before, after, told)
    "a plain verdict": (PAIRS, {"verdict": "pass"}, {"verdict": "fail"}, VERDICT),
    "a number": (PAIRS, {"score": 1}, {"score": 0}, VERDICT),
    "of conversations": (TALKS, {"thumbs_down": False}, {"thumbs_down": True}, VERDICT),
    "a new column": (PAIRS, {}, {"correct": True}, VERDICT),
    "empty at first": (PAIRS, {"is_good": None}, {"is_good": 0}, VERDICT),
    "a passage": (PAIRS, {}, {"passage": "What the question is about."}, "'passage' is not read, and may belong to"),
    "an answer": (TEXTS, {}, {"answer": "This is the answer to it, and it is long."}, "may be the answer to 'text'"),
    "single messages": (TEXTS, {}, {"role": "user", "content": "hello"}, "its rows are single messages"),
    "a split": (TEXTS, {"split": "train"}, {"split": "test"}, SPLITS),
    "an image": (PAIRS, {"image": None}, {"image": "a.png"}, "only text is learned"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_begins_behind_the_first_rows_is_refused(case, command):
    rows, before, after, told = REFUSED[case]
    code, _, error = prepare(command, rows, before, after)
    assert code == 2 and told in error and error.count("\n") == 1, error
    assert not Path("d").exists()


def test_columns_that_are_named_are_read(command):
    named = ("--dry_run", "--prompt_column=prompt", "--completion_column=completion")
    code, out, error = prepare(command, PAIRS, {"verdict": "pass"}, {"verdict": "fail", "passage": "it"}, *named)
    assert code == 0 and f"a.jsonl: {len(PAIRS):,} rows" in out, error


BEHIND = {  # what the number of a row behind the first ones adds
    "stars": lambda n: {"rating": n % 5 + 1},
    "classes": lambda n: {"label": n % 10},
    "a name that is longer than one prompt": lambda n: {"dataset": "all_of_them", **({} if n else {"prompt": "Hi!"})},
}


@pytest.mark.parametrize("case", BEHIND)
def test_one_row_of_a_column_is_not_all_of_it(case, command):
    rows = [{**row, **(BEHIND[case](n - FIRST) if n >= FIRST else {})} for n, row in enumerate(PAIRS)]
    code, out, error = prepare(command, rows, {}, {}, "--dry_run")
    assert code == 0 and f"not read: {[*BEHIND[case](1)][0]}" in out, error


def test_a_new_column_does_not_judge_an_old_one(command):
    rows = [{**row, "rating": n % 5 + 1} for n, row in enumerate(PAIRS)]
    code, out, error = prepare(command, rows, {}, {"lang": "de"}, "--dry_run")
    assert code == 0 and "not read: rating, lang" in out, error


def test_cells_that_are_empty_at_first_can_be_a_verdict(command):
    lines = [f"{row['prompt']},{row['completion']},{n % 2 if n >= FIRST else ''}\n" for n, row in enumerate(PAIRS)]
    Path("a.csv").write_text("prompt,completion,is_good\n" + "".join(lines))
    code, _, error = command("prepare", "a.csv", "--tokenizer=char", "--out_dir=d", "--doctor=false")
    assert code == 2 and "'is_good' " + VERDICT in error, error


@pytest.mark.parametrize(
    "before, after, said",
    [
        ({"lang": "en"}, {"lang": "de"}, "not read: lang"),
        ({"score": 1}, {"score": 7}, "not read: score"),  # no verdict
        ({}, {"source_url": "http://x"}, "not read: source_url"),
        ({"context": None}, {"context": "More of it."}, "'context'"),
    ],
    ids=str,
)
def test_other_columns_are_said(before, after, said, command):
    code, out, error = prepare(command, PAIRS, before, after, "--dry_run")
    assert code == 0 and said in out, error
