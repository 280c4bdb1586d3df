"""Data prepared on top of data: an earlier split is kept, and the data of a run are not replaced unseen."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import write_bins

from finetune.common.errors import UsageError
from finetune.data import dataset as datasets
from finetune.data import run_notes
from finetune.data.documents import Chunk
from finetune.data.kept_split import hash_documents
from finetune.data.prepare import TokenizeOptions, prepare, summary

EOT = "<|endoftext|>"


def write_rows(name, rows):
    Path(name).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return name


def texts(numbers):
    rng = random.Random(1)
    words = ["".join(rng.choices("abcdeéß漢😀", k=1 + i % 6)) for i in range(60)]
    every = [f"{i}: " + " ".join(rng.choices(words, k=5 + i % 20)) for i in range(max(numbers) + 1)]
    return [every[i] for i in numbers]


def documents_of(dataset, split):
    """The texts of a split, decoded without the package's reader."""
    ids = np.fromfile(dataset.bin(split), "<u2")
    path = dataset.documents(split)
    ends = np.fromfile(path, "<u8").astype(int) if path else np.flatnonzero(ids == dataset.eot) + 1
    return [dataset.tokenizer.decode(part).replace(EOT, "") for part in np.split(ids, ends)[:-1]]


def prepare_on(source, out_dir, tokenizer, keep, **options):
    return prepare([source], out_dir, tokenizer, options=TokenizeOptions(keep_split=keep), **options)


def test_new_rows_around_the_old_leave_each_old_document_in_its_split(bpe_directory):
    old, everything = texts(range(0, 700)), texts(range(0, 1000))
    random.Random(2).shuffle(everything)
    tokenizer = str(bpe_directory("".join(old)))
    before = prepare([write_rows("old.jsonl", [{"text": text} for text in old])], "old", tokenizer)
    source = write_rows("new.jsonl", [{"text": text} for text in everything])
    afresh, after = prepare([source], "afresh", tokenizer), prepare_on(source, "new", tokenizer, "old")
    trained, held_out = set(documents_of(before, "train")), set(documents_of(before, "val"))
    assert len(trained & set(documents_of(afresh, "val"))) > 50  # of 100: this is what keep_split is for
    train, val = documents_of(after, "train"), documents_of(after, "val")
    assert not trained & set(val) and not held_out & set(train)
    assert held_out < set(val) and trained < set(train)
    assert len(val) == 70 + 30 and len(train) == 900
    for split in (train, val):
        assert split == [text for text in everything if text in set(split)]  # the order of the source
    facts = {"directory": "old", "val": 70, "train": 630, "new": 300, "missing": 0}
    assert after.meta["keep_split"] == facts and after.meta["split_by"] == "documents"
    assert "split kept from old: 70 documents stay in val, 630 in train; 300 are new" in summary(after)
    again = prepare_on(source, "again", tokenizer, "new", seed=5)
    assert [again.bin(split).read_bytes() for split in ("train", "val")] == [
        after.bin(split).read_bytes() for split in ("train", "val")
    ]


def conversation(number):
    turns = [
        {"role": "user", "content": f"Question {number}?"},
        {"role": "assistant", "content": f"Answer {number}. " + "so " * (number % 9)},
    ]
    return {"messages": turns * (1 + number % 3)}


@pytest.mark.parametrize(
    "row",
    [conversation, lambda i: {"prompt": f"Q{i}", "completion": f"A{i}"}, lambda i: {"text": f"t {i} " + EOT * (i % 3)}],
    ids=["conversations", "answers", "documents that spell end-of-text"],
)
def test_every_kind_of_document_is_recognised(row, bpe_directory):
    tokenizer = str(bpe_directory("Question Answer so 0123456789 " * 30))
    before = prepare([write_rows("old.jsonl", map(row, range(60)))], "old", tokenizer)
    after = prepare_on(write_rows("new.jsonl", map(row, range(90, -1, -1))), "new", tokenizer, "old")
    assert {name: after.meta["keep_split"][name] for name in ("val", "train", "new")} == {
        "val": 6,
        "train": 54,
        "new": 31,
    }
    for split, other in (("train", "val"), ("val", "train")):
        assert not set(documents_of(before, split)) & set(documents_of(after, other))


def save_tokenizer(kind, text):
    """A tokenizer that does not give every text back, or that has added tokens and a chat template."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    special = ["[UNK]", "[SEP]", "[PAD]", "<|im_start|>", "<|im_end|>"]
    tokenizer.train_from_iterator([text], trainers.WordPieceTrainer(vocab_size=300, special_tokens=special))
    if kind == "byte-level with a chat template":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
        tokenizer.train_from_iterator([text], trainer)
    Path("own").mkdir()
    tokenizer.save("own/tokenizer.json")
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}"
        "\n{% endfor %}"
    )
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "chat_template": template}
    if kind == "word pieces":
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    Path("own/tokenizer_config.json").write_text(json.dumps(config))
    return "own"


@pytest.mark.parametrize("kind", ["word pieces", "byte-level with a chat template"])
@pytest.mark.parametrize("row", [lambda i: {"text": f"Naïve  TEXT {i} {'and ' * (i % 7)}"}, lambda i: conversation(i)])
def test_documents_are_compared_by_ids_where_a_tokenizer_loses_text(kind, row):
    tokenizer = save_tokenizer(kind, "Naïve text and user Question Answer so " + " ".join(map(str, range(100))))
    before = prepare([write_rows("old.jsonl", map(row, range(60)))], "old", tokenizer)
    after = prepare_on(write_rows("new.jsonl", map(row, range(90, -1, -1))), "new", tokenizer, "old")
    facts = {"directory": "old", "val": 6, "train": 54, "new": 31, "missing": 0}
    assert after.meta["keep_split"] == facts and before.tokenizer.kind == "hf"


def test_another_tokenizer_and_the_directory_itself(bpe_directory):
    rows = [{"text": text} for text in texts(range(80))]
    before = prepare([write_rows("old.jsonl", rows[:50])], "data", "char", val_fraction=0.2)
    held_out = set(documents_of(before, "val"))
    source = write_rows("new.jsonl", rows)
    bpe = prepare_on(source, "words", str(bpe_directory("".join(row["text"] for row in rows))), "data")
    assert held_out < set(documents_of(bpe, "val")) and len(documents_of(bpe, "val")) == 13
    again = prepare_on(source, "data", "char", "data")
    assert held_out < set(documents_of(again, "val"))


def test_what_left_the_data_is_counted_and_few_new_documents_train():
    rows = [{"text": text} for text in texts(range(100))]
    before = prepare([write_rows("old.jsonl", rows[:90])], "old", "char")
    held_out = documents_of(before, "val")
    left = [row for row in rows[:94] if row["text"] not in held_out[:2]]
    after = prepare_on(write_rows("new.jsonl", left), "new", "char", "old")
    assert after.meta["keep_split"] == {"directory": "old", "val": 7, "train": 81, "new": 4, "missing": 2}
    assert "2 validation documents of old are not in the data any more" in summary(after)
    assert documents_of(after, "val") == held_out[2:]


def test_a_document_of_both_splits_is_validation_and_equal_new_ones_stay_together():
    rows = [{"text": text} for text in texts(range(60))]
    prepare([write_rows("old.jsonl", rows[:20])], "old", "char", val=[write_rows("val.jsonl", rows[15:20])])
    after = prepare_on(write_rows("new.jsonl", rows[:20] + rows[20:] * 3), "new", "char", "old", val_fraction=0.5)
    train, val = documents_of(after, "train"), documents_of(after, "val")
    assert {row["text"] for row in rows[15:20]} < set(val)
    assert not set(train) & set(val) and len(train) == 15 + 60 and len(val) == 5 + 60


def refused(prepared, source, message, **options):
    with pytest.raises(UsageError, match=message) as error:
        prepare_on(source, "new", "char", prepared, **options)
    assert len(str(error.value).splitlines()) == 1 and not Path("new").exists()


def test_what_cannot_be_kept_is_refused_in_words(corpus):
    rows = [{"text": text} for text in texts(range(60))]
    source = write_rows("old.jsonl", rows[:30])
    prepare([source], "old", "char")
    prepare([corpus()], "running", "char")
    prepare([write_rows("few.jsonl", rows[:3])], "few", "char")
    refused("running", source, "running was split at a character")
    refused("few", source, "few was split at a character")
    refused("old", corpus(), "corpus.txt is one running text")
    refused("old", write_rows("other.jsonl", rows[30:]), "none of the 30 documents is in old")
    refused("nowhere", source, "nowhere.train.bin: there is no such file")
    refused("old", source, "keep_split: cannot go with a val", val=[source])
    held_out = documents_of(datasets.load("old"), "val")
    refused("old", write_rows("x.jsonl", [row for row in rows[:30] if row["text"] not in held_out]), "val.bin would be")


def test_the_command_takes_the_option(command):
    rows = [{"text": text} for text in texts(range(60))]
    write_rows("old.jsonl", rows[:40]), write_rows("new.jsonl", rows)
    assert command("prepare", "old.jsonl", "--out_dir=old", "--tokenizer=char", "--doctor=false")[0] == 0
    flags = ("new.jsonl", "--out_dir=new", "--tokenizer=char", "--doctor=false", "--keep_split=old")
    code, out, _ = command("prepare", *flags)
    assert code == 0 and "split kept from old: 4 documents stay in val, 36 in train; 20 are new" in out
    code, _, error = command("prepare", *flags, "--val=old.jsonl")
    assert code == 2 and error.strip() == "--keep_split: cannot go with --val, which decides what val holds"


@pytest.mark.parametrize("size", [1, 2, 5, 13, 100])
def test_a_hash_does_not_depend_on_the_chunks(size):
    found = ["a" * 40, EOT + "b" + EOT, f"<|endo{EOT}ftext|>x<|end", "\ud800 c", ""]
    expected = hash_documents([Chunk(text, is_last=True) for text in found], EOT)
    pieces = [[text[i : i + size] for i in range(0, len(text), size)] or [""] for text in found]
    chunks = [Chunk(piece, is_last=i == len(each) - 1) for each in pieces for i, piece in enumerate(each)]
    assert hash_documents(chunks, EOT).tolist() == expected.tolist() and len(set(expected.tolist())) == len(found)


def test_a_share_of_tokens_unlike_that_of_the_documents_is_said():
    rows = [{"text": "x" * (900 if i < 2 else 100)} for i in range(20)]
    said = []
    for seed in range(30):
        dataset = prepare([write_rows("rows.jsonl", rows)], "data", "char", seed=seed)
        share = dataset.num_tokens("val") / sum(map(dataset.num_tokens, ("train", "val")))
        line = f"val is 10.0% of the documents and {share:.1%} of the tokens"
        assert (line in summary(dataset)) == (share >= 0.13 or share <= 0.1 / 1.3)
        said.append(line in summary(dataset))
    assert any(said)


# the data of a run


def train(command, data, out_dir, *flags):
    shape = "--init_from=scratch --n_layer=1 --n_head=1 --n_embd=8 --block_size=16 --batch_size=2 --max_iters=2"
    code, _, error = command(
        "train", *shape.split(), "--num_samples=0", f"--dataset={data}", f"--out_dir={out_dir}", *flags
    )
    assert code == 0, error


def test_data_that_a_run_uses_are_not_replaced_unseen(command):
    rows = [{"text": text} for text in texts(range(60))]
    write_rows("old.jsonl", rows[:40]), write_rows("new.jsonl", rows)

    def run_prepare(source, *flags):
        flags = ("--out_dir=data/d", "--tokenizer=char", "--doctor=false", *flags)
        before = {path.name: path.read_bytes() for path in Path("data").rglob("*") if path.is_file()}
        code, out, error = command("prepare", source, *flags)
        after = {path.name: path.read_bytes() for path in Path("data").rglob("*") if path.is_file()}
        return code, out, error, before == after

    assert run_prepare("old.jsonl")[0] == 0 and run_prepare("new.jsonl")[0] == 0  # no run yet
    train(command, "data/d", "out")
    said = "out_dir data/d: the run out was trained on what it holds, and this would be other data"
    for source, flags in (("old.jsonl", ()), ("new.jsonl", ("--seed=5",)), ("new.jsonl", ("--val_fraction=0.3",))):
        code, _, error, is_unchanged = run_prepare(source, *flags)
        assert code == 2 and error.startswith(said) and len(error.splitlines()) == 1 and is_unchanged
        assert "another --out_dir" in error and "--overwrite=true" in error
    code, out, _, _ = run_prepare("new.jsonl")
    assert code == 0 and "the same data as before: the run out was trained on them" in out
    Path("new.jsonl").rename("renamed.jsonl")
    assert run_prepare("renamed.jsonl")[0] == 0
    assert command("eval", "--out_dir=out")[0] == 0
    code, out, _, _ = run_prepare("old.jsonl", "--overwrite=true")
    assert code == 0 and "same data" not in out
    code, _, error = command("eval", "--out_dir=out")
    assert code == 2 and "data/d changed since out was trained on it (its train.bin)" in error
    assert run_prepare("renamed.jsonl")[0] == 0  # the run does not use what is there now


def test_a_run_that_is_gone_or_has_other_data_now_does_not_count(command):
    rows = [{"text": text} for text in texts(range(60))]
    write_rows("old.jsonl", rows[:40]), write_rows("new.jsonl", rows)
    flags = ("--tokenizer=char", "--doctor=false")
    assert command("prepare", "old.jsonl", "--out_dir=data/d", *flags)[0] == 0
    assert command("prepare", "new.jsonl", "--out_dir=data/e", *flags)[0] == 0
    train(command, "d", "one"), train(command, "d", "two")
    assert Path("data/d/.runs").read_text().splitlines() == ["../../one", "../../two"]
    shutil.rmtree("one")
    assert "the run two" in command("prepare", "new.jsonl", "--out_dir=data/d", *flags)[2]
    train(command, "e", "two", "--overwrite=true")
    assert command("prepare", "new.jsonl", "--out_dir=data/d", *flags)[0] == 0
    assert command("prepare", "old.jsonl", "--out_dir=data/e", *flags)[0] == 2


def test_other_data_of_the_same_letters_are_measured_and_that_is_said(command):
    rows = [{"text": text} for text in texts(range(60))]
    flags = ("--tokenizer=char", "--doctor=false", "--out_dir=data/d")
    assert command("prepare", write_rows("a.jsonl", rows), *flags)[0] == 0
    train(command, "d", "out")
    assert command("prepare", write_rows("a.jsonl", rows[::-1]), *flags, "--overwrite=true")[0] == 0
    line = "data/d: the data changed since out was trained on them"
    code, out, error = command("eval", "--out_dir=out", "--dataset=data/d")
    assert code == 0 and line in out, error
    assert command("prepare", "a.jsonl", "--out_dir=data/other", *flags[:2])[0] == 0
    code, out, error = command("eval", "--out_dir=out", "--dataset=data/other")
    assert code == 0 and line not in out, error


def test_bins_alone_and_a_directory_that_cannot_be_written(command, monkeypatch):
    directory = write_bins(Path("data/bare"), np.arange(99) % 7, np.arange(40) % 7)
    train(command, "bare", "out")
    write_rows("old.jsonl", [{"text": text} for text in texts(range(60))])
    code, _, error = command("prepare", "old.jsonl", "--out_dir=data/bare", "--tokenizer=char")
    assert code == 2 and "the run out was trained on what it holds" in error and not (directory / "meta.json").exists()
    (directory / ".runs").unlink()
    (directory / ".runs").mkdir()  # also root cannot write that
    train(command, "bare", "second")
    assert list(run_notes.runs_on(directory)) == []
