"""Blocks predict every token once a pass, from a cache that follows the content of its bin; iterations read a fixed
order."""

import os
import resource

import forked
import numpy as np
import pyarrow as pa
import pytest
import torch
from conftest import write_bins

from finetune.common.errors import Failure, UsageError
from finetune.data import arrow_cache
from finetune.data import dataset as data_dataset
from finetune.data.batches import Blocks
from finetune.data.sampler import BlockSampler

datasets = pytest.importorskip("datasets")  # also an image without it must collect the tests


def blocks_of(directory, split="train", block_size=8, **choices):
    dataset = data_dataset.load(directory)
    stats = data_dataset.scan(dataset, split)
    return Blocks.from_arrow(arrow_cache.open_cache(dataset, split, block_size, stats, **choices), stats.tokens)


@pytest.mark.parametrize("tokens", [9, 10, 16, 17, 18, 100, 1000])
def test_every_token_is_predicted_once_a_pass(tmp_path, tokens):
    ids = np.random.default_rng(0).integers(0, 60000, tokens, dtype=np.uint16)
    blocks = blocks_of(write_bins(tmp_path, ids, ids), batch_bytes=100)  # many record batches
    idx, targets, _ = blocks.batch(range(blocks.num_rows))
    counted = targets != -100
    assert targets[counted].tolist() == ids[1:].tolist()
    assert idx[counted].tolist() == ids[:-1].tolist()
    assert int(counted.sum()) == blocks.num_targets(range(blocks.num_rows)) == tokens - 1
    assert idx.min() >= 0 and idx.dtype == torch.int64
    same = Blocks.from_tokens(ids, 8)
    assert all(torch.equal(a, b) for a, b in zip(same.batch(range(same.num_rows))[:2], (idx, targets)))


def test_the_cache_is_a_dataset_of_fixed_size_rows(tmp_path):
    ids = np.arange(100, dtype=np.uint16)
    dataset = data_dataset.load(write_bins(tmp_path, ids, ids))
    opened = arrow_cache.open_cache(dataset, "train", 8, data_dataset.scan(dataset, "train"))
    assert isinstance(opened, datasets.Dataset)
    assert opened[1]["input_ids"] == list(range(8, 17))
    assert len(opened) == 13


def test_the_cache_is_read_without_copying(tmp_path):
    ids = np.arange(1000, dtype=np.uint16)
    blocks = blocks_of(write_bins(tmp_path, ids, ids))
    assert all(not chunk.flags.owndata and not chunk.flags.writeable for chunk in blocks.columns["input_ids"])


def test_an_edited_bin_never_meets_an_old_cache(tmp_path):
    first = np.arange(100, dtype=np.uint16)
    blocks_of(write_bins(tmp_path, first, first))
    stat = (tmp_path / "train.bin").stat()
    write_bins(tmp_path, first[::-1], first)
    os.utime(tmp_path / "train.bin", ns=(stat.st_atime_ns, stat.st_mtime_ns))  # same size, same time
    assert blocks_of(tmp_path).batch([0])[0][0].tolist() == first[::-1][:8].tolist()


def forged(content, other_ids):
    """A cache of other ids, written by the libraries with the schema of a real one."""
    table = pa.ipc.open_stream(content).read_all()
    rows = [other_ids] * len(table)
    changed = table.set_column(0, table.schema.field(0), pa.array(rows, table.schema.field(0).type))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(changed)
    return sink.getvalue().to_pybytes()


DAMAGE = {
    "cut": lambda whole: whole[: len(whole) // 2],
    "without its hash": lambda whole: whole[:-32],
    "empty": lambda whole: b"",
    "one bit": lambda whole: whole[:-200] + bytes([whole[-200] ^ 4]) + whole[-199:],
    "the last bit": lambda whole: whole[:-1] + bytes([whole[-1] ^ 1]),
    "longer": lambda whole: whole + b"\0",
    "forged": lambda whole: forged(whole, [1] * 9),
    "forged, with the old hash": lambda whole: forged(whole, [1] * 9) + whole[-32:],
    "no data": lambda whole: b"\0" * len(whole),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_or_forged_cache_is_built_again(tmp_path, damage, capsys):
    ids = np.arange(1000, dtype=np.uint16)
    blocks_of(write_bins(tmp_path, ids, ids))
    (path,) = (tmp_path / ".arrow").glob("train*.arrow")
    whole = path.read_bytes()
    path.write_bytes(DAMAGE[damage](whole))
    blocks = blocks_of(tmp_path)
    assert blocks.num_rows == 125 and blocks.batch([3])[0][0].tolist() == ids[24:32].tolist()
    assert path.read_bytes() == whole
    assert "building it again" in capsys.readouterr().out


@pytest.mark.parametrize("size", [0, 100, 4096, -1])
def test_a_cache_that_is_cut_while_it_is_read_ends_with_a_line(tmp_path, size):
    """In a process of its own, which the kernel would kill."""
    ids = np.zeros(100_000, dtype=np.uint16)
    blocks = blocks_of(write_bins(tmp_path, ids, ids))
    (path,) = (tmp_path / ".arrow").glob("train*.arrow")
    child = os.fork()
    if not child:
        code = 9
        try:
            blocks.batch(range(10))
            os.truncate(path, size if size >= 0 else path.stat().st_size - 1)
            blocks.batch(range(blocks.num_rows))
        except Failure as error:
            code = error.code if "was cut from" in str(error) else 8
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1


def test_a_cache_that_is_replaced_or_removed_while_it_is_read_changes_nothing(tmp_path):
    ids = np.arange(1000, dtype=np.uint16)
    blocks = blocks_of(write_bins(tmp_path, ids, ids))
    (path,) = (tmp_path / ".arrow").glob("train*.arrow")
    (tmp_path / "other").write_bytes(b"short")
    os.replace(tmp_path / "other", path)
    assert blocks.batch([124])[0][0].tolist() == ids[-8:].tolist()
    path.unlink()
    assert blocks.batch([3])[0][0].tolist() == ids[24:32].tolist()


def test_a_read_only_directory_uses_the_cache_of_datasets(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    ids = np.arange(100, dtype=np.uint16)
    write_bins(tmp_path / "d", ids, ids)
    (tmp_path / "d" / ".arrow").write_text("a file where the directory would be")
    assert blocks_of(tmp_path / "d").num_rows == 13
    assert list((tmp_path / "hf" / "finetune").glob("train*.arrow"))


def _open_in_child(directory):
    return blocks_of(directory).batch([3])[0].tolist()


@pytest.mark.heavy
def test_processes_that_build_at_once_end_with_one_valid_cache(tmp_path):
    ids = np.random.default_rng(0).integers(0, 60000, 200_000, dtype=np.uint16)
    write_bins(tmp_path, ids, ids)
    with forked.pool(3) as pool:
        results = pool.map(_open_in_child, [tmp_path] * 3)
    assert results == [_open_in_child(tmp_path)] * 3
    assert [path.suffix for path in (tmp_path / ".arrow").iterdir()] == [".arrow"]


def _growth_by_checking(directory):
    """MB by which the peak of this process grows."""
    dataset = data_dataset.load(directory)
    contents = {split: data_dataset.scan(dataset, split) for split in ("train", "val")}
    arrow_cache.open_cache(dataset, "val", 1024, contents["val"])  # libraries are loaded
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    arrow_cache.open_cache(dataset, "train", 1024, contents["train"])
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def test_checking_takes_constant_memory(tmp_path):
    ids = np.zeros(64 << 20, dtype=np.uint16)
    dataset = data_dataset.load(write_bins(tmp_path, ids, ids[:2000]))
    del ids
    for split in ("train", "val"):
        arrow_cache.open_cache(dataset, split, 1024, data_dataset.scan(dataset, split))
    with forked.pool(1) as pool:  # the peak of this process is that of other tests
        assert pool.apply(_growth_by_checking, [tmp_path]) < 50


def test_building_takes_constant_memory(tmp_path):
    ids = np.zeros(16 << 20, dtype=np.uint16)
    dataset = data_dataset.load(write_bins(tmp_path, ids, ids[:2000]))
    contents = data_dataset.scan(dataset, "train")
    arrow_cache.open_cache(dataset, "val", 1024, data_dataset.scan(dataset, "val"))  # libraries are loaded
    del ids
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (tmp_path / "x").mkdir()
    arrow_cache.build_consecutive(dataset, "train", tmp_path / "x" / "a.arrow", 1024)
    assert contents.tokens == 16 << 20
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 50  # MB


def test_a_split_shorter_than_a_block_is_named(tmp_path):
    write_bins(tmp_path, range(100), range(8))
    with pytest.raises(
        UsageError, match=r"val.bin: 8 tokens, and a block of 8 needs 9; lower block_size or raise val_fraction"
    ):
        blocks_of(tmp_path, "val")


@pytest.mark.parametrize("num_rows, rows", [(10, 4), (7, 16), (1, 3), (64, 64)])
def test_order_visits_every_row_once_a_pass_and_depends_on_the_iteration_only(num_rows, rows):
    order = BlockSampler(num_rows, rows, seed=3)
    iterations = [order.rows(i).tolist() for i in range(40)]
    stream = [row for iteration in iterations for row in iteration]
    passes = [stream[i : i + num_rows] for i in range(0, len(stream) - num_rows + 1, num_rows)]
    assert all(sorted(one) == list(range(num_rows)) for one in passes)
    assert num_rows < 5 or passes[0] != passes[1]
    assert BlockSampler(num_rows, rows, seed=3).rows(25).tolist() == iterations[25]  # without the ones before
    assert num_rows < 5 or BlockSampler(num_rows, rows, seed=4).rows(0).tolist() != iterations[0]


def test_finding_a_late_iteration_costs_no_more_than_an_early_one():
    import time

    def seconds(iteration):
        order = BlockSampler(1000, 64, seed=0)
        began = time.process_time()
        order.rows(iteration)
        return time.process_time() - began

    assert min(seconds(1_000_000) for _ in range(5)) < 10 * min(seconds(0) for _ in range(5)) + 1e-3


def test_a_split_on_the_device_gives_the_same_batches(tmp_path):
    for tokens in (65, 70, 72, 73):
        blocks = Blocks.from_tokens(np.arange(1, tokens + 1, dtype=np.uint16), 8)
        rows = [blocks.num_rows - 1, 0, 3, blocks.num_rows - 1]
        expected = blocks.batch(rows)[:2]
        blocks.cache_on_device("cpu")
        assert all(
            torch.equal(one, other) and one.dtype == other.dtype for one, other in zip(blocks.batch(rows)[:2], expected)
        )
