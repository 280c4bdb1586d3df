"""Documents packed into blocks: no token is lost, and none attends to another document."""

import json
from pathlib import Path

import forked
import numpy as np
import pytest
import torch
from test_chat import examples, tokenizer, write  # noqa: F401  a fixture
from torch.nn import functional as F

from finetune import GPT
from finetune.common.errors import Failure, UsageError
from finetune.data import arrow_cache, packing
from finetune.data import dataset as datasets
from finetune.data.batches import Blocks
from finetune.data.prepare import TokenizeOptions, prepare
from finetune.gpt import attention
from finetune.runtime import attention_check
from finetune.runtime.device import Device


def isolated(dataset, split="train", block_size=32):
    contents = datasets.scan(dataset, split)
    return Blocks.from_arrow(
        arrow_cache.open_cache(dataset, split, block_size, contents, isolated=True), contents.tokens
    )


def conversations(count=40):
    """Of one to four turns, so that an end-of-text does not always end a document."""
    return [
        {
            "messages": [
                {"role": role, "content": f"{role[0]} {i} {turn}"}
                for turn in range(1 + i % 4)
                for role in ("user", "assistant")
            ]
        }
        for i in range(count)
    ]


@pytest.mark.parametrize("group_size", [7, packing.GROUP_SIZE])
def test_pieces_hold_every_token_once_and_fill_their_rows(group_size):
    rng, room = np.random.default_rng(0), 33
    lengths = np.concatenate([rng.integers(1, 12, 3000), rng.integers(1, 200, 100), [1, 2, 32, 33, 34, 65, 66]])
    ends = np.cumsum(lengths)
    first, length, row = packing.pack(ends, room, group_size=group_size)
    predicted = sorted(np.concatenate([np.arange(a + 1, a + n) for a, n in zip(first, length)]).tolist())
    begins = set((ends - lengths).tolist())
    assert predicted == [token for token in range(ends[-1]) if token not in begins]
    assert all(np.bincount(row, weights=length) <= room) and (np.diff(row) >= 0).all() and (np.diff(row) <= 1).all()
    whole = {(a, n) for a, n in zip(first.tolist(), length.tolist())}
    documents = zip(ends.tolist(), lengths.tolist())
    assert all((end - n, n) in whole for end, n in documents if 1 < n <= room), "a document that fits is cut"
    if group_size > 7:
        assert row[-1] + 1 <= 1.01 * length.sum() / room + 1


def test_blocks_of_documents_are_targets_without_first_tokens(tokenizer):  # noqa: F811
    dataset = prepare([write(conversations())], "data", tokenizer)
    ends = dataset.document_ends("train")
    assert len(ends) == dataset.meta["splits"]["train"]["documents"] == 36
    ids, mask = np.fromfile(dataset.bin("train"), "<u2"), np.fromfile(dataset.mask("train"), np.uint8)
    assert (ids == dataset.tokenizer.eot).sum() > len(ends)  # turns end with it too
    blocks = isolated(dataset, block_size=64)
    idx, targets, position_ids = blocks.batch(range(blocks.num_rows))
    found = sorted(
        row[begin:end].tolist()
        for row, places in zip(idx, position_ids)
        for begin, end in spans(places)
        if row[begin:end].any()
    )
    wanted = [part[: 64 * (len(part) // 64) or None].tolist() for part in np.split(ids, ends)[:-1] if len(part) < 64]
    assert all(part[:-1] in found or part in found for part in wanted)
    # a document begins with a prompt, which is no target
    assert (targets != -100).sum() == mask.sum() == blocks.num_targets(range(blocks.num_rows))
    blocks.cache_on_device("cpu")
    for one, other in zip(blocks.batch([3, 0, 3]), (idx, targets, position_ids)):
        assert torch.equal(one, other[[3, 0, 3]]) and one.dtype == other.dtype


def spans(position_ids):
    begins = [*torch.nonzero(position_ids == 0).flatten().tolist(), len(position_ids)]
    return list(zip(begins, begins[1:]))


def test_packed_losses_are_those_of_each_document_by_itself(tokenizer, hf_model):  # noqa: F811
    dataset = prepare([write(conversations())], "data", tokenizer)
    hf = hf_model(vocab_size=dataset.tokenizer.vocab_size, n_positions=64)
    blocks = isolated(dataset, block_size=64)
    ours, count = GPT.from_hf(hf)(*blocks.batch(range(blocks.num_rows)))
    ids, mask = np.fromfile(dataset.bin("train"), "<u2").astype(np.int64), np.fromfile(dataset.mask("train"), np.uint8)
    summed, begin = 0.0, 0
    for end in dataset.document_ends("train"):
        for first in range(begin, end - 1, 64):  # one that is too long in pieces
            part = torch.from_numpy(ids[first : min(end, first + 65)])[None]
            labels = part.masked_fill(torch.from_numpy(mask[first : first + part.size(1)])[None] == 0, -100)
            logits = hf(part[:, :-1]).logits[0].float()
            summed += F.cross_entropy(logits, labels[0, 1:], ignore_index=-100, reduction="sum").item()
        begin = end
    assert count.item() == mask.sum()
    assert ours.item() / count.item() == pytest.approx(summed / mask.sum(), abs=1e-5)


def test_positions_of_a_block_above_65536_tokens_do_not_begin_again():
    Path("texts.jsonl").write_text("".join(json.dumps({"text": "ab" * n}) + "\n" for n in (35_000, 9, 9)))
    data, T = prepare(["texts.jsonl"], "data", "char", val_fraction=0.3), 69_999
    positions = isolated(data, block_size=T).batch([0], torch.device("cpu"))[2]
    assert positions[0].tolist() == list(range(T))


def packed(rows=2, T=32, seed=0):
    """Random ids (rows, T) and positions of documents of random lengths."""
    rng = np.random.default_rng(seed)
    positions = np.stack([np.concatenate([np.arange(n) for n in rng.integers(1, 12, T)])[:T] for _ in range(rows)])
    return torch.from_numpy(rng.integers(0, 101, (rows, T))), torch.from_numpy(positions)


def test_logits_are_those_of_transformers_for_packed_sequences(hf_model):
    hf = hf_model()
    idx, positions = packed(1)
    theirs = hf(input_ids=idx, position_ids=positions, use_cache=False).logits
    x = GPT.from_hf(hf)
    torch.testing.assert_close(x.head(x.hidden(idx, position_ids=positions)), theirs, atol=1e-5, rtol=1e-5)
    assert (theirs - hf(input_ids=idx).logits).abs().max() > 0.1


@pytest.mark.parametrize("way", ["blocks", "bfloat16", "mask", "recomputed", "probabilities computed again", "dropout"])
def test_no_gradient_crosses_from_one_document_to_another(hf_model, monkeypatch, way):
    model = GPT.from_hf(hf_model(n_positions=160)).train()
    T, border = 150, 70  # query blocks are 128
    monkeypatch.setattr(attention, "MAX_SAVED", 0 if way == "probabilities computed again" else attention.MAX_SAVED)
    model.gradient_checkpointing = way == "recomputed"
    if way == "dropout":
        model.set_dropout(0.1)
    if way == "mask":  # as on a GPU
        blockwise = attention.BlockwiseAttention.apply
        monkeypatch.setattr(attention.BlockwiseAttention, "apply", lambda *_: pytest.fail(f"{blockwise} is for CPUs"))

        def masked(q, k, v, starts, *more):
            return F.scaled_dot_product_attention(q, k, v, attention.within_documents(starts))

        monkeypatch.setattr(attention, "causal_attention", masked)
    idx, targets = torch.randint(101, (2, 1, T), generator=torch.Generator().manual_seed(0))
    positions = torch.cat([torch.arange(border), torch.arange(T - border)])[None]
    embedded = []
    model.wte.register_forward_hook(lambda module, args, out: (out.retain_grad(), embedded.append(out))[1:] and None)
    for begin, end in ((0, border), (border, T)):  # the loss of one document and the embeddings of the other
        mine = torch.full_like(targets, -100)
        mine[:, begin:end] = targets[:, begin:end]
        with torch.autocast("cpu", torch.bfloat16, enabled=way == "bfloat16"):
            model(idx, mine, positions)[0].backward()
        gradient = embedded.pop().grad[0]
        assert (gradient[begin:end].abs().sum(-1) > 0).all()
        assert not gradient[:begin].any() and not gradient[end:].any()


@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_flex_attention_equals_masked_attention():
    _, positions = packed(rows=3, T=64)
    starts = attention.find_document_starts(positions)
    q, k, v = torch.randn(3, 3, 2, 64, 16, generator=torch.Generator().manual_seed(0))
    by_flex = attention.flex_attention(q, k, v, starts)
    by_mask = F.scaled_dot_product_attention(q, k, v, attention.within_documents(starts))
    torch.testing.assert_close(by_flex, by_mask, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(attention.causal_attention(q, k, v, starts), by_mask, atol=1e-5, rtol=1e-5)


class OnCPU:
    device = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("T", [1, 2, 32, 300])
def test_a_run_checks_that_documents_are_kept_apart(hf_model, monkeypatch, dtype, T):
    model, machine = GPT.from_hf(hf_model()), Device(OnCPU(), dtype, compile=False)
    attention_check.check_isolation(model, machine, T, 0.0, print)
    causal = attention.causal_attention
    monkeypatch.setattr(attention, "causal_attention", lambda q, k, v, starts: causal(q, k, v))
    if T > 2:
        with pytest.raises(Failure, match="does not keep documents apart on this device"):
            attention_check.check_isolation(model, machine, T, 0.0, print)


SHAPE = [
    "--init_from=scratch",
    "--n_layer=1",
    "--n_head=2",
    "--n_embd=16",
    "--block_size=32",
    "--batch_size=2",
    "--gradient_accumulation_steps=1",
    "--learning_rate=1e-3",
    "--dtype=float32",
    "--device=cpu",
]


def test_instruction_data_is_isolated_unless_told_otherwise(tokenizer, command):  # noqa: F811
    prepare([write(conversations())], "data", tokenizer)
    flags = ["--dataset=data", *SHAPE, "--max_iters=2"]
    code, out, err = command("train", *flags)
    assert code == 0, err
    assert "documents are isolated" in out
    code, out, _ = command("train", *flags, "--out_dir=other", "--isolate_documents=false")
    assert code == 0 and "isolated" not in out
    code, _, err = command("train", *flags, "--out_dir=other", "--init_from=resume", "--isolate_documents=auto")
    assert code == 2 and "isolate_documents: False in the run, True now" in err


def test_a_running_text_cannot_be_isolated(data, command):
    code, _, err = command("train", f"--dataset={data}", *SHAPE, "--isolate_documents=true")
    assert code == 2 and err.count("\n") == 1 and "holds one running text and no documents" in err


def test_a_damaged_list_of_documents_is_refused(tokenizer, command):  # noqa: F811
    dataset = prepare([write(conversations())], "data", tokenizer)
    path = dataset.documents("train")
    good = path.read_bytes()
    path.write_bytes(good[:-8])
    code, _, err = command("train", "--dataset=data", *SHAPE)
    assert code == 2 and "train_documents.bin: is not the file that meta.json describes" in err
    path.unlink()
    code, _, err = command("train", "--dataset=data", *SHAPE)
    assert code == 2 and "train_documents.bin: there is no such file" in err


# too long examples
def long_and_short():
    long = {"prompt": "What is 1 plus 2? " * 8, "completion": "It is 3, as everybody knows. " * 8}
    return [long if i % 10 == 3 else row for i, row in enumerate(examples(60))]


def test_too_long_examples_are_counted_and_kept_or_left_out(tokenizer, command):  # noqa: F811
    write(long_and_short())
    flags = ["data.jsonl", f"--tokenizer={tokenizer}", "--max_tokens=100", "--doctor=false"]
    code, out, _ = command("prepare", *flags, "--out_dir=kept")
    assert code == 0 and "6 documents of more than 100 tokens: cut where a block of 100 ends" in out
    code, out, _ = command("prepare", *flags, "--out_dir=dropped", "--overflow=drop")
    assert code == 0 and "6 documents of more than 100 tokens: left out" in out
    kept, dropped = datasets.load("kept"), datasets.load("dropped")
    for split in ("train", "val"):
        parts = [
            [part.tobytes() for part in np.split(np.fromfile(one.bin(split), "<u2"), one.document_ends(split))[:-1]]
            for one in (kept, dropped)
        ]
        assert parts[1] == [part for part in parts[0] if len(part) <= 200]  # two bytes a token
        for name in ("tokens", "documents", "bytes", "targets"):
            assert (dropped.meta["splits"][split][name] < kept.meta["splits"][split][name]) == (parts[0] != parts[1])
        mask = np.fromfile(dropped.mask(split), np.uint8)
        assert len(mask) == dropped.num_tokens(split) and mask.sum() == dropped.meta["splits"][split]["targets"]


def test_too_long_examples_can_be_an_error(tokenizer, command):  # noqa: F811
    write(long_and_short())
    flags = ("data.jsonl", f"--tokenizer={tokenizer}", "--out_dir=new")
    code, _, err = command("prepare", *flags, "--max_tokens=100", "--overflow=error")
    assert code == 2 and err.count("\n") == 1 and "a document has more than 100 tokens" in err
    assert not list(Path("new").glob("*"))
    code, _, err = command("prepare", *flags, "--max_tokens=3", "--overflow=drop")
    assert code == 2 and err.count("\n") == 1 and "each of its documents has more than 3 tokens" in err
    assert not list(Path("new").glob("*"))


def test_a_running_text_has_no_overflow(corpus, command):
    code, _, err = command("prepare", corpus(), "--tokenizer=char", "--overflow=drop")
    assert code == 2 and "is one running text" in err


def test_a_long_document_across_tasks_is_dropped_whole(tokenizer):  # noqa: F811
    Path("docs.jsonl").write_text(
        "".join(json.dumps({"text": "What is it? " * (40 if i == 7 else 2) + str(i)}) + "\n" for i in range(20))
    )
    options = TokenizeOptions(overflow="drop", max_tokens=60, group_characters=50)
    dataset = prepare(["docs.jsonl"], "data", tokenizer, options=options)
    texts = [
        dataset.tokenizer.decode(part[:-1])
        for split in ("train", "val")
        for part in np.split(np.fromfile(dataset.bin(split), "<u2"), dataset.document_ends(split))[:-1]
    ]
    assert sorted(texts) == sorted("What is it? " * 2 + str(i) for i in range(20) if i != 7)
    assert dataset.meta["overflow"] == {"dropped": 1, "max_tokens": 60}


def test_conversations_without_a_list_of_documents_are_refused(tokenizer):  # noqa: F811
    """As an old version prepared them."""
    prepare([write(conversations())], "data", tokenizer)
    meta = json.loads(Path("data/meta.json").read_text())
    for split in ("train", "val"):
        Path(f"data/{split}_documents.bin").unlink()
        del meta["splits"][split]["documents_sha256"]
    Path("data/meta.json").write_text(json.dumps(meta))
    unknown = "end-of-texts in 36 documents, and nothing says where one begins; prepare the data again"
    with pytest.raises(UsageError, match=unknown):
        datasets.load("data").document_ends("train")


def test_a_list_of_documents_that_meta_json_does_not_name_is_not_read(tokenizer):  # noqa: F811
    dataset = prepare([write(examples())], "data", tokenizer)
    ends = dataset.document_ends("train")
    Path("data/train_documents.bin").write_bytes(np.array([3, 1], dtype="<u8").tobytes())
    assert datasets.load("data").document_ends("train").tolist() == ends.tolist() and len(ends) == 54
    assert datasets.scan(datasets.load("data"), "train").documents_sha256 is None


def test_documents_of_characters_have_ends_without_an_end_of_text(command):
    with pytest.raises(UsageError, match="nobody could learn where an answer ends"):
        prepare([write(examples())], "data", "char")
    assert not list(Path("data").glob("*"))
    dataset = prepare([write([{"text": f"User:\n{row['prompt']}"} for row in examples()])], "data", "char")
    assert dataset.tokenizer.eot is None
    texts = [
        dataset.tokenizer.decode(part)
        for part in np.split(np.fromfile(dataset.bin("val"), "<u2"), dataset.document_ends("val"))[:-1]
    ]
    assert len(texts) == 6 and all(text.startswith("User:\n") for text in texts)
    code, out, error = command("train", "--dataset=data", *SHAPE, "--max_iters=2", "--isolate_documents=true")
    assert code == 0 and "documents are isolated" in out, error


def test_pieces_without_a_target_are_left_out(tokenizer):  # noqa: F811
    """Such as the first block of a prompt that is longer than a block."""
    long = {"prompt": "What is 1 plus 2? " * 30, "completion": "It is 3."}
    dataset = prepare([write([long] * 12)], "data", tokenizer)
    blocks = isolated(dataset)
    mask = np.fromfile(dataset.mask("train"), np.uint8)
    assert (blocks.targets_per_row > 0).all() and blocks.targets_per_row.sum() == mask.sum()
    assert blocks.num_rows * 33 < len(mask) / 2


def test_rows_without_targets_are_not_evaluated(tokenizer, command):  # noqa: F811
    long = {"prompt": "What is 1 plus 2? " * 30, "completion": "It is 3."}
    prepare([write([long] * 12)], "data", tokenizer)
    flags = ("--isolate_documents=false", "--max_iters=2", "--eval_iters=1")
    code, out, error = command("train", "--dataset=data", *SHAPE, *flags)
    assert code == 0 and "nan" not in out, error


def test_a_document_that_the_split_cuts_overflows_too(tokenizer, command):  # noqa: F811
    """Fewer documents than leave one for validation: the last of their characters validate."""
    write([{"text": "What is it? " * 60}, {"text": "As everybody knows. " * 60}])
    flags = ["data.jsonl", f"--tokenizer={tokenizer}", "--max_tokens=300", "--doctor=false"]
    code, _, error = command("prepare", *flags, "--overflow=error", "--out_dir=new")
    assert code == 2 and "a document has more than 300 tokens" in error
    assert not list(Path("new").glob("*"))


def test_blocks_are_the_same_whoever_builds_them(tokenizer, monkeypatch):  # noqa: F811
    prepare([write(conversations(43))], "data", tokenizer)  # a cache of the same data elsewhere would be found
    with forked.pool(2) as pool:
        one, other = pool.map(_rows_in_child, [str(Path("data").resolve())] * 2)
    assert one == other == _rows_in_child("data")
    assert len(list(Path("data/.arrow").iterdir())) == 1


def _rows_in_child(directory):
    return [column.sum().item() for column in isolated(datasets.load(directory)).batch(range(5))]
