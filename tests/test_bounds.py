"""Sizes that no machine has, names that no disk has and files that never end: one line with the bound, at once."""

import gzip
import json
import os
from pathlib import Path

import pytest

from finetune.common.errors import UsageError
from finetune.data import prompts

MANY = "at most 1000000, got"
DEEP = "nested too deeply"


def write(name, text):
    return lambda: Path(name).write_text(text, encoding="utf-8")


def one_line(name):
    """A small file whose one line has 160 million characters."""

    def make():
        with gzip.open(name, "wb", 1) as file:
            file.write(b'{"text": "')
            for _ in range(160):
                file.write(b"a" * 1_000_000)
            file.write(b'"}\n')

    return make


def bases():
    """Recipes whose bases are named 2**30 times."""
    for number in range(30):
        Path(f"r{number}.yaml").write_text(f"base: [r{number + 1}.yaml, r{number + 1}.yaml]\n")
    Path("r30.yaml").write_text("seed: 1\n")


CASES = {  # (what is there, command, part of the line)
    "epochs": (None, ["train", "--dataset=x", "--epochs=1e308"], f"--epochs: must be at least 0 and {MANY} 1e+308"),
    "batch_size": (None, ["train", "--dataset=x", "--batch_size=1e30"], MANY),
    "accumulation": (None, ["train", "--dataset=x", "--gradient_accumulation_steps=1e30"], MANY),
    "cpu_threads": (None, ["train", "--dataset=x", "--cpu_threads=1e30"], "at most 1024"),
    "num_proc": (None, ["prepare", "x", "--num_proc=1e9"], "at most 1024"),
    "n_layer": (None, ["train", "--dataset=x", "--init_from=scratch", "--n_layer=100000"], "at most 1000, got 100000"),
    "n_embd": (None, ["plan", "--dataset=x", "--init_from=scratch", "--n_embd=1e17", "--n_head=1"], "at most 65536"),
    "max_new_tokens": (None, ["sample", "--out_dir=x", "--max_new_tokens=1e12"], MANY),
    "num_samples": (None, ["sample", "--out_dir=x", "--num_samples=1e12"], "at most 10000"),
    "samples": (None, ["eval", "--out_dir=x", "--samples=1e6"], "at most 10000, got 1000000"),
    "any number": (None, ["train", "--dataset=x", "--max_iters=1e300"], "must be below 9,223,372,036,854,775,808"),
    "a long name": (None, ["train", "--dataset=x", f"--out_dir={'a' * 300}"], "a name of 300 bytes; 255 are possible"),
    "a long source": (None, ["prepare", f"{'a' * 300}.txt"], "a name of 304 bytes"),
    "many names": (None, ["train", f"--dataset={','.join(f'dataset{n}' for n in range(40))}"], "dataset0: no such "),
    "names of a few levels": (None, ["train", f"--dataset={','.join(['a/b/c/d/e/f'] * 150)}"], "a/b/c/d/e/f: no such "),
    "many levels": (None, ["train", "--dataset=x", f"--out_dir={'y/' * 1900}"], "has 1,900 levels; 200 are possible"),
    "a long path": (None, ["report", f"--out_dir={('a' * 250 + '/') * 20}"], "has 5,020 bytes; 4,000 are possible"),
    "a long target": (None, ["recipes", "small", f"--to={'a' * 240}.yaml"], "180 are possible"),
    **{
        f"the root, {command[0]}": (None, [*command, f"--{key}={path}"], f"--{key}: {path} is the root directory")
        for command, key, path in (
            (["train", "--dataset=x"], "out_dir", "/"),
            (["prepare", "x"], "out_dir", "/tmp/.."),
            (["export", "--out_dir=x"], "to", "//"),
        )
    },
    "NUL": (None, ["train", "--dataset=x\0y"], "--dataset: x\\x00y holds the character '\\x00'"),
    "ESC": (None, ["diagnose", "--out_dir=x\x1b[2J"], "holds the character '\\x1b'"),
    "a surrogate": (None, ["prepare", "x\udce9.txt"], "SOURCE: x\\udce9.txt holds a byte that is not UTF-8"),
    "an endless prompt": (None, ["sample", "--out_dir=.", "--start=FILE:/dev/zero"], "/dev/zero: cannot be read"),
    "a file in a recipe": (
        write("r.yaml", 'dataset: x\nstart: "FILE:/etc/passwd"\n'),
        ["train", "r.yaml"],
        "r.yaml:2: start: a recipe must not read a file into a run (FILE:/etc/passwd)",
    ),
    "many blanks": (write("r.yaml", f"dataset: a{' ' * 200_000}b\n"), ["train", "r.yaml"], "a name of 200,002 bytes"),
    "deep YAML": (write("r.yaml", "seed: " + "[" * 3000), ["train", "r.yaml"], DEEP),
    "deep launch": (write("r.yaml", "[" * 3000), ["train", "--dataset=x", "--launch=r.yaml"], "not YAML"),
    "an endless launch": (
        lambda: os.symlink("/dev/zero", "r.yaml"),
        ["train", "--dataset=x", "--launch=r.yaml"],
        "262,144 bytes",
    ),
    "an endless recipe": (
        lambda: os.symlink("/dev/zero", "r.yaml"),
        ["train", "r.yaml"],
        "r.yaml: cannot be read: it is not",
    ),
    "a pipe": (lambda: os.mkfifo("r.yaml"), ["plan", "r.yaml"], "r.yaml: is a pipe"),
    "bases of bases": (bases, ["train", "r0.yaml"], "more than 100 recipes"),
    "a line of JSON": (one_line("x.jsonl.gz"), ["prepare", "x.jsonl.gz", "--tokenizer=char"], "134,217,728 characters"),
    "a value of JSON": (one_line("x.json.gz"), ["prepare", "x.json.gz", "--tokenizer=char"], "134,217,728 characters"),
    "a line of csv": (one_line("x.csv.gz"), ["prepare", "x.csv.gz", "--tokenizer=char"], "134,217,728 characters"),
}


@pytest.mark.parametrize("case", CASES)
def test_bounds(case, command):
    make, (verb, *argv), expected = CASES[case]
    if make:
        make()
    before = sorted(os.listdir("."))
    code, _, error = command(verb, *argv)
    assert code == 2 and expected in error, error
    assert max(map(len, error.splitlines())) <= 500
    assert sorted(os.listdir(".")) == before


def test_names_from_elsewhere_do_not_steer_a_terminal(command):
    Path("texts").mkdir()
    Path("texts", "a\x1b[2J.jsonl").write_text(
        json.dumps({"text": "some words", "y\x07": "z"}) + "\n", encoding="utf-8"
    )
    Path("texts", "b.c\x1b").write_text("x")
    for verb, *argv in (["prepare", "texts", "--tokenizer=char", "--dry_run"], ["doctor", "texts"]):
        code, out, error = command(verb, *argv)
        assert code == 0 and "a\\x1b[2J" in out, error
        assert not {"\x1b", "\x07"} & {*out, *error}


def test_a_text_with_a_long_name_can_be_trained_on(command):
    name = f"{'z' * 250}.txt"
    Path(name).write_text("some words and others\n" * 40)
    shape = (
        "--n_layer=1 --n_head=1 --n_embd=8 --block_size=8 --max_iters=1 --init_from=scratch --tokenizer=char".split()
    )
    code, _, error = command("train", name, "--dry_run", *shape)
    assert code == 0, error


def test_deep_json_in_a_cell_a_prompt_and_a_text_is_a_line(command):
    deep = "[" * 200_000
    for name, line in (("a.jsonl", json.dumps({"messages": deep})), ("a.csv", "messages\n" + deep)):
        Path(name).write_text(line + "\n")
        code, _, error = command("prepare", name, "--tokenizer=char", "--out_dir=d", "--doctor=false")
        assert code in (0, 2) and error.count("\n") <= 1, error
    Path("p.jsonl").write_text(deep + "\n")
    with pytest.raises(UsageError, match="not JSON"):
        prompts.read("p.jsonl")


BAD_NAMES = {
    "x" * 300: "a name of 300 bytes",
    "a\nb": "the character",
    "\x1b[31m": "the character",
    "\udcff": "not UTF-8",
}


@pytest.mark.parametrize("name", BAD_NAMES)
@pytest.mark.parametrize(
    "argv",
    [
        ["train", "{}"],
        ["plan", "{}"],
        ["report", "{}"],
        ["train", "--config={}"],
        ["sample", "--init_from=m", "--start=FILE:{}"],
    ]
    + [["prepare", "{}"], ["doctor", "{}"], ["recipes", "{}"], ["train", "--dataset=d", "out_dir={}"]],
)
def test_names_that_no_file_can_have_are_one_line(name, argv, command):
    code, _, error = command(*(word.format(name) for word in argv))
    assert code == 2 and error.count("\n") == 1 and BAD_NAMES[name] in error, error
    assert error.isprintable() or error.strip().isprintable()


def test_columns_and_flags_with_line_ends_are_one_line(command):
    Path("t.jsonl").write_text(json.dumps({"a\nb\x1b[2J": "x", "c": "y"}) + "\n")
    for flags in ([], ["--text_column=q\nr"]):
        code, _, error = command("prepare", "t.jsonl", "--tokenizer=char", *flags)
        assert code == 2 and error.count("\n") == 1 and error.strip().isprintable(), error
    code, _, error = command("train", "--nothing\nlike=1")
    assert code == 2 and error.count("\n") == 1, error
