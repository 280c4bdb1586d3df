"""Tiny models with weights spread as trained ones are, and small texts."""

import gc
import os

os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
# threads that wait let the other test process compute; read when torch is loaded, also by commands that tests start
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # models are tiny, and test processes share two cores

import random

import economies
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from finetune.config import cli


def pytest_collection_finish():
    """What is imported now stays to the end, so no search for garbage needs to look through it."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def pictures(monkeypatch):
    """For tests that look at pictures."""
    monkeypatch.setattr(Figure, "savefig", economies.draw)


@pytest.fixture(autouse=True)
def fresh_process_state(tmp_path, monkeypatch):
    """Every test works in an empty directory, waits for no disk, and no Accelerator outlives it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "fsync", os.fstat)  # which a killed process does not need; it fails as fsync does
    economies.save_time(monkeypatch.setattr)
    monkeypatch.delenv("WANDB_SERVICE", raising=False)  # which wandb left; commands that a test starts would share it
    yield
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(True)


def spread(model, scale=4.0):
    """Give a fresh transformers model the look of a trained one: large weights, biases and layer norms, so that errors
    show."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0.0, 0.3, generator=generator)
            elif "ln_" in name:
                parameter.normal_(1.0, 0.3, generator=generator)
            else:
                parameter.mul_(scale)
    return model.eval()


@pytest.fixture
def hf_model():
    """A function that makes a small GPT2LMHeadModel with spread weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    def make(seed=0, **shape):
        torch.manual_seed(seed)
        shape = {
            "n_layer": 2,
            "n_head": 4,
            "n_embd": 32,
            "n_positions": 32,
            "vocab_size": 101,
            "bos_token_id": 100,
            "eos_token_id": 100,
        } | shape
        return spread(GPT2LMHeadModel(GPT2Config(**shape, attn_implementation="sdpa")))

    return make


@pytest.fixture
def corpus(tmp_path):
    """A function that writes a text file of words drawn from a small dictionary."""

    def make(name="corpus.txt", words=4000, seed=0):
        rng = random.Random(seed)
        dictionary = ["".join(rng.choice("abcdefghij") for _ in range(rng.randint(2, 7))) for _ in range(60)]
        lines = [" ".join(rng.choice(dictionary) for _ in range(8)).capitalize() + ".\n" for _ in range(words // 8)]
        (tmp_path / name).write_text("".join(lines), encoding="utf-8")
        return str(tmp_path / name)

    return make


@pytest.fixture
def bpe_directory(tmp_path):
    """A function that trains a small byte-level BPE and saves it as a model directory does: no download needed."""
    from tokenizers import ByteLevelBPETokenizer

    def make(text, name="bpe", vocab_size=400):
        directory = tmp_path / name
        directory.mkdir(exist_ok=True)
        tokenizer = ByteLevelBPETokenizer()
        tokenizer.train_from_iterator(
            [text], vocab_size=vocab_size, min_frequency=1, special_tokens=["<|endoftext|>"], show_progress=False
        )
        tokenizer.save(str(directory / "tokenizer.json"))
        return directory

    return make


@pytest.fixture(scope="session")
def byte_tokenizer(tmp_path_factory):
    """(directory, byte_of): a byte-level BPE without merges, so that each id is a byte, and 0 is end-of-text."""
    from tokenizers import ByteLevelBPETokenizer

    directory = tmp_path_factory.mktemp("bytes")
    theirs = ByteLevelBPETokenizer()
    theirs.train_from_iterator([""], vocab_size=257, special_tokens=["<|endoftext|>"], show_progress=False)
    theirs.save(str(directory / "tokenizer.json"))
    letters = "".join(chr(i) for i in [*range(0x800), *range(0x800, 0xD800, 0x400), *range(0xE000, 0x110000, 0x800)])
    byte_of = np.zeros(257, np.uint8)
    byte_of[theirs.encode(letters).ids] = np.frombuffer(letters.encode(), np.uint8)
    return directory, byte_of


@pytest.fixture
def command(monkeypatch, capsys):
    """A function that runs a verb in this process as its command would, and returns (exit code, stdout, stderr)."""
    import importlib

    def call(verb, *argv):
        module = importlib.import_module(f"finetune.{verb}")
        monkeypatch.setattr("sys.argv", [verb, *map(str, argv)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.run(module.main)
        output = capsys.readouterr()
        return end.value.code, output.out, output.err

    return call


@pytest.fixture
def tiny_run(corpus, command):
    """A function that trains a tiny character model from scratch and returns its out_dir."""

    def make(out_dir="out", *flags, text=None):
        code, out, err = command(
            "train",
            "--init_from=scratch",
            f"--dataset={text or corpus()}",
            "--tokenizer=char",
            f"--out_dir={out_dir}",
            "--n_layer=2",
            "--n_head=2",
            "--n_embd=32",
            "--block_size=32",
            "--batch_size=4",
            "--gradient_accumulation_steps=2",
            "--max_iters=10",
            "--learning_rate=1e-2",
            "--log_interval=1",
            "--eval_interval=5",
            "--dtype=float32",
            *flags,
        )
        assert code == 0, err
        return out_dir

    return make


def write_bins(directory, train, val):
    """Bins as nanoGPT writes them, without meta."""
    directory.mkdir(parents=True, exist_ok=True)
    np.asarray(train, dtype=np.uint16).tofile(directory / "train.bin")
    np.asarray(val, dtype=np.uint16).tofile(directory / "val.bin")
    return directory


@pytest.fixture
def data(corpus, tmp_path):
    from finetune.data.prepare import prepare

    prepare([corpus(words=640)], tmp_path / "data" / "small", "char")
    return str(tmp_path / "data" / "small")


@pytest.fixture
def tiny(data):
    """A function that makes the recipe of a small run with dropout and accumulation, over several passes, saved at
    every step."""

    def make(out_dir="out", **values):
        from finetune.config.recipe import Recipe

        return Recipe(
            **{
                "init_from": "scratch",
                "dataset": data,
                "out_dir": out_dir,
                "n_layer": 1,
                "n_head": 2,
                "n_embd": 16,
                "block_size": 32,
                "batch_size": 2,
                "gradient_accumulation_steps": 3,
                "dropout": 0.1,
                "max_iters": 20,
                "learning_rate": 1e-2,
                "log_interval": 1,
                "eval_interval": 7,
                "save_interval": 1,
                "dtype": "float32",
                "device": "cpu",
                "cpu_threads": 1,
            }
            | values
        )

    return make
