"""Sources: files of every common kind give the same bins, documents stay whole, and bad input is one line of error."""

import csv
import gzip
import json
import random
import warnings
from pathlib import Path

import numpy as np
import pytest
from stand_in_hub import serving

from finetune.common.errors import UsageError
from finetune.config.cli import parse
from finetune.config.recipe import Recipe
from finetune.data import sources
from finetune.data.prepare import prepare
from finetune.data.tables import ReadOptions


def texts(count=200, seed=0):
    rng = random.Random(seed)
    words = ["".join(rng.choice("abcdeéß漢😀,\n ") for _ in range(rng.randint(1, 9))) for _ in range(80)]
    found = [f"{i}: " + " ".join(rng.choice(words) for _ in range(rng.randint(1, 60))) for i in range(count)]
    found[3] = 'a literal <|endoftext|> and "quotes", commas,\nlines'
    found[4], found[5] = "007", "N A"
    return found


def write(documents, kind, folder=Path(".")):
    """The documents as a file or directory of this kind."""
    path = folder / kind
    if kind == "directory":
        for i, text in enumerate(documents):
            place = path / f"{i // 50}" / f"{i:04d}.{'md' if i % 2 else 'txt'}"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(text.encode())
        (path / ".hidden.txt").write_text("not this")
        (path / "picture.png").write_bytes(b"\x89PNG")
        (path / "empty.txt").touch()
        return path
    path = folder / f"documents.{kind}"
    rows = [{"number": i, "text": text} for i, text in enumerate(documents)]
    if kind in ("jsonl", "jsonl.gz"):
        lines = "".join(json.dumps(row, ensure_ascii=i % 2 == 0) + "\n" for i, row in enumerate(rows)).encode()
        path.write_bytes(gzip.compress(lines) if kind.endswith("gz") else lines)
    elif kind == "json":
        path.write_text(json.dumps(rows))
    elif kind in ("csv", "tsv"):
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["number", "text"], delimiter="\t" if kind == "tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    elif kind == "parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=37)
    return path


KINDS = ("directory", "jsonl", "jsonl.gz", "json", "csv", "tsv", "parquet")


def test_the_same_documents_of_every_kind_give_the_same_bins(bpe_directory):
    documents = texts()
    tokenizer = str(bpe_directory("".join(documents)))
    prepared = {kind: prepare([write(documents, kind)], f"data-{kind}", tokenizer) for kind in KINDS}
    first = prepared["directory"]
    for kind, dataset in prepared.items():
        for split in ("train", "val"):
            assert dataset.bin(split).read_bytes() == first.bin(split).read_bytes(), kind
    ids = {split: np.fromfile(first.bin(split), dtype="<u2") for split in ("train", "val")}
    eot = first.tokenizer.eot
    assert sum((ids[split] == eot).sum() for split in ids) == 200 and (ids["val"] == eot).sum() == 20
    found = [text for split in ids for text in first.tokenizer.decode(ids[split]).split("<|endoftext|>")]
    assert first.tokenizer.encode("<|endoftext|>").tolist() != [eot]
    # every document is whole and in one split, in order
    for split in ids:
        ends = np.flatnonzero(ids[split] == eot)
        parts = [first.tokenizer.decode(part[:-1]) for part in np.split(ids[split], ends + 1)[:-1]]
        assert parts == [text for text in documents if text in set(parts)]
        assert first.meta["splits"][split]["documents"] == len(parts)
    assert len(found) > 200  # the literal <|endoftext|> is text, so its document was cut here as well


def test_another_seed_holds_out_other_documents_and_val_names_them(bpe_directory):
    documents = texts(50)
    source, tokenizer = write(documents, "jsonl"), str(bpe_directory("".join(documents)))
    one, same, other = (
        prepare([source], f"data{n}", tokenizer, seed=seed).bin("val").read_bytes() for n, seed in enumerate((1, 1, 2))
    )
    assert one == same != other
    Path("held_out.txt").write_text("this is val")
    dataset = prepare([source], "with_val", tokenizer, val=["held_out.txt"])
    assert dataset.tokenizer.decode(np.fromfile(dataset.bin("val"), dtype="<u2")) == "this is val<|endoftext|>"
    assert (
        dataset.meta["splits"]["train"]["documents"] == 50 and dataset.meta["val_sources"][0]["name"] == "held_out.txt"
    )


def test_few_documents_are_split_by_characters():
    Path("a.txt").write_text("abc" * 10)
    Path("b.txt").write_text("cba" * 10)
    dataset = prepare(["a.txt", "b.txt"], "data", "char", val_fraction=0.2)
    decoded = {
        split: dataset.tokenizer.decode(np.fromfile(dataset.bin(split), dtype="<u2")) for split in ("train", "val")
    }
    assert decoded == {"train": "abc" * 10 + "cba" * 6, "val": "cba" * 4}
    assert dataset.meta["split_by"] == "characters"
    assert [source["name"] for source in dataset.meta["sources"]] == ["a.txt", "b.txt"]


def test_several_sources_and_patterns(bpe_directory):
    documents = texts(40)
    write(documents[:20], "directory")
    write(documents[20:], "jsonl")
    tokenizer = str(bpe_directory("".join(documents)))
    dataset = prepare(["directory/**/*", "documents.jsonl"], "data", tokenizer)
    assert [(source["name"], source["documents"]) for source in dataset.meta["sources"]] == [
        ("*", 20),
        ("documents.jsonl", 20),
    ]


def test_a_pattern_with_a_suffix_takes_every_file_that_it_matches():
    write(texts(6), "directory")
    for name in ("one.py", "two.py", "three.rs", ".hidden.py"):
        Path("directory", name).write_text(f"# {name}\n" * 20)
    dataset = prepare(["directory/**/*.py"], "data", "char", val_fraction=0.4)
    assert [(source["name"], source["documents"]) for source in dataset.meta["sources"]] == [("*.py", 2)]


def test_a_text_column_by_name():
    Path("rows.csv").write_text("title,body\nfirst,one\nsecond,two\nthird,three\n")
    dataset = prepare(["rows.csv"], "data", "char", val_fraction=0.4, columns={"text": "body"})
    assert sorted(dataset.tokenizer.chars) == sorted(set("onetwothree"))


def test_documents_of_every_text_are_cut_as_the_option_says():
    """Of a named text and of converted documents too, which --documents left whole."""
    found = sources.find(["python_docs"], read_options=ReadOptions(documents="lines"))
    whole = "".join(chunk.text for chunk in sources.find(["python_docs"])[0].chunks())
    lines = [chunk.text for chunk in found[0].chunks()]
    assert lines == [line for line in whole.split("\n") if line.strip()] and not found[0].is_one_text
    pytest.importorskip("markitdown")
    Path("a.html").write_text("<html><body><p>One.</p><p>Two.</p></body></html>")
    found = sources.find(["a.html"], read_options=ReadOptions(documents="lines"))
    assert [chunk.text for chunk in found[0].chunks() if chunk.text] == ["One.", "Two."]


def test_an_encoding_is_not_named_for_documents_that_say_it():
    Path("a.docx").write_bytes(b"PK")
    with pytest.raises(UsageError, match="encoding: has no effect, because there is no text, json, csv or html file"):
        sources.find(["a.docx"], read_options=ReadOptions(encoding="cp1252"))


def test_compressed_text_is_text():
    text = "some text, again and again\n" * 50
    Path("a.txt.gz").write_bytes(gzip.compress(text.encode()))
    Path("b.txt").write_text(text)
    assert (
        prepare(["a.txt.gz"], "a", "char").bin("train").read_bytes()
        == prepare(["b.txt"], "b", "char").bin("train").read_bytes()
    )


def test_a_hub_data_set_is_loaded_by_its_name(monkeypatch):
    import datasets

    asked = {}

    def load_dataset(**options):
        asked.update(options)
        return iter([{"text": f"document {i}"} for i in range(30)])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with serving() as hub:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
        dataset = prepare(["someone/corpus:en"], "data", "char", split="validation", revision="main")
    assert asked == {
        "path": "someone/corpus",
        "name": "en",
        "split": "validation",
        "revision": "main",
        "streaming": True,
    }
    assert dataset.meta["splits"]["train"]["documents"] == 27 and dataset.meta["sources"][0]["bytes"] is None


BAD = {
    "a missing column": (
        "a.jsonl",
        b'{"id": 1, "body": "x", "title": "y"}\n',
        {"columns": {"text": "text"}},
        r"a.jsonl: has no column 'text'; its columns are id, body, title",
    ),
    "an unclear column": (
        "a.jsonl",
        b'{"id": 1, "body": "x", "title": "y"}\n',
        {},
        r"a.jsonl: which column is the text\? .* id, body, title",
    ),
    "mixed types": (
        "a.jsonl",
        b'{"text": "x"}\n{"text": 3}\n',
        {},
        r"a.jsonl: row 2: column 'text' must be text, not the number 3",
    ),
    "a row without text": (
        "a.jsonl",
        b'{"text": "x"}\n{"text": null}\n',
        {},
        r"a.jsonl: row 2: column 'text' must be text, not null",
    ),
    "broken json": ("a.jsonl", b'{"text": "x"}\n{"text":\n', {}, r"a.jsonl: cannot be read as json: "),
    "json that is not UTF-8": (
        "a.jsonl",
        b'{"text": "x"}\n{"text": "\xe9"}\n',
        {},
        r"a.jsonl: byte 0xE9 at offset 24 \(line 2\) is not UTF-8",
    ),
    "text that is not UTF-8": (
        "a.txt",
        b"fine\nnot f\xffne\n",
        {},
        r"a.txt: byte 0xFF at offset 10 \(line 2\) is not UTF-8",
    ),
    "csv that is not UTF-8": (
        "a.csv",
        b"text\nfine\nn\xe9\n",
        {},
        r"a.csv: byte 0xE9 at offset 11 \(line 3\) is not UTF-8",
    ),
    "no parquet": ("a.parquet", b"text", {}, r"a.parquet: cannot be read as parquet: "),
    "a broken gzip": ("a.txt.gz", b"\x1f\x8bnot gzip", {}, r"a.txt.gz: cannot be read"),
    "an empty file": ("a.jsonl", b"", {}, r"a.jsonl: is empty"),
    "one document of one character": ("a.txt", b"x", {}, r"1 characters are too few to keep val_fraction=0.1 of them"),
    "no such file": ("b.txt", b"text", {}, r"a.txt: no such file or directory"),
    "a directory without text": ("a/b.png", b"text", {}, r"a: no text there; .txt, .md, "),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_of_error_and_nothing_is_written(name, command):
    path, content, options, message = BAD[name]
    Path(path).parent.mkdir(exist_ok=True)
    Path(path).write_bytes(content)
    source = {"no such file": "a.txt", "a directory without text": "a"}.get(name, path)
    code, out, err = command(
        "prepare",
        source,
        "--out_dir=data",
        "--tokenizer=char",
        *(f"--{kind}_column={name}" for kind, name in options.get("columns", {}).items()),
    )
    assert code == 2 and len(err.strip().splitlines()) == 1, err
    with pytest.raises(UsageError, match=message):
        prepare([source], "data", "char", **options)
    assert not Path("data").exists()


def test_shakespeare_is_not_downloaded_again():
    path = Path("data/shakespeare/input.txt")
    path.parent.mkdir(parents=True)
    path.write_text("To be, or not to be")
    assert sources.find(["shakespeare"])[0].files == [path]


def test_an_unknown_name_without_network_fails_within_seconds(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UsageError, match="someone/corpus: no such file or directory, and the Hub cannot be asked"):
        sources.find(["someone/corpus"])


def test_a_directory_of_tables_is_prepared_once_with_its_splits():
    from finetune.runs.datasets import find_dataset

    Path("corpus").mkdir()
    for split, count in (("train", 30), ("validation", 5), ("test", 7)):
        rows = [{"text": f"{split} row {i}"} for i in range(count)]
        Path(f"corpus/{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    first = find_dataset("corpus", lambda: "char")
    assert [first.meta["splits"][split]["documents"] for split in ("train", "val")] == [30, 5]
    written = first.bin("train").stat().st_mtime_ns
    assert find_dataset("corpus", lambda: "char").bin("train").stat().st_mtime_ns == written
    Path("corpus/validation.jsonl").write_text('{"text": "another"}\n' * 2)
    assert find_dataset("corpus", lambda: "char").directory != first.directory


def test_columns_are_chosen_by_many_rows_not_the_first():
    rows = [{"title": "First", "body": None}] + [{"title": f"Title {i}", "body": f"Body {i}. " * 9} for i in range(40)]
    Path("a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UsageError, match="a.jsonl: row 1: column 'body' must be text, not null"):
        prepare(["a.jsonl"], "data", "char")
    read_options = ReadOptions(on_bad_row="skip")
    dataset = prepare(["a.jsonl"], "data", "char", read_options=read_options)
    assert sum(split["documents"] for split in dataset.meta["splits"].values()) == 40
    said = (
        "a.jsonl: 41 rows, column 'body', left out 1 row that cannot be used, the first is row 1: column 'body' must be"
    )
    assert dataset.meta["read"][0].startswith(said)


def test_python_that_is_read_warns_of_nothing():
    Path("rows.txt").write_text("{'text': 'a \\d'}\n" * 9)
    Path("mine.py").write_text("start = 'a \\d'\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of \d, which Python 3.12 shows
        with pytest.raises(UsageError, match="holds rows as Python prints them"):
            prepare(["rows.txt"], "data", "char")
        assert parse(Recipe, ["mine.py", "--dataset=d"], "")[0].start == "a \\d"
