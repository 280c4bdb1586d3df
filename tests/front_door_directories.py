"""Directories and patterns: splits, cards, links, and files of other kinds."""

import os
from pathlib import Path

from front_door import either, json_lines, plain, reads, refuses, talks

P = plain()
ROWS = {
    split: json_lines({"text": f"{split} {text}"} for text in P) for split in ("train", "validation", "test", "removed")
}
TRAIN, VALIDATION = [f"train {text}" for text in P], [f"validation {text}" for text in P]
TEXTS = {f"d/{i:02}.txt": text for i, text in enumerate(P)}
PAIRS = json_lines({"prompt": f"What is {i}?", "completion": f"It is {i}."} for i in range(12))
CARD = "---\nlicense: mit\n---\n# A dataset\nIt holds rows.\n"


def linked(*links):
    """A function that writes the texts and links (from, to)."""

    def write():
        for name, text in TEXTS.items():
            Path(name).parent.mkdir(exist_ok=True)
            Path(name).write_text(text)
        for place, target in links:
            Path(place).parent.mkdir(parents=True, exist_ok=True)
            os.symlink(target, place)

    return write


def splits(**names):
    """Files of splits: `splits(train="a.jsonl")`."""
    return {f"d/{name}": ROWS[split] for split, name in names.items()}


CONFIGS = """---
configs:
- config_name: all
  data_files:
  - split: train
    path: data/all/train-*
{}- config_name: few
  data_files: data/few/*.jsonl
---
# Rows
"""
CONFIGURED = {"d/data/all/train-0.jsonl": ROWS["train"], "d/data/few/train-0.jsonl": ROWS["train"]}

SPLITS = [
    reads(
        "the default of the card's configurations",
        {"d/README.md": CONFIGS.format("  default: true\n"), **CONFIGURED},
        TRAIN,
        "d",
        says="left out",
    ),
    reads(
        "a default of the card beside a file that it does not list",
        {
            "d/README.md": CONFIGS.format("  default: true\n").replace("data/all", "./data/all"),
            "d/data/all/train-0.jsonl": ROWS["train"],
            "d/stray.jsonl": ROWS["test"],
        },
        TRAIN,
        "d",
    ),
    refuses(
        "configurations of a card without a default",
        {"d/README.md": CONFIGS.format(""), **CONFIGURED},
        ["all, few", "d/data/all for all"],
        "d",
    ),
    reads("one configuration of a card, named", {"d/README.md": CONFIGS.format(""), **CONFIGURED}, TRAIN, "d/data/few"),
    reads(
        "a card whose configurations are elsewhere",
        {"d/README.md": CONFIGS.format(""), "d/train-0.jsonl": ROWS["train"]},
        TRAIN,
        "d",
    ),
    refuses(
        "a README of programs",
        {"d/README.md": "# My program\nIt runs.", "d/LICENSE": "Do as you like.", "d/main.py": "print('hello')\n"},
        ["no text there but", r"d/\*\*/\*\.py"],
        "d",
    ),
    refuses(
        "an empty train beside val",
        {"d/train.jsonl": "", "d/val.jsonl": ROWS["validation"]},
        ["train.jsonl is empty"],
        "d",
    ),
    reads(
        "splits by name",
        splits(train="train.jsonl", validation="validation.jsonl", test="test.jsonl"),
        [*TRAIN, *VALIDATION],
        "d",
        says=["test", "left out"],
    ),
    reads("splits, valid.jsonl", splits(train="train.jsonl", validation="valid.jsonl"), [*TRAIN, *VALIDATION], "d"),
    reads("splits, val.jsonl", splits(train="train.jsonl", validation="val.jsonl"), [*TRAIN, *VALIDATION], "d"),
    reads(
        "splits, dev.jsonl",
        splits(train="train.jsonl", validation="dev.jsonl", test="test.jsonl"),
        [*TRAIN, *VALIDATION],
        "d",
        says="test",
    ),
    reads(
        "splits, train and test", splits(train="train.jsonl", test="test.jsonl"), TRAIN, "d", says=["test", "left out"]
    ),
    reads(
        "splits in directories",
        splits(train="train/a.jsonl", validation="validation/a.jsonl", test="test/a.jsonl"),
        [*TRAIN, *VALIDATION],
        "d",
        says="test",
    ),
    reads(
        "splits in pieces",
        splits(
            train="data/train-00000-of-00001.jsonl",
            validation="data/validation-00000-of-00001.jsonl",
            test="data/test-00000-of-00001.jsonl",
        ),
        [*TRAIN, *VALIDATION],
        "d",
        says="test",
    ),
    reads(
        "splits of a snapshot",
        {
            **splits(train="train.jsonl", test="test.jsonl"),
            "d/README.md": CARD,
            "d/LICENSE": "MIT",
            "d/.gitattributes": "x",
        },
        TRAIN,
        "d",
        says=["test", "README"],
    ),
    reads(
        "a table and its card",
        {"d/rows.jsonl": ROWS["train"], "d/README.md": CARD, "d/dataset_infos.json": '{"default": {"features": {}}}'},
        TRAIN,
        "d",
        says="README",
    ),
    reads(
        "splits of answers",
        {"d/train.jsonl": PAIRS, "d/val.jsonl": PAIRS.replace("What", "Why"), "d/README.md": CARD},
        [*talks(), *(text.replace("What", "Why") for text in talks())],
        "d",
    ),
    reads(
        "what the doctor wrote",
        splits(train="train.jsonl", validation="val.jsonl", removed="removed.jsonl"),
        [*TRAIN, *VALIDATION],
        "d",
        says="removed",
    ),
    either(
        "splits of texts",
        {"d/train.txt": "A text to learn. " * 9, "d/validation.txt": "Another. " * 9, "d/test.txt": "Not this"},
        [["A text to learn. " * 9, "Another. " * 9], ["A text to learn. " * 9 + "Another. " * 9]],
        "test",
        "d",
        says="test",
    ),
    either("a test split alone", splits(test="test.jsonl"), [[f"test {text}" for text in P]], "test", "d", says="test"),
    either("splits without train", splits(validation="validation.jsonl", test="test.jsonl"), [], "train", "d"),
    reads(
        "splits of two languages",
        splits(train="en/train.jsonl", validation="de/train.jsonl", test="en/test.jsonl"),
        [*TRAIN, *VALIDATION],
        "d",
        says="en/test.jsonl",
    ),
    reads(
        "splits of version 1.1",
        splits(train="train-v1.1.jsonl", validation="dev-v1.1.jsonl"),
        [*TRAIN, *VALIDATION],
        "d",
    ),
    reads(
        "names that only hold names of splits",
        splits(train="latest.jsonl", validation="contest.jsonl"),
        [*TRAIN, *VALIDATION],
        "d",
    ),
    reads(
        "a directory named test",
        {"test/train.jsonl": ROWS["train"], "test/val.jsonl": ROWS["validation"]},
        [*TRAIN, *VALIDATION],
        "test",
    ),
    reads(
        "notes named like splits",
        {**TEXTS, "d/testing the water.txt": "Of water", "d/my training.txt": "Of training"},
        [*P, "Of water", "Of training"],
        "d",
    ),
    either(
        "validation named, splits beside",
        {**splits(train="train.jsonl", validation="validation.jsonl"), "v.jsonl": ROWS["test"]},
        [[*TRAIN, *(f"test {text}" for text in P)], [*TRAIN, *VALIDATION, *(f"test {text}" for text in P)]],
        "val",
        "d --val=v.jsonl",
        says="validation",
    ),
]


def named(*names, says=("test", "left out")):
    """Splits by names for train, test and validation, which are followed."""
    known = dict(zip(("train", "test", "validation"), names))
    return reads(
        f"splits, {names[0]} and {names[1]}", splits(**known), TRAIN + VALIDATION * (len(names) > 2), "d", says=says
    )


def of_texts(*names):
    """Texts of these names that are no splits."""
    files = {f"d/{name}": f"{name}: {P[i]}." * 3 for i, name in enumerate(names)}
    return reads(f"no splits, {names[0]} and {names[1]}", files, list(files.values()), "d")


def texts_of_splits(train, test):
    """Texts in directories or files of splits."""
    files = {f"d/{train}": "A text to learn. " * 9, f"d/{test}": "Not this. " * 9}
    return reads(f"splits of texts, {train} and {test}", files, ["A text to learn. " * 9], "d", says="test")


SPLITS_AMONG_WORDS = [
    named("split=train/part-0.jsonl", "split=test/part-0.jsonl", "split=validation/part-0.jsonl"),
    named("lang=en/split=train/part-0.jsonl", "lang=en/split=test/part-0.jsonl"),
    named("train_set/1.jsonl", "test_set/1.jsonl", "val_set/1.jsonl"),
    named("train/1.jsonl", "test data/1.jsonl", "val_data/1.jsonl"),
    named("traindata/1.jsonl", "testdata/1.jsonl"),
    named("corpus_train_v2/1.jsonl", "corpus_test_v2/9.jsonl"),
    named("train (1).jsonl", "test (1).jsonl", "validation (2).jsonl"),
    named("train set.jsonl", "test set.jsonl"),
    named("dataTrain.jsonl", "dataTest.jsonl"),
    named("mailTrain.jsonl", "mailTest.jsonl"),
    named("my train rows of May.jsonl", "my test rows of May.jsonl"),
    texts_of_splits("train_data/1.txt", "test_data/1.txt"),
    texts_of_splits("reviews_train/pos/1.txt", "reviews_test/neg/7.txt"),
    texts_of_splits("Training data.txt", "Test data.txt"),
    texts_of_splits("train/1.md", "test/1.md"),
    refuses(
        "splits among words without train",
        splits(validation="val set.jsonl", test="test set.jsonl"),
        "none that is named train",
        "d",
    ),
    of_texts("training/a.md", "testing/b.md", "guide/c.md"),
    of_texts("python-training/a.md", "python-testing/b.md"),
    of_texts("training plan/1.txt", "test results/1.txt", "recipes/2.txt"),
    of_texts("How To Train.txt", "How To Test.txt", "Soup.txt"),
    of_texts("Training Data.txt", "Test Data.txt", "Introduction.txt"),
    of_texts("src/a.txt", "testdata/b.txt", "unit-test/c.txt"),
    of_texts("1 Train/a.txt", "2 Test/b.txt", "3 Deploy/c.txt"),
    of_texts("book1/01 training.txt", "book1/02 testing.txt", "book2/01 war.txt"),
    of_texts("env=training/a.txt", "env=test/b.txt", "env=prod/c.txt"),
    reads(
        "rows of trains",
        splits(train="BulletTrain.jsonl", validation="BulletTest.jsonl", test="Moon.jsonl"),
        [*TRAIN, *(f"test {text}" for text in P), *VALIDATION],
        "d",
    ),
    reads(
        "a second download of train",
        splits(train="train.jsonl", removed="train (1).jsonl"),
        TRAIN,
        "d",
        says="1 other .jsonl",
    ),
]

KINDS = [
    reads("texts", TEXTS, P, "d"),
    either(
        "texts with a README",
        {**TEXTS, "d/README.md": "# My notes\nThey are mine."},
        [[*P, "# My notes\nThey are mine."], P],
        [],
        "d",
        says="README|13",
    ),
    reads(
        "other kinds left out",
        {**TEXTS, "d/a.docx": "x", "d/b.docx": "x", "d/c.pdf": "x", "d/e.rst": "x", "d/f.rst": "x", "d/g.rst": "x"},
        P,
        "d",
        says=["left out", r"2 \.docx", r"1 \.pdf", r"3 \.rst"],
    ),
    reads(
        "pictures and code left out",
        {**TEXTS, "d/deep/a.png": "x", "d/deep/b.py": "x"},
        P,
        "d",
        says=[r"\.png", r"\.py"],
    ),
    reads("archives inside", {**TEXTS, "d/more.zip": "x", "d/more.tar.gz": "x"}, P, "d", says=["zip", "tar|gz"]),
    reads("hidden and empty files", {**TEXTS, "d/.hidden.txt": "x", "d/.git/a.txt": "x", "d/empty.txt": ""}, P, "d"),
    refuses("only other kinds", {"d/a.docx": "x", "d/b.pdf": "x"}, ["no text", "docx", "pdf"], "d"),
    reads(
        "texts and a table",
        {**TEXTS, "d/z.jsonl": json_lines({"text": f"row {i}"} for i in range(3))},
        [*P, "row 0", "row 1", "row 2"],
        "d",
    ),
    either(
        "texts and answers",
        {**TEXTS, "d/z.jsonl": PAIRS},
        [[f"⟦{text}<end>⟧" for text in P] + talks()],
        "instruction|prompt|answers|conversation",
        "d",
    ),
    refuses("a bad file inside", {**TEXTS, "d/05b.txt": b"caf\xe9 au lait, deja vu"}, ["d/05b.txt", "0xE9"], "d"),
    refuses("a PDF named as text inside", {**TEXTS, "d/05b.txt": b"%PDF-1.4\n1 0 obj\n"}, ["d/05b.txt", "PDF"], "d"),
    refuses(
        "a bad row inside",
        {"d/a.jsonl": ROWS["train"], "d/b.jsonl": ROWS["train"] + '{"text": \n'},
        ["d/b.jsonl", "line 13"],
        "d",
    ),
    refuses(
        "other columns inside",
        {"d/a.jsonl": json_lines({"body": t} for t in P), "d/b.jsonl": json_lines({"title": "T", "n": 1} for _ in P)},
        "d/b.jsonl|title",
        "d --text_column=body",
    ),
    reads(
        "a pattern of code",
        {"s/a.py": "print(1)\n" * 9, "s/deep/b.py": "print(2)\n" * 9, "s/c.txt": "no"},
        ["print(1)\n" * 9, "print(2)\n" * 9],
        "'s/**/*.py'",
    ),
    reads(
        "a pattern of tables", splits(train="one.jsonl", validation="two.jsonl"), [*TRAIN, *VALIDATION], "'d/*.jsonl'"
    ),
    refuses("a pattern of nothing", TEXTS, "no text|no such|no file", "'d/*.rst'"),
    refuses("a name that is not there", TEXTS, "no such file", "gone.txt"),
    reads(
        "names with signs of patterns",
        {"d/a[1].txt": P[0] * 3, "d/b*.txt": P[1] * 3, "d/c?.jsonl": ROWS["train"]},
        [P[0] * 3, P[1] * 3, *TRAIN],
        "d",
    ),
    reads("a file with signs of patterns", {"a[1].jsonl": ROWS["train"]}, TRAIN),
    reads(
        "several sources",
        {"a.txt": P[0] * 3, "b.jsonl": ROWS["train"], "d/c.md": P[1] * 3},
        [P[0] * 3, P[1] * 3, *TRAIN],
        "a.txt b.jsonl d",
    ),
]

LINKS = [
    reads("a link to the directory above", linked(("d/sub/up", "..")), P, "d"),
    reads("a link to the directory above, a pattern", linked(("d/sub/up", "..")), P, "'d/**/*.txt'"),
    reads("a link to itself", linked(("d/loop", ".")), P, "'d/**/*'"),
    reads("two links to each other", linked(("d/one/two", "../two"), ("d/two/one", "../one")), P, "'d/**/*.txt'"),
    reads("a link to a file beside", linked(("d/zz.txt", "00.txt")), P, "d"),
    reads("a link to nothing", linked(("d/zz.txt", "gone.txt")), P, "d"),
    reads("a link as the source", linked(("e", "d")), P, "e"),
]

TEXTS = {f"d/{i:02}.txt": t for i, t in enumerate(P)}
BESIDE = [
    refuses(
        "a record beside texts", TEXTS | {"d/meta.json": '{"version": 1, "n": 2}'}, ["meta.json", r"'d/\*.txt'"], "d"
    ),
    refuses("a record below texts", TEXTS | {"d/x/meta.json": "{}"}, ["meta.json", r"'d/\*\*/\*.txt'"], "d"),
    reads("texts without the record", TEXTS | {"d/meta.json": "{}"}, P, "'d/*.txt'"),
    refuses("a broken table beside texts", TEXTS | {"d/a.jsonl": "{oops\n{}\n"}, ["a.jsonl", r"'d/\*.txt'"], "d"),
]

CODE = {f"d/src/{i:02}.py": f"print('{t}')\n" for i, t in enumerate(P)}
NEWS = {f"d/{'autos' if i % 2 else 'med'}/{50000 + i}": f"Subject: x\n\n{t}\n" for i, t in enumerate(P)}
FRENCH = TEXTS | {"d/zz.txt": "Le garçon a mangé là où il était.".encode("cp1252")}
OTHERS = [
    refuses("a directory of programs", CODE, ["left out: 12 .py", r"'d/\*\*/\*\.py'"], "d"),
    reads("programs by a pattern", CODE, list(CODE.values()), "'d/**/*.py'"),
    refuses("files without a suffix", NEWS, ["no text there", r"'d/\*\*/\*'"], "d"),
    reads("files without a suffix by a pattern", NEWS, list(NEWS.values()), "'d/**/*'"),
    reads("files without a suffix, a level down", NEWS, list(NEWS.values()), "'d/*/*'"),
    reads("a record of the Hub beside", TEXTS | {"d/dataset_info.json": '{"description": "a b c"}'}, P, "d"),
    reads("the configuration of a model beside", TEXTS | {"d/config.json": '{"architectures": ["GPT2"]}'}, P, "d"),
    reads("requirements beside", TEXTS | {"d/requirements.txt": "numpy\ntorch\n"}, P, "d", says="requirements.txt"),
    refuses(
        "one file of cp1252 among others", FRENCH, ["cp1252", "if only this file is, iconv .* d/zz.txt > FILE"], "d"
    ),
]

THREE = splits(train="train.jsonl", validation="validation.jsonl", test="test.jsonl")
NAMED = [
    refuses(
        "splits of a pattern that the shell expanded",
        THREE,
        ["named after splits", r"'d/\*\.jsonl'", "--val="],
        "d/test.jsonl d/train.jsonl d/validation.jsonl",
    ),
    reads("that pattern in quotes", THREE, TRAIN + VALIDATION, "'d/*.jsonl'", says="test.jsonl is left out"),
    refuses(
        "directories of splits that the shell expanded",
        splits(train="train/a.jsonl", test="test/a.jsonl"),
        ["d/test, d/train: are named after splits", "name their directory, d,", "give them other names"],
        "d/test d/train",
    ),
    reads(
        "files of splits that are said to train",
        THREE,
        [f"test {text}" for text in P] + TRAIN + VALIDATION,
        "d/train.jsonl d/test.jsonl --val=d/validation.jsonl",
    ),
    reads(
        "train of two corpora",
        {f"{name}/train.txt": f"{name}: {text}" for name, text in zip("ab", P)},
        [f"{name}: {text}" for name, text in zip("ab", P)],
        "a/train.txt b/train.txt",
    ),
    refuses("a name that is empty", TEXTS, "no text given", "'' --documents=file"),
]

PACKAGES = {
    "d/node_modules/left/README.md": "# left\n",
    "d/venv/lib/python3.12/site-packages/right/LICENSE.txt": "As is.\n",
    "d/__MACOSX/00.txt": "resource\n",
    "d/~$letter.docx": b"\5Anna",
    "d/@eaDir/00.txt": "preview\n",
}
FOLDERS = [
    reads("packages and what programs keep beside texts", TEXTS | PACKAGES, P, "d", says="node_modules, site-packages"),
    reads("packages beside texts of a pattern", TEXTS | PACKAGES, P, "'d/**/*.txt'", says="site-packages"),
    refuses(
        "a directory of bins of nanoGPT",
        {"d/train.bin": b"\1\7\2\3" * 99, "d/val.bin": b"\1\7" * 9},
        ["no text there", "train --dataset=d;"],
        "d",
    ),
    reads("packages that are named", TEXTS | PACKAGES, ["# left\n"], "d/node_modules"),
    reads("packages that a pattern names", TEXTS | PACKAGES, ["# left\n"], "'d/node_modules/**/*.md'"),
]

CASES = [*FOLDERS, *NAMED, *OTHERS, *BESIDE, *SPLITS, *SPLITS_AMONG_WORDS, *KINDS, *LINKS]
