"""What a report takes from the blocks of a run: whether two runs can be compared, and passes over the data."""

from pathlib import Path

import numpy as np
from conftest import write_bins

from finetune.tools.report import comparison
from finetune.tools.report.record import load
from finetune.training import trainer


def test_runs_are_compared_by_the_blocks_that_they_read(tiny):
    length = {"max_iters": 2, "eval_interval": 1, "log_interval": 9}
    twos = {"batch_size": 2, "gradient_accumulation_steps": 2}
    fours = {"batch_size": 4, "gradient_accumulation_steps": 1}
    trainer.train(tiny("a", **twos, **length, eval_iters=4))
    trainer.train(tiny("b", **fours, **length, eval_iters=2, learning_rate=1e-4))  # the same 8 blocks
    a, b = load("a"), load("b")
    assert comparison.winner([a, b]) is min(a, b, key=lambda run: run.best["val_loss"])
    trainer.train(tiny("c", **fours, **length, eval_iters=4))  # all of 13
    trainer.train(tiny("d", **twos, **length, eval_iters=None))
    c, d = load("c"), load("d")
    assert comparison.winner([a, c]) is None
    assert not comparison.facts([c, d])["notes"] and comparison.facts([a, c])["notes"]
    trainer.train(tiny("a", **fours, **(length | {"max_iters": 3}), eval_iters=4, init_from="resume"))
    assert comparison.winner([load("a"), c]) is None  # it still reads 8
    assert comparison.winner([load("a"), b]) is not None
    described = comparison.facts([load("a"), b])  # a was resumed, which is no difference of the recipes
    assert [run["recipe"]["init_from"] for run in described["runs"]] == ["scratch", "scratch"]


def test_passes_are_those_of_the_blocks(tiny):
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 50256, 3000)
    ids[rng.integers(0, 3000, 20)] = 50256
    write_bins(Path("data/d"), ids, ids)
    for split in ("train", "val"):
        (ids == 50256).astype(np.uint8).tofile(f"data/d/{split}_mask.bin")  # most blocks have no target
    setup, _ = trainer.train(tiny(dataset="data/d", max_iters=1, eval_iters=1))
    assert load("out").passes(5) == 5 * setup.recipe.blocks_per_update / setup.train.num_rows
