"""A folder of datatrove's tokens, written here by hand, is a dataset as the same texts prepared by `prepare` are."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from finetune.data import dataset as datasets
from finetune.data.new_tokenizers import train_tokenizer
from finetune.data.prepare import prepare
from finetune.data.tokenizer import from_directory

TEXTS = [f"Document {n}, with – more or less – {'many ' * (n % 7)}words 😀." for n in range(60)]


@pytest.fixture
def tokenizer(bpe_directory):
    return from_directory(bpe_directory("".join(TEXTS)))


def write(folder, name, documents, dtype="<u2", loss=None, metadata=None):
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    np.concatenate([*documents, np.zeros(0, int)]).astype(dtype).tofile(folder / name)
    np.cumsum([len(document) for document in documents]).astype("<u8").tofile(folder / f"{name}.index")
    if loss is not None:
        np.concatenate(loss).astype(np.uint8).tofile(folder / f"{name}.loss")
    if metadata is not None:
        (folder / f"{name}.metadata").write_text(f"{metadata}|2\n{sum(map(len, documents))}\n1")


def encoded(tokenizer, texts=TEXTS, end=True):
    return [[*tokenizer.encode(text).tolist(), *[tokenizer.eot] * end] for text in texts]


def same(one, other, masks=False):
    for name in ("train.bin", "val.bin", *["train_mask.bin", "val_mask.bin"] * masks):
        assert Path(one, name).read_bytes() == Path(other, name).read_bytes(), name
    splits = [json.loads(Path(place, "meta.json").read_text())["splits"] for place in (one, other)]
    assert splits[0] == splits[1]


@pytest.mark.parametrize("dtype, end", [("<u2", True), ("<u4", True), ("<u2", False)])
def test_its_bins_are_those_of_the_texts(tokenizer, command, dtype, end):
    write("ds", "00000_unshuffled.ds", encoded(tokenizer, TEXTS[:25], end), dtype)
    write("ds", "00001_unshuffled.ds", [], dtype)
    write("ds", "00002_unshuffled.ds", encoded(tokenizer, TEXTS[25:], end), dtype)
    Path("t.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    prepare(["t.jsonl"], "ours", tokenizer)
    code, out, error = command("prepare", "ds", "--out_dir=theirs", "--tokenizer=bpe")
    assert code == 0 and ("no document ended with <|endoftext|>, now each does" in out) is not end, error
    same("ours", "theirs")


def test_what_is_not_learned_stays_masked(tokenizer, command):
    rows = [{"prompt": f"Question {n}?", "completion": f"Answer {n}."} for n in range(40)]
    Path("t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepare(["t.jsonl"], "ours", tokenizer)
    data = {split: datasets.load("ours") for split in ("train", "val")}
    for split, found in data.items():
        ids, mask = found.open_bin(split), np.fromfile(found.mask(split), np.uint8)
        ends = found.document_ends(split)[:-1]
        write("ds", f"{split}.ds", np.split(ids, ends), loss=np.split(mask, ends))
    assert command("prepare", "ds", "--out_dir=theirs", "--tokenizer=bpe")[0] == 0
    found = datasets.load("theirs")
    total = [facts["splits"][split]["targets"] for facts in (data["train"].meta, found.meta) for split in data]
    assert sum(total[:2]) == sum(total[2:])
    ids, mask = found.open_bin("val"), np.fromfile(found.mask("val"), np.uint8)
    first = ids[: found.document_ends("val")[0]][mask[: found.document_ends("val")[0]] == 1]
    assert tokenizer.decode(first).startswith("Answer ")


def test_a_run_trains_on_it_by_its_name(tokenizer, command):
    write("data/mine", "000_all.ds", encoded(tokenizer), metadata=str(Path("bpe/tokenizer.json").absolute()))
    shape = ["--init_from=scratch", "--n_layer=1", "--n_head=1", "--n_embd=16", "--block_size=16", "--max_iters=2"]
    code, out, error = command("train", *shape, "--dataset=mine", "--out_dir=out", "--batch_size=2")
    assert code == 0, error
    place = next(Path("data").glob("mine-bpe-*"))
    prepare(["t.jsonl"] if write_texts() else [], "ours", tokenizer)
    same("ours", place)


def write_texts():
    return Path("t.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))


def cut(path, keep):
    Path(path).write_bytes(Path(path).read_bytes()[:keep])


FAULTS = {
    "cut": (lambda: cut("ds/a.ds", 100), r"a\.ds: 100 bytes are not the .* tokens of a\.ds\.index.*copy it again"),
    "no index": (lambda: Path("ds/a.ds.index").unlink(), r"a\.ds: there is no a\.ds\.index"),
    "cut index": (lambda: cut("ds/a.ds.index", 81), r"a\.ds\.index: is no list of 64-bit numbers"),
    "index": (lambda: np.array([5, 3], "<u8").tofile("ds/a.ds.index"), r"its document ends do not rise"),
    "loss": (lambda: Path("ds/a.ds.loss").write_bytes(b"\1"), r"a\.ds\.loss: 1 bytes for .* tokens"),
    "twice": (lambda: write("ds", "00000_unshuffled.ds", [[1]]) or write("ds", "00000_00000_doc_shuffled.ds", [[1]]),
              r"unshuffled\.ds: holds the same documents as 00000_00000_doc_shuffled"),
    "shuffled twice": (lambda: [write("ds", f"me_00000_00000_{step}_shuffled.ds", [[1]]) for step in ("doc", "chunk")],
              r"doc_shuffled\.ds: holds the same documents as me_00000_00000_chunk_shuffled"),
    "few": (lambda: write("ds", "a.ds", [[1]]), r"ds: 1 documents are too few"),
    "ids": (lambda: write("ds", "b.ds", [[60000]]), r"b\.ds: holds token 60,000, but .* ids; name its own"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_not_whole_is_refused_in_a_line(tokenizer, command, fault):
    write("ds", "a.ds", encoded(tokenizer))
    FAULTS[fault][0]()
    code, _, error = command("prepare", "ds", "--out_dir=theirs", "--tokenizer=bpe")
    assert code == 2 and len(error.splitlines()) == 1 and re.search(FAULTS[fault][1], error), error
    assert not Path("theirs").exists()


def test_an_unknown_tokenizer_is_refused(tokenizer, command):
    write("ds", "a.ds", encoded(tokenizer))
    for name in (None, "Unknown Tokenizer|2", "someone/model", "/gone/tokenizer.json"):
        write("ds", "a.ds", encoded(tokenizer), metadata=name)
        for verb, place in (("prepare", "ds"), ("train", "--dataset=ds")):
            code, _, error = command(verb, place, "--out_dir=theirs")
            assert code == 2 and len(error.splitlines()) == 1 and "tokenizer" in error, error
            assert "finetune prepare ds --tokenizer=DIR --out_dir=data/ds" in error
            assert ("nothing says which" in error) == (name is None or name.startswith("Unknown")), error
    write("ds", "b.ds", encoded(tokenizer), metadata="gpt2")
    code, _, error = command("prepare", "ds", "--out_dir=theirs")
    assert code == 2 and "ids of different tokenizers, /gone/tokenizer.json and gpt2" in error


def test_a_directory_is_no_file_of_tokens(tokenizer, command):
    Path("texts/notes.ds").mkdir(parents=True)
    for name, text in enumerate(TEXTS):
        Path(f"texts/notes.ds/{name}.txt").write_text(text)
    assert command("prepare", "texts", "--tokenizer=bpe", "--out_dir=d", "--doctor=false")[0] == 0


def test_options_without_effect_are_refused(tokenizer, command):
    write("ds", "a.ds", encoded(tokenizer), metadata=str(Path("bpe/tokenizer.json").absolute()))
    for flag in ("text_column=x", "documents=lines", "keep_split=d", "executor=local", "add_tokens=<|x|>"):
        code, _, error = command("prepare", "ds", f"--{flag}", "--out_dir=theirs")
        assert code == 2 and f"{flag.partition('=')[0]}: has no effect" in error, error
    train_tokenizer(["other words"] * 9, 280).save("other")
    code, _, error = command("prepare", "ds", "--tokenizer=other", "--out_dir=theirs")
    assert code == 2 and "and --tokenizer names" in error, error


def test_a_corpus_needs_the_packages_of_a_cluster(tokenizer, command, monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *rest: None if name == "datatrove" else find(name, *rest)
    )
    write_texts()
    code, _, error = command("prepare", "t.jsonl", "--executor=local", "--tokenizer=bpe", "--out_dir=d")
    assert code == 2 and error == "executor: needs the package datatrove: pip install 'finetune-gpt2[cluster]'\n"
    assert not Path("d").exists()
