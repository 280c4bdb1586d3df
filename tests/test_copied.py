"""What was copied from the training data is found to the last token, and prevented."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from finetune.common.errors import UsageError
from finetune.data import dataset as datasets
from finetune.data import verbatim
from finetune.data.dataset import Dataset
from finetune.data.prepare import prepare


def dataset_of(ids, directory="d"):
    Path(directory).mkdir(exist_ok=True)
    np.asarray(ids, dtype=np.uint16).tofile(f"{directory}/train.bin")
    return Dataset(Path(directory), {}, None)


def stands_in(run, train):
    """Plainly: whether a run of ids stands in others, as bytes in bytes."""
    run, train = (np.asarray(ids, dtype=">u2").tobytes() for ids in (run, train))
    at = train.find(run)
    while at % 2 and at > 0:
        at = train.find(run, at + 1)
    return at >= 0


def plainly(train, samples, n):
    """(share of n-grams copied, longest span) by trying everything."""
    grams = [sample[i : i + n] for sample in samples for i in range(len(sample) - n + 1)]
    share = np.mean([stands_in(gram, train) for gram in grams]) if grams else 0.0
    longest = 0
    for sample in samples:
        for i in range(len(sample)):
            while i + longest < len(sample) and stands_in(sample[i : i + longest + 1], train):
                longest += 1
    return share, longest


@pytest.mark.parametrize("seed", range(40))
def test_the_report_is_what_trying_everything_finds(seed):
    rng = np.random.default_rng(seed)
    V, n = rng.choice([2, 5, 300]), int(rng.choice([1, 3, 8]))
    train = rng.integers(0, V, rng.integers(1, 400))
    samples = [rng.integers(0, V, rng.integers(0, 60)) for _ in range(rng.integers(0, 4))]
    for sample in samples:  # a span of the data in each
        first = rng.integers(0, len(train))
        span = train[first : first + rng.integers(1, 40)][: max(0, len(sample) - 3)]
        sample[2 : 2 + len(span)] = span
    # many chunks, and spans over their borders
    found = verbatim.report_copies(dataset_of(train), samples, n, chunk_tokens=37, max_pairs=2)
    share, longest = plainly(train, samples, n)
    assert found["copied"] == pytest.approx(share) and found["longest"] == longest and found["ngram"] == n
    if longest:
        span = train[found["offset"] : found["offset"] + longest]
        assert len(span) == longest and any(stands_in(span, sample) for sample in samples)
    else:
        assert found["offset"] is None


def test_the_longest_span_is_told_as_text(corpus):
    dataset = prepare([corpus()], "data", "char")
    train = np.fromfile(dataset.bin("train"), dtype=np.uint16)
    sample = np.concatenate([train[:5], train[700:760], train[:5]])
    found = verbatim.report_copies(dataset, [sample])
    assert found["text"] in dataset.tokenizer.decode(sample) and len(found["text"]) == found["longest"] >= 60
    assert dataset.tokenizer.decode(train)[found["offset"] :].startswith(found["text"])


@pytest.mark.parametrize("length", [1, 2, 3, 8, 12])
def test_followers_are_what_follows(length):
    rng = np.random.default_rng(length)
    train = np.tile(rng.integers(0, 3, 150), 2)
    train[-30:] = 2  # many equal places
    followers = verbatim.CopyBlocker(dataset_of(train), length)
    for end in range(len(train) + 1):
        before = train[max(0, end - length) : end].tolist()
        follow = {
            int(train[i + length]) for i in range(len(train) - length) if train[i : i + length].tolist() == before
        }
        assert followers(train[:end].tolist()).tolist() == (sorted(follow) if end >= length else [])
    assert followers([7] * length).tolist() == []


def test_data_shorter_than_a_span_has_no_followers():
    assert verbatim.CopyBlocker(dataset_of([1, 2]), 5)([1, 2, 1, 2, 1]).tolist() == []


@pytest.mark.heavy
def test_a_model_that_learned_by_heart_is_found_out_and_can_be_kept_from_it(corpus, tiny_run, command):
    text = corpus(words=160)  # 1 KB, four blocks
    prepare([text], "data/mine", "char", val=[text])  # best is what knows it best
    shape = ["--n_embd=64", "--block_size=256", "--batch_size=4", "--gradient_accumulation_steps=1", "--tokenizer=auto"]
    tiny_run("out", *shape, "--max_iters=250", "--eval_interval=250", text="data/mine")
    tiny_run("untrained", *shape, "--max_iters=0", text="data/mine")
    dataset = datasets.load("data/mine")
    train = dataset.tokenizer.decode(np.fromfile(dataset.bin("train"), dtype=np.uint16))

    def write(out_dir, *flags):
        """(report, texts) of eight samples that go on from where the data begins, within the context."""
        out = f"{out_dir}{len(flags)}.jsonl"
        flags = [
            f"--out_dir={out_dir}",
            f"--start={train[:16]}",
            "--num_samples=8",
            "--max_new_tokens=240",
            "--dtype=float32",
            *flags,
        ]
        code, _, error = command("sample", *flags, f"--out={out}")
        assert code == 0, error
        rows = [json.loads(line) for line in Path(out).read_text().splitlines()]
        return verbatim.report_copies(dataset, [row["tokens"] for row in rows]), [row["text"] for row in rows]

    learned, _ = write("out")
    assert learned["copied"] > 0.9 and learned["longest"] > 100 and learned["text"] in train
    untrained, _ = write("untrained")
    assert untrained["copied"] < 0.01
    for flags in (["--max_copy=12"], ["--max_copy=12", "--temperature=0"]):
        kept, texts = write("out", *flags)
        spans = {n: [text[i : i + n] for text in texts for i in range(len(text) - n + 1)] for n in (12, 13)}
        assert not any(span in train for span in spans[13])
        assert any(span in train for span in spans[12]), "it would have gone on"
        assert kept["longest"] == 12 and all(len(text) == 240 for text in texts)


def test_white_space_is_no_copy():
    Path("t.txt").write_text(("one line of text" + " " * 40 + "\n\n\n") * 50 + "the end of it all")
    data = prepare(["t.txt"], "d", "char")
    sample = data.tokenizer.encode(" " * 30 + "\n\n the end of " + " " * 20)
    found = verbatim.report_copies(data, [sample], n=8)
    assert not (found["text"] or "x").isspace() and found["longest"] < 20
    blank = verbatim.report_copies(data, [data.tokenizer.encode(" " * 30)], n=8)
    assert blank["copied"] == 0 and blank["longest"] == 0
    few = verbatim.report_copies(data, [data.tokenizer.encode("line of text" + " " * 5)], n=8)
    assert few["copied"] == 1  # within a sentence white space counts


def test_data_too_large_for_the_index_name_the_max_copy_that_fits():
    data = dataset_of([])
    os.truncate("d/train.bin", 2 * 3 * (1 << 32))  # a sparse file
    for length in (1, 4, 5):
        with pytest.raises(UsageError, match="tokens, of which an index is too large; --max_copy=6 or more"):
            verbatim.CopyBlocker(data, length)
