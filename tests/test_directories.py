"""Directories and patterns: names of splits are followed, links are read once, and what is left out is counted."""

import glob
import json
import re
import shlex
from pathlib import Path

import pyarrow
import pytest

from finetune.common.errors import UsageError
from finetune.data import sources
from finetune.data.directories import find_files
from finetune.data.text_files import TEXT_SUFFIXES, suffix_of

datasets = pytest.importorskip("datasets")

TABLES = (".jsonl", ".json", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow", ".feather")


def is_readable(path):
    return suffix_of(path) in (*TEXT_SUFFIXES, *TABLES)


def make(*names, folder="d"):
    for name in names:
        path = Path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return folder


def found(name, base="d"):
    """{split: names below `base`} and what is left out."""
    result = find_files(name, is_readable)
    names = {split: [str(path.relative_to(base)) for path in paths] for split, paths in result.files.items() if paths}
    return names, result.describe_left_out()


# (files, {split: files}, what is left out)
DIRECTORIES = {
    "json lines": (
        "train.jsonl validation.jsonl test.jsonl README.md",
        {"train": "train.jsonl", "val": "validation.jsonl", "test": "test.jsonl"},
        "README.md",
    ),
    "a Hub snapshot": (
        "README.md dataset_infos.json data/train-00000-of-00002.parquet data/train-00001-of-00002.parquet"
        " data/validation-00000-of-00001.parquet data/test-00000-of-00001.parquet LICENSE",
        {
            "train": "data/train-00000-of-00002.parquet data/train-00001-of-00002.parquet",
            "val": "data/validation-00000-of-00001.parquet",
            "test": "data/test-00000-of-00001.parquet",
        },
        "LICENSE, README.md, dataset_infos.json",
    ),
    "directories of splits": (
        "train/pos/1.txt train/neg/2.txt test/pos/3.txt README",
        {"train": "train/neg/2.txt train/pos/1.txt", "test": "test/pos/3.txt"},
        "README",
    ),
    "languages": (
        "en/train.jsonl.gz en/validation.jsonl.gz de/train.jsonl.gz de/dev.jsonl.gz",
        {"train": "de/train.jsonl.gz en/train.jsonl.gz", "val": "de/dev.jsonl.gz en/validation.jsonl.gz"},
        "",
    ),
    "names with a prefix": (
        "xyz_train.jsonl xyz_dev.jsonl xyz_test.jsonl xyz_labels.csv",
        {"train": "xyz_train.jsonl", "val": "xyz_dev.jsonl", "test": "xyz_test.jsonl"},
        "1 other .csv",
    ),
    "texts": (
        "wiki.train.txt wiki.valid.txt wiki.test.txt",
        {"train": "wiki.train.txt", "val": "wiki.valid.txt", "test": "wiki.test.txt"},
        "",
    ),
    "other spellings": (
        "Training.CSV Testing.CSV Eval.CSV",
        {"train": "Training.CSV", "val": "Eval.CSV", "test": "Testing.CSV"},
        "",
    ),
    "a split and other tables": (
        "train.jsonl extra.jsonl more.jsonl labels.csv",
        {"train": "train.jsonl"},
        "1 other .csv, 2 other .jsonl",
    ),
    "test data only": ("test.jsonl test2.jsonl", {"train": "test.jsonl test2.jsonl"}, ""),
    "notes about training": (
        "training.md evaluation.md data.md README.md",
        {"train": "README.md data.md evaluation.md training.md"},
        "",
    ),
    "a text about trains": ("train.txt boat.txt", {"train": "boat.txt train.txt"}, ""),
    "words within words": ("trainer.jsonl contest.jsonl", {"train": "contest.jsonl trainer.jsonl"}, ""),
    "cards beside tables": ("README.md LICENSE.txt rows.csv", {"train": "rows.csv"}, "LICENSE.txt, README.md"),
    "cards of texts": ("README.md a.md", {"train": "README.md a.md"}, ""),
    "a card below tables": ("rows.csv notes/README.md", {"train": "notes/README.md rows.csv"}, ""),
    "what the doctor writes": ("clean.jsonl removed.jsonl", {"train": "clean.jsonl"}, "removed.jsonl"),
    "what the doctor writes about texts": (
        "0001.txt 0002.txt removed.jsonl",
        {"train": "0001.txt 0002.txt"},
        "removed.jsonl",
    ),
    "only a record": ("removed.jsonl", {"train": "removed.jsonl"}, ""),
    "a table of states": ("state.json county.json", {"train": "county.json state.json"}, ""),
    "other kinds": (
        "a.txt b.docx c.docx d.pdf e.rst f.rst g.rst Makefile x.tar.gz",
        {"train": "a.txt"},
        "2 .docx, 1 .pdf, 3 .rst, 1 .tar, Makefile",
    ),
    "hidden": ("a.txt .b.txt .git/c.txt sub/.d/e.txt", {"train": "a.txt"}, ""),
}


@pytest.mark.parametrize("case", DIRECTORIES)
def test_a_directory_is_read_by_its_splits_and_the_rest_is_counted(case):
    names, expected, left_out = DIRECTORIES[case]
    make(*names.split())
    Path("d/empty.txt").touch()
    assert found("d") == ({split: files.split() for split, files in expected.items()}, left_out)


def test_a_directory_without_text_is_refused():
    make("a.png", "b.png", "c.docx")
    with pytest.raises(UsageError, match=r"^d: no text there; .txt, .md, .*; left out: 1 .docx, 2 .png$"):
        sources.find(["d"])
    with pytest.raises(UsageError, match=r"^d/\*.jsonl: no text there"):
        sources.find(["d/*.jsonl"])


NAMED_APART = {  # what a shell made of a pattern, and what names the same files together
    "files": ("d[1]/test.txt d[1]/train.txt", "pattern in quotes, '(.*)', to train on train alone"),
    "directories": ("d[1]/dev/a.txt d[1]/train/b.txt", "name their directory, (.*), to train on train alone"),
    "archives": ("d[1]/test.zip d[1]/train.zip", None),
    "programs": ("d[1]/test.py d[1]/train.py", None),
    "files of two directories": ("a/test.txt b/train.txt", None),
}


@pytest.mark.parametrize("case", NAMED_APART)
def test_splits_that_are_named_one_by_one_are_told_a_way_that_works(case):
    files, together = NAMED_APART[case]
    make(*files.split(), folder=".")
    typed = [str(path.parent if case == "directories" else path) for path in map(Path, files.split())]
    with pytest.raises(UsageError, match="are named after splits, and all would train; .* other names$") as caught:
        sources.find(typed)
    way = re.search(together or "to train on train alone", str(caught.value))
    assert bool(way) == bool(together)
    if way:
        (name,) = shlex.split(f"'{way[1]}'" if case == "files" else way[1])
        read = sources.find([name])[0].files
        assert [path.parent.name if case == "directories" else path.stem for path in read] == ["train"]


def test_names_that_say_nothing_of_splits_train_together(monkeypatch):
    make("one/train.txt", "two/test.txt", "train.txt", "notes_on_train.txt", "train.md", "dev.md")
    make("training/a.md", "testing/b.md", "guide/c.md", "my_training.txt", "turing_test.txt", "on_writing.txt")
    monkeypatch.chdir("d")
    for typed in (
        "one two",  # their files do not say what they are
        "train.txt notes_on_train.txt",
        "train.md dev.md",
        "training testing guide",
        "one/train.txt two",
        "my_training.txt on_writing.txt turing_test.txt",  # of essays
    ):
        assert len(sources.find(typed.split())) == len(typed.split())


# (files, pattern, {split: files})
PATTERNS = {
    "a split by its name": ("train.jsonl test.jsonl", "d/test*.jsonl", {"train": "test.jsonl"}),
    "a directory of a split": ("test/a.txt train/b.txt", "d/test/*.txt", {"train": "test/a.txt"}),
    "all splits": ("train.jsonl test.jsonl", "d/*.jsonl", {"train": "train.jsonl", "test": "test.jsonl"}),
    "splits of another suffix": (
        "wiki.train.raw wiki.valid.raw",
        "d/*.raw",
        {"train": "wiki.train.raw", "val": "wiki.valid.raw"},
    ),
    "programs": ("train.py test.py model.py", "d/**/*.py", {"train": "model.py test.py train.py"}),
    "hidden": ("a.py .b.py .c/d.py", "d/**/*.py", {"train": "a.py"}),
    "two levels": ("a/b/c.txt a/d.txt", "d/*/*/*.txt", {"train": "a/b/c.txt"}),
    "any depth": ("a/b/c.txt a/d.txt e.txt", "d/**/*.txt", {"train": "a/b/c.txt a/d.txt e.txt"}),
    "depth in the middle": (
        "a/x/c.txt a/b/x/d.txt x/e.txt f.txt",
        "d/**/x/*.txt",
        {"train": "a/b/x/d.txt a/x/c.txt x/e.txt"},
    ),
    "everything": ("a/b.txt c.png d.jsonl", "d/**", {"train": "a/b.txt d.jsonl"}),
    "depth twice": ("a/x/b/c.txt x/d.txt", "d/**/x/**/*.txt", {"train": "a/x/b/c.txt x/d.txt"}),
    "brackets": ("a1.txt a2.txt a3.txt", "d/a[12].txt", {"train": "a1.txt a2.txt"}),
}


@pytest.mark.parametrize("case", PATTERNS)
def test_a_pattern_matches_what_glob_matches(case):
    names, pattern, expected = PATTERNS[case]
    make(*names.split())
    assert found(pattern)[0] == {split: files.split() for split, files in expected.items()}
    matched = sorted(filter(Path.is_file, map(Path, glob.glob(pattern, recursive=True))))
    readable = [path for path in matched if Path(pattern).suffix or is_readable(path)]
    assert sorted(sum(find_files(pattern, is_readable).files.values(), [])) == readable


def test_links_in_circles_are_read_once():
    make("a.txt", "sub/b.txt", "sub/z.txt")
    for name in ("up", "round", "again"):
        Path("d/sub", name).symlink_to("..")
    Path("d/sub/c.txt").symlink_to("b.txt")
    Path("d/gone.txt").symlink_to("nowhere")
    make("e.txt", folder="elsewhere")
    Path("d/link").symlink_to(Path("elsewhere").absolute())
    files = ["a.txt", "sub/b.txt", "sub/z.txt"]
    assert found("d") == ({"train": files}, "1 broken link")
    assert found("d/**/*.txt")[0] == {"train": files}
    assert found("d/**/**/*.txt")[0] == {"train": files}


def test_links_out_of_a_directory_are_left_out_and_said(command):
    make("e.txt", folder="elsewhere")
    make("a.txt", folder="top/d")
    make("secret.txt", folder="top")
    for name, target in (("up", "../.."), ("all", "/"), ("e.txt", Path("elsewhere/e.txt").absolute())):
        Path("top/d", name).symlink_to(target)
    Path("top/d/folder").symlink_to("../../elsewhere")
    told = f"one file is elsewhere, behind links, such as {Path('elsewhere/e.txt').absolute()}, and left out"
    for name in ("top/d", "top/d/*.txt", "top/d/**/*"):
        assert found(name, Path("top/d"))[0] == {"train": ["a.txt"]}
        assert f"{name}: {told}" in command("prepare", name, "--tokenizer=char", "--dry_run")[1]
    Path("top/d/a.txt").unlink()
    code, _, error = command("prepare", "top/d", "--tokenizer=char", "--out_dir=data")
    assert code == 2 and told in error and error.count("\n") == 1 and not Path("data").exists(), error
    assert command("prepare", "top/d/e.txt", "--tokenizer=char", "--dry_run")[0] == 0  # that the user named
    blobs = Path("hub/datasets--o--n/blobs")
    blobs.mkdir(parents=True)
    (blobs / "abc").write_text("some text")
    make("b.txt", folder="hub/datasets--o--n/snapshots/1")
    Path("hub/datasets--o--n/snapshots/1/c.txt").symlink_to("../../blobs/abc")
    assert not find_files("hub/datasets--o--n/snapshots/1", is_readable).outside
    make("1.txt", folder="blobs")  # a name that anybody can give
    Path("hub/datasets--o--n/snapshots/1/d.txt").symlink_to(Path("blobs/1.txt").absolute())
    assert len(find_files("hub/datasets--o--n/snapshots/1", is_readable).outside) == 1


@pytest.mark.skipif(not Path("/proc/self/root").exists(), reason="no /proc")
def test_a_link_into_proc_is_no_error_and_its_names_are_few(command):
    make("a.txt")
    Path("d/p").symlink_to("/proc/self/map_files")
    Path("d/q").symlink_to("/proc/self")
    code, out, error = command("prepare", "d", "--tokenizer=char", "--dry_run")
    assert code == 0 and max(map(len, out.splitlines())) < 2000, error


def test_the_home_directory_is_found(monkeypatch):
    make("a.txt", folder="home/texts")
    monkeypatch.setenv("HOME", str(Path("home").absolute()))
    assert found("~/texts", Path("home/texts").absolute())[0] == {"train": ["a.txt"]}
    assert found("~/texts/*.txt", Path("home/texts").absolute())[0] == {"train": ["a.txt"]}


def test_what_save_to_disk_wrote_is_read_in_its_order():
    rows = datasets.Dataset.from_dict({"text": [f"row {i}" for i in range(12)]})
    rows.save_to_disk("d", num_shards=3)
    make("cache-0123.arrow", "README.md")
    files = [f"data-0000{i}-of-00003.arrow" for i in range(3)]
    assert found("d") == ({"train": files}, "README.md, cache-0123.arrow")
    texts = [pyarrow.ipc.open_stream(Path("d", name)).read_all()["text"].to_pylist() for name in files]
    assert sum(texts, []) == rows["text"][:]
    state = json.loads(Path("d/state.json").read_text())
    state["_data_files"].reverse()
    Path("d/state.json").write_text(json.dumps(state))
    assert found("d")[0] == {"train": files[::-1]}


def test_the_splits_of_a_saved_data_set_are_followed():
    rows = datasets.Dataset.from_dict({"text": ["a", "b"]})
    datasets.DatasetDict(train=rows, validation=rows, test=rows).save_to_disk("d")
    names, left_out = found("d")
    file = "data-00000-of-00001.arrow"
    assert names == {"train": [f"train/{file}"], "val": [f"validation/{file}"], "test": [f"test/{file}"]}
    assert left_out == ""


@pytest.mark.parametrize("name", ["/", "//", "/tmp/..", "/**/*.txt", "/proc"])
def test_a_whole_disk_is_not_walked(name, command):
    code, _, error = command("prepare", name, "--tokenizer=char", "--out_dir=d")
    assert code == 2 and "name the directory of your texts" in error and error.count("\n") == 1, error
    assert not Path("d").exists()


def test_missing_parts_of_a_set_are_refused():
    rows = datasets.Dataset.from_dict({"text": [f"row {number}" for number in range(8)]})
    rows.save_to_disk("saved", num_shards=3)
    Path("saved/data-00001-of-00003.arrow").unlink()
    with pytest.raises(FileNotFoundError):
        datasets.load_from_disk("saved")
    with pytest.raises(UsageError, match=r"saved: 1 of 3 parts is not there, such as saved/data-00001-of-00003.arrow"):
        found("saved")
    name = "data/train-00000-of-00004-0123456789abcdef.parquet"
    make(name, "data/validation-00000-of-00001.parquet", "data/test-00000-of-00002.parquet")
    with pytest.raises(UsageError, match="3 of 4 parts are not there, such as d/data/train-00001-of-00004") as refused:
        found("d")
    pattern = re.search("'(.*)'", str(refused.value))[1]
    assert found(pattern)[0] == {"train": [name]}  # what a pattern names is all that is wanted
    make(*(name.replace("00000-of", f"{number:05}-of") for number in (1, 2, 3)))  # that of test is left out anyway
    assert len(found("d")[0]["train"]) == 4
    make("c4-train.001-of-002.json.gz", "c4-train.002-of-002.json.gz", folder="c4")  # from 1
    assert find_files("c4", lambda path: True).files["train"]
    make("day-001-of-365.txt", "day-002-of-365.txt", folder="days")
    with pytest.raises(UsageError, match="363 of 365 parts are not there, such as days/day-003-of-365.txt"):
        found("days")
