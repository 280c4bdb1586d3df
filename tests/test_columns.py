"""Columns that could be something else than the text are refused, with the way out."""

import json
from pathlib import Path

import pytest

from finetune.common.errors import UsageError
from finetune.data.prepare import prepare
from finetune.data.tables import ReadOptions

PROSE = [f"This is sentence {i}, and it says something." for i in range(20)]


def write(rows, name="a.jsonl"):
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [name]


def column(rows):
    """The column that was taken of some rows."""
    return prepare(write(rows), "data", "char").meta["read"][0]


@pytest.mark.parametrize(
    "beside, taken",
    [
        ({"id": "a1b2c3", "lang": "en", "url": "https://example.org/a/long/address/of/a/page"}, "'body'"),
        ({"title": "A title"}, "'body'"),
        ({"sentiment": "positive"}, "'body'"),
        ({"score": 0.5, "date": "2020-01-01", "ok": True, "nothing": None}, "'body'"),
    ],
)
def test_what_is_about_a_document_is_not_the_document(beside, taken):
    assert f"column {taken}" in column([{**beside, "body": text} for text in PROSE])


@pytest.mark.parametrize(
    "row, message",
    [
        ({"summary": "Short and sweet words, many of them."}, r"which column is the text\? .* body, summary; name it"),
        ({"title": "A title that is as long as the body is, or longer"}, "'title' holds as much text as 'body'"),
        ({"tags": ["one", "two"]}, "'tags' holds lists"),
        ({"meta": {"a": 1}}, "'meta' holds objects"),
        ({"text": "too short"}, "'body' holds more text than 'text'"),
    ],
)
def test_an_unclear_column_is_refused(row, message):
    with pytest.raises(UsageError, match=f"a.jsonl: .*{message}"):
        prepare(write([{"body": text, **row} for text in PROSE]), "data", "char")
    assert not Path("data").exists()
    dataset = prepare(write([{"body": text, **row} for text in PROSE]), "data", "char", columns={"text": "body"})
    assert sum(split["documents"] for split in dataset.meta["splits"].values()) == 20


def test_rows_that_are_single_messages_are_refused():
    rows = [{"role": role, "content": text} for text in PROSE for role in ("user", "assistant")]
    with pytest.raises(UsageError, match="its rows are single messages"):
        prepare(write(rows), "data", "char")
    Path("a.json").write_text(json.dumps(rows[:2]))
    with pytest.raises(UsageError, match="a.json: its rows are single messages"):
        prepare(["a.json"], "data", "char")


@pytest.mark.parametrize(
    "row, message",
    [
        (
            {"prompt": "?", "chosen": "Good.", "rejected": "Bad."},
            "a chosen and a rejected answer.*completion_column=chosen",
        ),
        ({"prompt": "?", "completion": "Bad.", "label": False}, "'label' tells good completions from bad ones"),
    ],
)
def test_preferences_are_not_learned_as_answers(row, message):
    with pytest.raises(UsageError, match=message):
        prepare(write([row] * 20), "data", "char")


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("a.txt", {"text_column": "body"}, "a column is named: has no effect, because there is no table in a.txt"),
        ("a.jsonl", {"separator": ";"}, "separator: has no effect, because there is no csv file in a.jsonl"),
        ("a.jsonl", {"header": "false"}, "header: has no effect"),
        ("a.jsonl", {"documents": "lines"}, "documents: has no effect, because there is no text file"),
    ],
)
def test_an_option_without_effect_is_refused(name, options, message):
    Path("a.txt").write_text("Some text, again and again.\n" * 20)
    write([{"text": text} for text in PROSE])
    with pytest.raises(UsageError, match=message):
        prepare([name], "data", "char", read_options=ReadOptions(**options))


@pytest.mark.parametrize(
    "lines",
    [
        ["Hello there", *PROSE],
        [
            "positive;I love it",
            *(f"{'positive' if i % 2 else 'negative'};{PROSE[i].replace(';', '')}" for i in range(9)),
        ],
        ["1;This is it", *(f"{i};{PROSE[i]}" for i in range(2, 9))],
    ],
)
def test_a_csv_without_a_header_is_refused_and_read_on_request(lines):
    Path("a.csv").write_text("\n".join(lines).replace(",", "") + "\n")
    with pytest.raises(UsageError, match="a.csv: line 1: .* looks like data.*--header=false"):
        prepare(["a.csv"], "data", "char")
    last = lines[0].split(";")[-1]
    options = ReadOptions(header="false", text_column=str(lines[0].count(";") + 1))
    dataset = prepare(["a.csv"], "data", "char", read_options=options)
    assert sum(split["documents"] for split in dataset.meta["splits"].values()) == len(lines)
    text = "".join(dataset.tokenizer.decode(read(dataset, split)) for split in ("train", "val"))
    assert last in text


def read(dataset, split):
    return memoryview(dataset.bin(split).read_bytes()).cast("H").tolist()
