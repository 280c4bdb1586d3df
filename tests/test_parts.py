"""However many threads or machines tokenize a text, the directory they make is the same to the byte."""

import json
import random
import shutil
from pathlib import Path

import pytest

from finetune.cli import UsageError
from finetune.data import bins, parts
from finetune.data import prepare as preparing
from finetune.data.prepare import prepare

WORDS = [f"{''.join(random.Random(i).choices('abcdeéß漢', k=1 + i % 7))}" for i in range(90)]


def sentences(count, seed):
    rng = random.Random(seed)
    return " ".join(" ".join(rng.choices(WORDS, k=9)).capitalize() + "." for _ in range(count))


def jsonl(name, rows):
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


def text(name="text.txt", seed=0):
    Path(name).write_text(sentences(120, seed))
    return name


def documents(name="documents.jsonl", count=60):
    return jsonl(name, [{"text": sentences(i % 7, i)} for i in range(count)])  # some of them empty


def conversations(name="conversations.jsonl", count=30):
    """Of several turns, so that an end-of-text need not be the end of a document."""
    turn = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": sentences(1, 5)}]
    return jsonl(name, [{"messages": turn * (1 + i % 3)} for i in range(count)])


CASES = {
    "a running text": lambda: {"names": [text()]},
    "characters": lambda: {"names": [text()], "tokenizer": "char"},
    "documents": lambda: {"names": [documents()]},
    "documents of characters": lambda: {"names": [documents()], "tokenizer": "char"},
    "few documents": lambda: {"names": [text("a.txt"), text("b.txt", 1)], "val_fraction": 0.3},
    "conversations": lambda: {"names": [conversations()]},
    "documents, then conversations": lambda: {"names": [documents(), conversations()]},
    "conversations, then documents": lambda: {"names": [conversations(), documents()]},
    "another source for validation": lambda: {"names": [documents()], "val": [conversations()]},
    "a text validated on a text": lambda: {"names": [text("a.txt")], "val": [text("b.txt", 1)]},
    "long documents dropped": lambda: {"names": [documents()], "overflow": "drop", "max_tokens": 60},
    "long documents kept and counted": lambda: {"names": [documents()], "max_tokens": 60},
    "long conversations dropped": lambda: {"names": [conversations()], "overflow": "drop", "max_tokens": 70},
    "fewer documents than parts": lambda: {"names": [documents(count=9)], "val_fraction": 0.2},
}


def content(directory):
    return {
        str(path.relative_to(directory)): path.read_bytes() for path in Path(directory).rglob("*") if path.is_file()
    }


@pytest.fixture
def small_pieces(monkeypatch, bpe_directory):
    """Pieces and chunks so small that a few kilobytes are many; and a tokenizer for them. Disks are not waited for."""
    monkeypatch.setattr(bins.os, "fsync", lambda file: None)
    monkeypatch.setattr(preparing, "PIECE_CHARACTERS", 300)
    monkeypatch.setattr(preparing, "PIECE_DOCUMENTS", 4)
    monkeypatch.setattr(bins, "CHUNK_BYTES", 256)
    return str(bpe_directory(sentences(40, 3)))


@pytest.mark.parametrize("case", CASES)
def test_joined_parts_are_what_one_machine_writes(case, small_pieces):
    choices = {"tokenizer": small_pieces, **CASES[case]()}
    prepare(out_dir="whole", **choices)
    for count in (1, 2, 7) if case in ("a running text", "fewer documents than parts") else (3,):
        tokens = []
        for number in random.Random(count).sample(range(1, count + 1), count):
            part, _ = parts.write((number, count), out_dir=f"machine-{number}", **choices)
            tokens.append(sum((part / f"{split}.bin").stat().st_size for split in ("train", "val")))
            Path(f"joined-{count}").mkdir(exist_ok=True)
            shutil.move(part, f"joined-{count}")
        assert (
            case == "fewer documents than parts" or case == "few documents" or max(tokens) < 3 * sum(tokens) / count
        ), tokens
        parts.join(f"joined-{count}")
        assert content(f"joined-{count}") == content("whole")


@pytest.mark.parametrize("case", ["a running text", "long conversations dropped"])
def test_any_number_of_threads_writes_the_same(case, small_pieces):
    choices = {"tokenizer": small_pieces, **CASES[case]()}
    for threads in (1, 2, 7):
        prepare(out_dir=f"threads-{threads}", num_proc=threads, **choices)
    assert content("threads-1") == content("threads-2") == content("threads-7")


def test_parts_by_command(command, small_pieces):
    source = text()
    flags = [source, "--tokenizer=char", "--val_fraction=0.2"]
    assert command("prepare", *flags, "--out_dir=whole")[0] == 0
    for number in (2, 1):
        code, out, error = command("prepare", *flags, "--out_dir=joined", f"--part={number}/2")
        assert code == 0, error
        assert f"joined/part_{number}_of_2" in out and "--out_dir=joined --join=true" in out
    code, out, error = command("prepare", "--out_dir=joined", "--join=true")
    assert code == 0 and "train has " in out, error
    assert content("joined") == content("whole")  # with what the doctor found


def test_a_part_made_again_replaces_the_first(small_pieces):
    parts.write((1, 2), [text()], "data", "char")
    text(seed=9)
    for number in (1, 2):
        parts.write((number, 2), ["text.txt"], "data", "char")
    parts.join("data")
    prepare(["text.txt"], "whole", "char")
    assert content("data") == content("whole")


def damaged(name, edit):
    def change():
        path = Path("data/part_2_of_3") / name
        edit(path)

    return change


def other_text():
    text(seed=9)
    parts.write((2, 3), ["text.txt"], "data", "char")


BAD = {
    "no parts": (lambda: [shutil.rmtree(path) for path in Path("data").glob("part_*")], "data: no parts there"),
    "a missing part": (lambda: shutil.rmtree("data/part_2_of_3"), "data: of 3 parts 2 is missing"),
    "two missing parts": (
        lambda: [shutil.rmtree(f"data/part_{n}_of_3") for n in (1, 3)],
        "data: of 3 parts 1, 3 are missing",
    ),
    "parts of another count": (
        lambda: parts.write((1, 2), ["text.txt"], "data", "char"),
        "data: holds parts of 2 and of 3",
    ),
    "a part of another text": (other_text, "part_2_of_3: is no part of the same as part_1_of_3, its"),
    "a part with other choices": (
        lambda: parts.write((3, 3), ["text.txt"], "data", "char", seed=2),
        "part_3_of_3: is no part of the same as part_1_of_3, its seed",
    ),
    "a cut bin": (
        damaged("train.bin", lambda path: path.write_bytes(path.read_bytes()[:-2])),
        "part_2_of_3/train.bin: is not the file that was written there",
    ),
    "a lost bin": (damaged("val.bin", lambda path: path.unlink()), "part_2_of_3/val.bin: cannot be read"),
    "a lost description": (damaged("part.json", lambda path: path.unlink()), "part_2_of_3/part.json: cannot be read"),
    "a torn description": (
        damaged("part.json", lambda path: path.write_text(path.read_text()[:99])),
        "part_2_of_3/part.json: describes no part",
    ),
    "a strange description": (
        damaged("part.json", lambda path: path.write_text('{"format": 1, "splits": {"train": {}, "val": {}}}')),
        "part_2_of_3/part.json: is of another version",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_joined_is_told_in_one_line_and_nothing_is_lost(case, command, small_pieces):
    text()
    for number in (1, 2, 3):
        parts.write((number, 3), ["text.txt"], "data", "char")
    spoil, told = BAD[case]
    spoil()
    before = content("data")
    code, _, error = command("prepare", "--out_dir=data", "--join=true")
    assert code == 2 and told in error and len(error.strip().splitlines()) == 1, error
    assert content("data") == before


@pytest.mark.parametrize(
    "flags, told",
    [
        (["--join=true"], "which parts? Give --out_dir=DIR"),
        (["t.txt", "--out_dir=d", "--join=true"], "--join: t.txt has no effect with it"),
        (["--out_dir=d", "--join=true", "--seed=3"], "--seed: has no effect with --join=true"),
        (["--out_dir=d", "--join=true", "--part=1/2"], "--part: has no effect with --join=true"),
        (["t.txt", "--part=3/2"], "--part: there is no part 3 of 2"),
        (["t.txt", "--part=0/2"], "--part: there is no part 0 of 2"),
        (["t.txt", "--part=2"], "--part: is the number of a part and of how many, such as 2/4, got 2"),
        (["t.txt", "--part=1/2", "--doctor=true"], "--doctor: examines all of the data, after --join=true"),
    ],
)
def test_flags_that_cannot_be_are_told(flags, told, command):
    Path("t.txt").write_text("some text")
    code, _, error = command("prepare", *flags)
    assert code == 2 and told in error and len(error.strip().splitlines()) == 1, error
    assert [path.name for path in Path(".").iterdir()] == ["t.txt"]


def test_an_answer_without_an_end_is_refused_in_a_part_already():
    with pytest.raises(UsageError, match="have no end-of-text"):
        parts.write((1, 2), [conversations()], "data", "char")
    assert not list(Path("data").iterdir())
