"""Bins that nothing describes: 16-bit ids are read, anything else is named. meta.pkl as nanoGPT's forks write it."""

import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_bins
from transformers import AutoTokenizer

from finetune import GPT, GPTConfig
from finetune.common.errors import UsageError
from finetune.data import bin_formats, nanogpt_meta
from finetune.data import dataset as datasets
from finetune.data.prepare import prepare
from finetune.data.tokenizer import gpt2_if_here

needs_gpt2 = pytest.mark.skipif(gpt2_if_here() is None, reason="no cache holds GPT-2's vocabulary")
TRAIN = (
    "--init_from=scratch --n_layer=1 --n_head=1 --n_embd=8 --block_size=16 --batch_size=2 --max_iters=2 --eval_iters=1"
    " --gradient_accumulation_steps=1 --dtype=float32 --num_samples=1 --max_new_tokens=8"
).split()


def zipf(count, vocab_size, seed=0):
    """Ids as in a text: the most frequent ones many times, none in order of its frequency."""
    rng = np.random.default_rng(seed)
    return rng.permutation(vocab_size)[np.minimum(rng.zipf(1.2, count) - 1, vocab_size - 1)]


def text_ids(letters="abcdefghij klmnop.\n"):
    rng = random.Random(0)
    text = "".join(rng.choices(letters, k=9000))
    place = {char: number for number, char in enumerate(sorted(set(text)))}
    return np.array([place[char] for char in text])


GPT2_IDS, LARGE_IDS, CHAR_IDS = zipf(9000, 50257), zipf(9000, 128_000), text_ids()
HEADER = {
    "llm.c for GPT-2": np.array([20240520, 1, 9000] + [0] * 253, "<i4").tobytes() + GPT2_IDS.astype("<u2").tobytes(),
    "llm.c for Llama 3": np.array([20240801, 7, 9000] + [0] * 253, "<i4").tobytes() + LARGE_IDS.astype("<u4").tobytes(),
}
OTHERS = {
    **{f"ids of GPT-2 as {dtype}": GPT2_IDS.astype(dtype).tobytes() for dtype in ("<u4", "<i8", ">u4", ">i8", ">u2")},
    **{f"characters as {dtype}": CHAR_IDS.astype(dtype).tobytes() for dtype in ("<i4", "<u8", ">u4", ">u8", ">u2")},
    **{f"large ids as {dtype}": LARGE_IDS.astype(dtype).tobytes() for dtype in ("<u4", "<i8", ">u4")},
    **{f"numbers as {dtype}": GPT2_IDS.astype(dtype).tobytes() for dtype in ("<f4", "<f8")},
    "labels as <i4": np.where(np.arange(9000) % 3, GPT2_IDS, -100).astype("<i4").tobytes(),
    "characters as u1": (CHAR_IDS + 1).astype("u1").tobytes(),
    "few characters as <u4": np.tile([0, 1, 2, 1], 200).astype("<u4").tobytes(),
    "ids of 400 as >u2": zipf(5000, 400).astype(">u2").tobytes(),
}
WIDTHS = {"4": "32-bit", "8": "64-bit", "2": "16-bit", "1": "8-bit"}


@pytest.mark.parametrize("name", OTHERS)
def test_other_widths_and_byte_orders_are_named(name):
    directory = write_bins(Path("data/d"), GPT2_IDS, GPT2_IDS)
    (directory / "val.bin").write_bytes(OTHERS[name])
    with pytest.raises(UsageError, match=f"val.bin: looks like {WIDTHS[name[-1]]}") as caught:
        datasets.load(directory)
    message = str(caught.value)
    assert len(message.splitlines()) == 1 and ("big-endian" in message) == (">" in name)
    assert ("floating" in message) == ("f" in name.split()[-1])
    if name.startswith(("large", "labels")):
        assert "do not fit: prepare the text" in message
    else:  # what the message says makes bins that are read
        source = directory / "val.bin"
        dtype = name.split()[-1].replace("i", "u")
        assert f"numpy.fromfile('val.bin', '{dtype}').astype('<u2').tofile('val.bin')" in message
        np.fromfile(source, dtype).astype("<u2").tofile(source)
        datasets.load(directory)


def saved_array():
    import io

    file = io.BytesIO()
    np.save(file, GPT2_IDS.astype("<u2"))
    return file.getvalue()


FILES = {
    "is a bin of llm.c for GPT-2": HEADER["llm.c for GPT-2"],
    "is a bin of llm.c for Llama 3": HEADER["llm.c for Llama 3"],
    "is a numpy array": saved_array(),
    "is a text, not token ids": b"Once upon a time, na\xc3\xafve. " * 400,
    "is a text": "東京は日本の首都です。\n".encode() * 999,
    "is a zip archive": b"PK\x03\x04" + bytes(range(256)) * 4,
    "is compressed": b"\x1f\x8b\x08" + bytes(range(256)) * 4 + b"x",
    "is a packed file of LitGPT": b"LITPKDS" + bytes(999),
    "is a pickle": pickle.dumps(GPT2_IDS.tolist()),
    "is a pickle;": pickle.dumps(GPT2_IDS.tolist(), 2),
}


@pytest.mark.parametrize("message", FILES)
def test_other_files_are_named(message, command):
    directory = write_bins(Path("data/d"), GPT2_IDS, GPT2_IDS)
    content = FILES[message]
    (directory / "train.bin").write_bytes(content + bytes(len(content) % 2))
    code, _, error = command("train", *TRAIN, "--dataset=d")
    assert code == 2 and len(error.splitlines()) == 1 and f"train.bin: {message}" in error
    if "GPT-2" in message:
        np.fromfile("data/d/train.bin", "<u2")[512:].tofile("data/d/train.bin")
        assert (np.fromfile(datasets.load(directory).bin("train"), "<u2") == GPT2_IDS).all()


GENUINE = {
    "GPT-2": GPT2_IDS,
    "uniform": np.random.default_rng(1).integers(0, 50257, 9000),
    "65,536 ids": zipf(9000, 65536),
    "400 ids": zipf(9000, 400),
    "characters": CHAR_IDS,
    "two characters": text_ids("ab"),
    "4,000 characters": zipf(9000, 4000),
    "all one id": np.full(900, 50256),
    "all zero": np.zeros(900),
    "a cycle": np.arange(900) % 5,
    "letters between spaces": text_ids("a b c d"),
    "few": np.arange(60),
    "long runs": np.repeat(zipf(90, 50257), 100),
    "mostly padding": np.where(np.arange(9000) % 50, 50256, GPT2_IDS),
}


@pytest.mark.parametrize("name", GENUINE)
def test_16_bit_ids_are_never_taken_for_something_else(name):
    directory = write_bins(Path("data/d"), GENUINE[name], GENUINE[name])
    assert datasets.load(directory).num_tokens("train") == len(GENUINE[name])


def test_many_random_bins_are_read():
    rng = np.random.default_rng(0)
    for seed in range(300):
        ids = zipf(int(rng.integers(65, 4000)), int(rng.integers(2, 50257)), seed)
        ids.astype("<u2").tofile("train.bin")
        bin_formats.check(Path("train.bin"))


@pytest.mark.parametrize(
    "name, message",
    [
        ("train.npy", "holds numpy arrays (train.npy)"),
        ("corpus_text_document.idx", "holds tokens of Megatron-LM"),
        ("fineweb_train_000001.bin", "fineweb_train_000001.bin is a bin of llm.c for GPT-2"),
        ("shard.00000.mds", "holds tokens of MosaicML's streaming"),
    ],
)
def test_a_directory_of_other_tokens_is_named(name, message, command):
    Path("data/d").mkdir(parents=True)
    Path("data/d", name).write_bytes(HEADER["llm.c for GPT-2"])
    for dataset in ("d", "data/d"):
        code, _, error = command("train", *TRAIN, f"--dataset={dataset}")
        assert code == 2 and len(error.splitlines()) == 1 and message in error and "prepare the text" in error


def test_a_bin_itself_is_no_text(command):
    write_bins(Path("data/d"), GPT2_IDS, GPT2_IDS)
    code, _, error = command("train", *TRAIN, "--dataset=data/d/train.bin")
    assert code == 2 and "is a file of token ids; name the directory" in error


# meta.pkl of forks

WORDS = ["the", "cat", "sat", "on", "mat", "."]
LETTERS = sorted(set("abcdefghij klmnop.\n"))
STOI = {char: i for i, char in enumerate(LETTERS)}
FORKS = {
    "itos a list": {"vocab_size": len(LETTERS), "itos": LETTERS, "stoi": STOI},
    "padded": {"vocab_size": 64, "itos": dict(enumerate(LETTERS)), "stoi": STOI},
    "only itos": {"vocab_size": len(LETTERS), "itos": LETTERS},
    "only stoi, and more": {"stoi": STOI, "tokenizer": None, "lower": True, "splits": ["train", "val"]},
    "only vocab_size": {"vocab_size": len(LETTERS)},
    "padded vocab_size": {"vocab_size": 64},
    "words": {"vocab_size": len(WORDS), "itos": WORDS, "stoi": {word: i for i, word in enumerate(WORDS)}},
}


@pytest.mark.parametrize("name", FORKS)
def test_a_meta_pkl_of_a_fork_trains(name, command):
    ids = text_ids() if name != "words" else np.arange(9000) % len(WORDS)
    directory = write_bins(Path("data/d"), ids[:8000], ids[8000:])
    (directory / "meta.pkl").write_bytes(pickle.dumps(FORKS[name]))
    code, out, error = command("train", *TRAIN, "--dataset=d")
    assert code == 0, error
    model = GPT.from_pretrained("out")
    assert model.config.vocab_size == FORKS[name].get("vocab_size", len(LETTERS))
    code, sampled, error = command(
        "sample", "--out_dir=out", "--start=a", "--num_samples=4", "--max_new_tokens=60", "--top_k=0"
    )
    has_characters = name in ("itos a list", "padded", "only itos", "only stoi, and more")
    if has_characters:
        assert code == 0 and set(sampled.split("\n", 1)[1]) <= {*LETTERS, "-"}
        assert command("eval", "--out_dir=out")[0] == 0
        assert command("export", "--out_dir=out", "--to=exported")[0] == 0
    else:
        assert code == 2 and "has no tokenizer" in error and "no tokenizer" in out
        assert command("eval", "--out_dir=out")[0] == 0


@pytest.mark.parametrize(
    "content",
    [
        {"vocab_size": 0},
        {"vocab_size": True},
        {"vocab_size": "65"},
        {"vocab_size": 1 << 40},
        {"vocab_size": 2, "itos": ["a", "b", "c"]},
        {"vocab_size": 3, "itos": ["a", "b", "a"]},
        {"vocab_size": 2, "itos": [1, 2]},
        {"vocab_size": 2, "itos": {0: "a", 2: "b"}},
        {"vocab_size": 2, "itos": ["a", "b"], "stoi": {"a": 1, "b": 0}},
        {"tokenizer": "gpt2"},
        ["a", "b"],
    ],
)
def test_a_contradicting_meta_pkl_is_refused(content):
    with pytest.raises(ValueError):
        nanogpt_meta.read(pickle.dumps(content))


def test_ids_of_an_unknown_vocabulary_are_not_pretrained_ones(command, hf_model):
    hf_model(vocab_size=101).save_pretrained("model")
    directory = write_bins(Path("data/d"), text_ids(), text_ids())
    (directory / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": 19}))
    code, _, error = command("train", "--init_from=model", "--dataset=d", "--max_iters=1")
    assert code == 2 and "holds ids of a vocabulary of 19 ids, but model uses a vocabulary of 101 ids" in error


@pytest.fixture
def theirs():
    """A ckpt.pt of nanoGPT with LETTERS in the meta.pkl beside it."""
    config = GPTConfig(block_size=16, vocab_size=len(LETTERS), n_layer=1, n_head=1, n_embd=8)
    weights = {f"transformer.{name}": tensor for name, tensor in GPT.from_scratch(config, 0).state_dict().items()}
    shape = {name: getattr(config, name) for name in ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")}
    Path("theirs").mkdir()
    torch.save({"model": weights, "model_args": {**shape, "bias": True, "dropout": 0.0}}, "theirs/ckpt.pt")
    Path("theirs/meta.pkl").write_bytes(pickle.dumps(FORKS["only itos"]))
    Path("t.txt").write_text("abc def. ghi\n" * 400)
    return "--init_from=theirs/ckpt.pt"


MORE = [flag for flag in TRAIN if not flag.startswith(("--init_from", "--n_", "--block"))] + ["--block_size=8"]


def test_a_ckpt_of_characters_trains_with_the_meta_pkl_beside_it(theirs, command):
    code, out, error = command("train", theirs, "--dataset=t.txt", *MORE)
    assert code == 0, error
    assert (AutoTokenizer.from_pretrained("out/best")("b a")["input_ids"]) == [STOI[char] for char in "b a"]
    assert command("prepare", "t.txt", "--tokenizer=theirs", "--out_dir=data/t")[0] == 0
    assert np.fromfile("data/t/train.bin", "<u2")[:3].tolist() == [STOI[char] for char in "abc"]
    Path("new.txt").write_text("abc \u6771 def\n" * 400)
    code, _, error = command("train", theirs, "--dataset=new.txt", "--out_dir=new", *MORE)
    assert code == 2 and "'\u6771' not among the 19 characters" in error and not Path("new").exists()
    other = write_bins(Path("data/other"), text_ids(), text_ids())
    swapped = [*LETTERS[1:], LETTERS[0]]
    (other / "meta.pkl").write_bytes(pickle.dumps({"itos": swapped}))
    code, _, error = command("train", theirs, "--dataset=other", "--out_dir=new", *MORE)
    assert code == 2 and "uses another vocabulary of that size" in error and not Path("new").exists()


@pytest.mark.parametrize("itos", [LETTERS[:-1], [*LETTERS, "!"], ["\n", "\n"]])
def test_a_meta_pkl_beside_another_ckpt_is_refused(theirs, itos, command):
    Path("theirs/meta.pkl").write_bytes(pickle.dumps({"itos": itos}))
    for verb in (["train", "--dataset=t.txt", *MORE], ["sample"]):
        code, _, error = command(*verb, theirs)
        assert code == 2 and error.startswith("theirs/meta.pkl: ") and error.count("\n") == 1


# bins alone are GPT-2's


@needs_gpt2
def test_bins_alone_combine_with_prepared_data_and_have_a_tokenizer(command, corpus):
    prepared = prepare([corpus()], "data/ours", "gpt2")
    ids = np.fromfile(prepared.bin("train"), "<u2")
    write_bins(Path("data/bare"), ids[:3000], ids[3000:4000])
    said = "nothing says which tokenizer made its ids; they are taken for GPT-2's"
    code, out, error = command("train", *TRAIN, "--dataset=ours,bare")
    assert code == 0 and out.count(said) == 1, error
    assert Path("out/best/tokenizer.json").is_file()
    code, out, error = command("train", *TRAIN, "--dataset=bare", "--out_dir=alone")
    assert code == 0 and said in out and "no samples" not in out, error
    code, out, _ = command("eval", "--out_dir=alone")
    assert code == 0 and said in out and "bits per byte" in out
    assert command("sample", "--out_dir=alone", "--num_samples=1", "--max_new_tokens=9")[0] == 0


@needs_gpt2
def test_bins_alone_of_another_vocabulary_stay_unknown(command, corpus, bpe_directory, hf_model):
    """Single bytes only, ids beyond GPT-2's, and ids for a model of its own vocabulary."""
    for largest in (255, 50257):
        dataset = datasets.load(write_bins(Path("data/d"), [0, 1, largest] * 40, [0] * 40))
        assert dataset.tokenizer is None and not dataset.note
    assert datasets.load(write_bins(Path("data/d"), [0, 1, 256] * 40, [0, 1, 50256] * 40)).is_assumed
    text = Path(corpus()).read_text()
    hf_model(vocab_size=400).save_pretrained("model")
    bpe_directory(text, "model")
    ids = np.fromfile(prepare([corpus()], "data/own", "model").bin("train"), "<u2")
    write_bins(Path("data/bare"), ids, ids)
    code, out, error = command("train", *TRAIN[4:], "--init_from=model", "--dataset=bare")
    assert code == 0 and "GPT-2's" not in out, error
    code, out, error = command("train", *TRAIN, "--dataset=own,bare", "--tokenizer=model", "--out_dir=two")
    assert code == 0 and "GPT-2's" not in out, error
