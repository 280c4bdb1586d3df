"""Columns that could be something else than the text are refused, with the way out."""

import json
from pathlib import Path

import numpy as np
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
        ({"tags": ["one", "two"], "meta": {"a": 1}, "embedding": [0.5, 0.25]}, "'body'"),
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
        ({"parts": ["one", "two"]}, "'parts' holds lists"),
        ({"data": {"a": "b"}}, "'data' holds objects"),
        ({"text": "too short"}, "'body' holds more text than 'text'"),
    ],
)
def test_an_unclear_column_is_refused(row, message):
    with pytest.raises(UsageError, match=f"a.jsonl: .*{message}"):
        prepare(write([{"body": text, **row} for text in PROSE]), "data", "char")
    assert not Path("data").exists()
    dataset = prepare(write([{"body": text, **row} for text in PROSE]), "data", "char", columns={"text": "body"})
    assert sum(split["documents"] for split in dataset.meta["splits"].values()) == 20


@pytest.mark.parametrize("beside", [{}, {"labels": [-100, 5]}, {"attention_mask": [1, 1], "position_ids": [0, 1]}])
def test_tokens_of_trainer_are_no_texts(beside):
    with pytest.raises(UsageError, match="'input_ids' holds tokens, and texts are read; give the texts") as refused:
        prepare(write([{"input_ids": [4, number], **beside} for number in range(20)]), "data", "char")
    assert "column=" not in str(refused.value)  # no flag can read them
    read = column([{"input_ids": [4, 5], **beside, "text": text} for text in PROSE])
    assert "column 'text'" in read


@pytest.mark.parametrize("keys", [("role", "content"), ("from", "value"), ("speaker", "text"), ("author", "content")])
def test_rows_that_are_single_messages_are_refused(keys):
    rows = [dict(zip(keys, (role, text))) for text in PROSE for role in ("user", "assistant")]
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
        ("a.txt", {"text_column": "body"}, "text_column: has no effect, because there is no table in a.txt"),
        ("a.jsonl", {"separator": ";"}, "separator: has no effect, because there is no csv file in a.jsonl"),
        ("a.jsonl", {"header": "false"}, "header: has no effect"),
        ("a.jsonl", {"documents": "lines"}, "documents: has no effect, because there is no text file"),
        ("a.txt", {"on_bad_row": "skip"}, "on_bad_row: has no effect, because there is no table"),
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


def documents(dataset):
    return [dataset.tokenizer.decode(read(dataset, split)) for split in ("train", "val")]


def test_an_input_that_only_late_rows_have_is_read(bpe_directory):
    rows = [
        {"instruction": f"Do {i}.", "output": "Done."} | ({"input": f"with {i}!"} if i > 1100 else {})
        for i in range(1200)
    ]
    dataset = prepare(write(rows), "data", str(bpe_directory("User: Do with. Assistant: Done. ")))
    assert "".join(documents(dataset)).count("\n\nwith ") == 99


def test_two_columns_that_belong_to_the_prompt_are_refused():
    rows = [{"prompt": "What?", "completion": "This.", "input": "one", "context": "two"}] * 20
    with pytest.raises(
        UsageError,
        match="'input' and 'context' both belong to the prompt: --prompt_template='{prompt}\\\\n{input}\\\\n{context}'",
    ):
        prepare(write(rows), "data", "char")


def test_a_directory_as_val_gives_its_validation_files():
    Path("other").mkdir()
    for split in ("train", "validation"):
        Path(f"other/{split}.jsonl").write_text(json.dumps({"text": f"of {split}"}) + "\n")
    dataset = prepare(write([{"text": text} for text in PROSE]), "data", "char", val=["other"])
    assert documents(dataset)[1] == "of validation"


@pytest.mark.parametrize("flag", [{"weight": 0}, {"train": False}, {"training": False}, {"loss": False}, {"mask": 1}])
def test_flags_that_say_what_is_not_learned(bpe_directory, flag):
    messages = [{"role": "user", "content": "One?"}, {"role": "assistant", "content": "Bad.", **flag}]
    messages += [{"role": "user", "content": "Two?"}, {"role": "assistant", "content": "Good."}]
    dataset = prepare(
        write([{"messages": messages}] * 20), "data", str(bpe_directory("User: One? Assistant: Good. Bad. Two?"))
    )
    mask = memoryview(dataset.mask("train").read_bytes())
    learned = [token for token, is_target in zip(read(dataset, "train"), mask) if is_target]
    assert {*dataset.tokenizer.decode(learned).split("<|endoftext|>")} == {"Good.", ""}


def test_the_messages_of_a_prompt_are_not_learned(bpe_directory):
    prompt = [
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "Bad."},
        {"role": "user", "content": "Two?"},
    ]
    rows = [{"prompt": prompt, "completion": [{"role": "assistant", "content": "Good."}]}] * 20
    dataset = prepare(write(rows), "data", str(bpe_directory("User: One? Assistant: Good. Bad. Two?")))
    mask = memoryview(dataset.mask("train").read_bytes())
    learned = [token for token, is_target in zip(read(dataset, "train"), mask) if is_target]
    assert {*dataset.tokenizer.decode(learned).split("<|endoftext|>")} == {"Good.", ""}


def test_json_lines_named_txt_are_refused():
    write([{"text": text} for text in PROSE], "a.txt")
    with pytest.raises(UsageError, match="a.txt: holds JSON lines, not plain text; name it with the suffix .jsonl"):
        prepare(["a.txt"], "data", "char")


def test_one_document_beside_its_lists_is_one_document():
    Path("a.json").write_text(json.dumps({"text": PROSE[0] * 3, "tags": ["a", "b"], "title": "A"}))
    assert "".join(documents(prepare(["a.json"], "data", "char"))) == PROSE[0] * 3
    Path("b.json").write_text(json.dumps({"text": PROSE[0], "sections": [{"text": "x"}]}))
    with pytest.raises(UsageError, match="b.json: holds a text under 'text' beside rows under 'sections'"):
        prepare(["b.json"], "other", "char")


def test_a_long_array_in_one_line_is_read_in_parts():
    import tracemalloc

    from finetune.data import sources

    Path("a.json").write_text(json.dumps([{"text": f"row {i} " + "x" * 1000} for i in range(20_000)]))
    tracemalloc.start()
    count = sum(chunk.is_last for chunk in sources.find(["a.json"])[0].chunks())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 20_000 and peak < 30e6


def test_white_space_is_no_text_and_lists_are_no_rows():
    dataset = prepare(write([{"text": text} for text in [*PROSE, " ", "\n\t"]]), "data", "char")
    assert "left out 2 rows without text" in dataset.meta["read"][0]
    Path("a.json").write_text(json.dumps([[1, "one"], [2, "two"]]))
    with pytest.raises(UsageError, match="a.json: row 1 is a list; a row is an object"):
        prepare(["a.json"], "other", "char")


def test_many_columns_are_named_in_short():
    with pytest.raises(UsageError) as error:
        prepare(write([{f"column{i}": "Two words" for i in range(3000)}] * 3), "data", "char")
    assert "and 2,988 more" in str(error.value) and len(str(error.value)) < 600


def test_an_archive_with_a_file_twice_is_refused():
    import zipfile

    with pytest.warns(UserWarning), zipfile.ZipFile("a.zip", "w") as archive:
        archive.writestr("a.txt", "one")
        archive.writestr("a.txt", "two")
    with pytest.raises(UsageError, match="a.zip: cannot be unpacked: it holds a.txt twice"):
        prepare(["a.zip"], "data", "char")


@pytest.mark.parametrize("within", ["\u2028", "\x85", "\x0b", "\x0c"])
def test_a_character_that_splitlines_cuts_at_is_no_line_end_of_a_csv(within):
    rows = [f'{i}, "a", It{within}is {i}.' for i in range(20)]
    Path("a.csv").write_text("\n".join(["id, name, text", *rows]), encoding="utf-8")
    data = prepare(["a.csv"], "data", "char", columns={"text": "text"})
    read = "".join(data.tokenizer.decode(np.fromfile(data.bin(split), "<u2")) for split in ("train", "val"))
    assert sorted(read) == sorted("".join(f"It{within}is {i}." for i in range(20)))  # without the space before it
