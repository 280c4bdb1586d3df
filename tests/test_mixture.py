"""Several datasets in one run."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from finetune import GPT
from finetune.data.batches import Blocks, ConcatBlocks
from finetune.data.prepare import prepare
from finetune.data.sampler import MixtureSampler

SHAPE = [
    "--n_layer=1",
    "--n_head=2",
    "--n_embd=16",
    "--block_size=32",
    "--batch_size=2",
    "--gradient_accumulation_steps=2",
    "--learning_rate=1e-3",
    "--dtype=float32",
    "--device=cpu",
]


def parts(sizes=(70, 23, 200), masked=1):
    made, first = [], 1
    for number, size in enumerate(sizes):
        ids = np.arange(first, first + size, dtype=np.uint16)
        made.append(Blocks.from_tokens(ids, 8, (ids % 3 > 0).astype(np.uint8) if number == masked else None))
        first += size
    return made


def test_rows_are_those_of_the_parts_in_any_order():
    alone = parts()
    mixture = ConcatBlocks(alone)
    expected = [torch.cat(column) for column in list(zip(*(part.batch(range(part.num_rows)) for part in alone)))[:2]]
    assert mixture.num_rows == sum(part.num_rows for part in alone) == len(expected[0])
    rows = np.random.default_rng(0).permutation(mixture.num_rows)[:17]
    for _ in ("from the cache", "from a device"):
        idx, targets, position_ids = mixture.batch(rows)
        assert torch.equal(idx, expected[0][rows]) and torch.equal(targets, expected[1][rows]) and position_ids is None
        mixture.cache_on_device("cpu")
    assert mixture.num_targets(rows) == (expected[1][rows] != -100).sum()


def test_weights_are_kept_exactly_and_parts_are_read_pass_by_pass():
    order = MixtureSampler([10, 300, 7], [1.0, 6.0, 3.0], rows_per_iteration=50, seed=5)
    drawn = [order.rows(i).tolist() for i in range(40)]
    stream = [row for rows in drawn for row in rows]
    owners = np.searchsorted([10, 310, 317], stream, side="right")
    for first in (0, 1000):
        assert np.bincount(owners[first : first + 1000]).tolist() == [100, 600, 300]
    assert len(set(owners[:40])) == 3  # mixed, not one after the other
    for part, (low, size) in enumerate([(0, 10), (10, 300), (310, 7)]):
        mine = [row - low for row, owner in zip(stream, owners) if owner == part]
        passes = [mine[i : i + size] for i in range(0, len(mine) - size + 1, size)]
        assert passes and all(sorted(one) == list(range(size)) for one in passes)
    fresh = MixtureSampler([10, 300, 7], [1.0, 6.0, 3.0], rows_per_iteration=50, seed=5)
    assert fresh.rows(33).tolist() == drawn[33]
    assert MixtureSampler([10, 300, 7], [1.0, 6.0, 3.0], 50, seed=6).rows(0).tolist() != drawn[0]
    finer = MixtureSampler([10, 300, 7], [1.0, 6.0, 3.0], rows_per_iteration=10, seed=5)
    assert [row for i in range(5) for row in finer.rows(i)] == drawn[0]


@pytest.fixture
def two(corpus):
    """Two datasets of one alphabet."""
    text = Path(corpus(words=2000)).read_text()
    alphabet = "".join(sorted(set(text)))
    Path("one.txt").write_text(alphabet + text)
    Path("two.txt").write_text(alphabet + text[::-1][:3000])
    for name in ("one", "two"):
        prepare([f"{name}.txt"], f"data/{name}", "char")
    return "data/one,data/two"


def evaluations(out_dir):
    return [
        event
        for event in map(json.loads, Path(out_dir, "metrics.jsonl").read_text().splitlines())
        if event["event"] == "eval"
    ]


def test_a_run_over_two_datasets_tells_the_loss_of_each(two, command):
    flags = ["--init_from=scratch", *SHAPE, "--max_iters=6", "--eval_interval=3"]
    code, out, err = command("train", f"--dataset={two}", *flags, "--dataset_weights=3,1")
    assert code == 0, err
    event = evaluations("out")[-1]
    for name in ("one", "two"):
        code, out, _ = command(
            "train", f"--dataset=data/{name}", "--init_from=out", "--eval_only=true", *SHAPE[3:], "--out_dir=unused"
        )
        assert float(out.split("val loss ")[1].split()[0]) == pytest.approx(event["val_losses"][name], abs=1e-4)
    low, high = sorted(event["val_losses"].values())
    assert low < event["val_loss"] < high
    code, _, err = command("train", f"--dataset={two}", *flags, "--init_from=resume", "--dataset_weights=1,1")
    assert code == 2 and "dataset_weights: 3,1 in the run, 1,1 now" in err
    code, out, err = command(
        "train", f"--dataset={two}", *flags, "--init_from=resume", "--max_iters=9", "--dataset_weights=3,1"
    )
    assert code == 0 and "(one " in out, err


def test_one_dataset_after_the_other(two, command):
    """Sequential finetuning: init_from a run takes its weights and nothing else."""
    first, second = two.split(",")
    flags = [*SHAPE, "--max_iters=4", "--eval_interval=4"]
    assert command("train", f"--dataset={first}", "--init_from=scratch", *flags, "--out_dir=first")[0] == 0
    code, out, err = command("train", f"--dataset={second}", "--init_from=first", *flags[3:], "--out_dir=second")
    assert code == 0, err
    assert "iter 0" in out
    before = command(
        "train", f"--dataset={second}", "--init_from=first", "--eval_only=true", *flags[3:], "--out_dir=unused"
    )[1]
    assert evaluations("second")[0]["val_loss"] == pytest.approx(
        float(before.split("val loss ")[1].split()[0]), abs=1e-4
    )


def test_datasets_of_two_tokenizers_are_refused(two, command):
    Path("three.txt").write_text("entirely other characters: xyz XYZ " * 100)
    prepare(["three.txt"], "data/three", "char")
    code, _, err = command("train", f"--dataset={two},data/three", "--init_from=scratch", *SHAPE)
    assert code == 2 and err.count("\n") == 1 and "data/one holds ids of" in err and "data/three of" in err


@pytest.mark.parametrize(
    "weights, message",
    [("1", "1 for 2 datasets"), ("1,x", "numbers separated by commas"), ("1,0", "above 0"), ("1,nan", "above 0")],
)
def test_weights_that_cannot_be_used_are_named(two, command, weights, message):
    code, _, err = command("train", f"--dataset={two}", "--init_from=scratch", *SHAPE, f"--dataset_weights={weights}")
    assert code == 2 and err.count("\n") == 1 and "dataset_weights" in err and message in err


def test_texts_can_share_an_alphabet(corpus, command):
    Path("one.txt").write_text(Path(corpus()).read_text() + "xyz")
    Path("two.txt").write_text(Path(corpus()).read_text())
    one = prepare(["one.txt"], "data/one", "char")
    code, _, error = command("prepare", "two.txt", "--out_dir=data/two", "--tokenizer=data/one", "--doctor=false")
    assert code == 0, error
    code, out, error = command("train", "--dataset=data/one,data/two", "--init_from=scratch", *SHAPE, "--max_iters=1")
    assert code == 0 and GPT.from_pretrained("out").config.vocab_size == one.tokenizer.vocab_size, error


def test_small_weights_get_their_share_too():
    order = MixtureSampler([5, 5, 5], [1.0, 2.0, 2997.0], rows_per_iteration=1000, seed=0)
    assert np.bincount(np.array(order.rows(7)) // 5).tolist() == [1, 1, 998]
    thirds = MixtureSampler([5, 5, 5], [1.0, 1.0, 1.0], rows_per_iteration=1000, seed=0)
    assert sorted(np.bincount(np.array(thirds.rows(0)) // 5).tolist()) == [333, 333, 334]


def test_datasets_of_the_same_name_are_told_apart(corpus, command):
    for place in ("a", "b"):
        prepare([corpus(words=1000)], f"{place}/mine", "char")
    code, out, error = command(
        "train", "--dataset=a/mine,b/mine", "--init_from=scratch", *SHAPE, "--max_iters=2", "--dataset_weights=1,3"
    )
    assert code == 0, error
    assert "(mine 1 " in out and ", mine 2 " in out and "mine: 75.0% of the blocks" in out
