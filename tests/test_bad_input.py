"""Bad input: one line that names what is wrong and the way out, exit code 2, no traceback, nothing overwritten."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import write_bins

SCRATCH = (
    "--init_from=scratch --n_layer=1 --n_head=1 --n_embd=8 --block_size=8 --batch_size=1"
    " --gradient_accumulation_steps=1 --max_iters=1 --out_dir=out".split()
)


def bins_with(train=None, val=None, **files):
    """A data directory with two sound splits of 40 tokens, some of them replaced by raw bytes."""
    directory = write_bins(Path("data/d"), np.arange(40) % 5, np.arange(40) % 5)
    for name, content in {"train.bin": train, "val.bin": val, **files}.items():
        if content is not None:
            (directory / name).write_bytes(content)
    return directory


def without(name):
    (bins_with() / name).unlink()


def text(content, name="t.txt"):
    Path(name).write_bytes(content)


def meta(**change):
    tokenizer = {"kind": "char", "chars": "abcde", "sha256": "0"}
    bins_with(
        **{
            "meta.json": (
                json.dumps({"format": 1, "tokenizer": tokenizer, "splits": {"train": {}, "val": {}}} | change).encode()
            )
        }
    )


def characters(tiny=False):
    """Character data of five letters, as nanoGPT describes it."""
    content = {"vocab_size": 5, "itos": dict(enumerate("abcde")), "stoi": {c: i for i, c in enumerate("abcde")}}
    bins_with(**{"meta.pkl": pickle.dumps(content)})


def model(**shape):
    """A small GPT-2 directory without a tokenizer."""
    from finetune import GPT, GPTConfig

    GPT.from_scratch(
        GPTConfig(**{"block_size": 16, "vocab_size": 101, "n_layer": 1, "n_head": 1, "n_embd": 8} | shape)
    ).save_pretrained("model")


def speaker(chars="abcde"):
    """The same with a tokenizer of five letters."""
    from finetune.data.tokenizer import CharTokenizer

    model(vocab_size=5)
    CharTokenizer(chars).save("model", 16)


def run_exists():
    bins_with()
    Path("out/best").mkdir(parents=True)
    Path("out/best/config.json").write_text("{}")


class Payload:
    def __reduce__(self):
        return Path.mkdir, (Path("ran"),)


CASES = {
    # train: recipe and flags
    "mistyped key": (None, "train", ["--dataset=d", "--learning_rat=1"], "Did you mean '--learning_rate'"),
    "missing recipe": (None, "train", ["recipes/none.yaml"], "recipes/none.yaml: cannot be read"),
    "recipe that is not yaml": (lambda: text(b"a: [", "r.yaml"), "train", ["r.yaml"], "r.yaml"),
    "recipe that is not UTF-8": (lambda: text(b"a: \xff", "r.yaml"), "train", ["r.yaml"], "not UTF-8"),
    "a directory as recipe": (lambda: Path("r.yaml").mkdir(), "train", ["r.yaml"], "cannot be read"),
    "a text file as recipe": (lambda: text(b"x"), "train", ["--config=t.txt"], "a recipe is a .yaml file"),
    "two texts": (
        lambda: (text(b"x", "a.txt"), text(b"x", "b.txt")),
        "train",
        ["a.txt", "b.txt"],
        "--dataset=a.txt,b.txt",
    ),
    "flag without a value": (None, "train", ["--dataset=d", "--seed"], "write --seed=INT"),
    "no dataset": (None, "train", SCRATCH, "python_docs, which needs no download"),
    "unknown dataset": (None, "train", [*SCRATCH, "--dataset=nowhere"], "no such directory or text file"),
    "block_size above the model's": (
        lambda: (bins_with(), model()),
        "train",
        ["--dataset=d", "--init_from=model", "--block_size=17", "--out_dir=out"],
        "16 positions",
    ),
    "no such device": (bins_with, "train", [*SCRATCH, "--dataset=d", "--device=cuda"], "there is no cuda here"),
    "adapters on nothing": (
        bins_with,
        "train",
        [*SCRATCH, "--dataset=d", "--lora_rank=4"],
        "would leave random weights",
    ),
    "adapters wider than the model": (
        lambda: (bins_with(), model()),
        "train",
        ["--dataset=d", "--init_from=model", "--lora_rank=9", "--out_dir=out"],
        "n_embd=8",
    ),
    "alpha of no adapters": (bins_with, "train", ["--dataset=d", "--lora_alpha=4"], "no effect without lora_rank"),
    # train: data
    "missing train.bin": (
        lambda: without("train.bin"),
        "train",
        [*SCRATCH, "--dataset=data/d"],
        "train.bin: there is no such file",
    ),
    "missing val.bin": (
        lambda: without("val.bin"),
        "train",
        [*SCRATCH, "--dataset=data/d"],
        "val.bin: there is no such file",
    ),
    "empty train.bin": (lambda: bins_with(train=b""), "train", [*SCRATCH, "--dataset=d"], "train.bin: is empty"),
    "empty val.bin": (lambda: bins_with(val=b""), "train", [*SCRATCH, "--dataset=d"], "val.bin: is empty"),
    "odd bytes": (
        lambda: bins_with(train=b"abc"),
        "train",
        [*SCRATCH, "--dataset=d"],
        "3 bytes are not a whole number of 16-bit tokens",
    ),
    "ids beyond the vocabulary": (
        lambda: bins_with(train=np.array([1, 60000, 2] * 20, "<u2").tobytes()),
        "train",
        [*SCRATCH, "--dataset=d"],
        "token 60,000 at offset 1 (20 such)",
    ),
    "32-bit ids": (
        lambda: bins_with(train=np.arange(1, 99, dtype="<u4").tobytes()),
        "train",
        [*SCRATCH, "--dataset=d"],
        "looks like 32-bit",
    ),
    "llm.c header": (
        lambda: bins_with(train=np.array([20240520, 1] + [0] * 254, "<i4").tobytes()),
        "train",
        [*SCRATCH, "--dataset=d"],
        "llm.c",
    ),
    "val shorter than a block": (
        lambda: bins_with(val=b"\0\0" * 8),
        "train",
        [*SCRATCH, "--dataset=d"],
        "val.bin: 8 tokens, and a block of 8 needs 9",
    ),
    "train shorter than a block": (
        lambda: bins_with(train=b"\0\0" * 8),
        "train",
        [*SCRATCH, "--dataset=d"],
        "train.bin: 8 tokens",
    ),
    "meta.json that is not JSON": (
        lambda: bins_with(**{"meta.json": b"{"}),
        "train",
        [*SCRATCH, "--dataset=d"],
        "meta.json",
    ),
    "meta.json of another format": (lambda: meta(format=9), "train", [*SCRATCH, "--dataset=d"], "format 9 is not 1"),
    "meta.json of another tokenizer": (
        meta,
        "train",
        [*SCRATCH, "--dataset=d"],
        "these tokens were made with another tokenizer",
    ),
    "meta.json without a tokenizer": (
        lambda: bins_with(**{"meta.json": b'{"format": 1}'}),
        "train",
        [*SCRATCH, "--dataset=d"],
        "prepare the data again",
    ),
    "meta.pkl that runs code": (
        lambda: bins_with(**{"meta.pkl": pickle.dumps(Payload())}),
        "train",
        [*SCRATCH, "--dataset=d"],
        "can run code",
    ),
    "tokenizer that cannot apply": (
        characters,
        "train",
        [*SCRATCH, "--dataset=d", "--tokenizer=data"],
        "no tokenizer.json",
    ),
    "val_fraction that cannot apply": (
        characters,
        "train",
        [*SCRATCH, "--dataset=d", "--val_fraction=0.2"],
        "already split",
    ),
    "text that is not UTF-8": (
        lambda: text(b"ab\n\xe9" * 50),
        "train",
        [*SCRATCH, "--dataset=t.txt", "--tokenizer=char"],
        "byte 0xE9 at offset 3 (line 2)",
    ),
    # train: data against model
    "characters for a BPE model": (
        lambda: (characters(), model(vocab_size=50257)),
        "train",
        ["--dataset=d", "--init_from=model", "--out_dir=out"],
        "5 characters, but model uses",
    ),
    "ids beyond the model's": (
        lambda: (bins_with(train=b"\xc8\0" * 40), model()),
        "train",
        ["--dataset=d", "--init_from=model", "--out_dir=out"],
        "token 200",
    ),
    # train: where from, where to
    "unknown Hub id without network": (
        bins_with,
        "train",
        ["--dataset=d", "--init_from=nobody/nothing", "--out_dir=out"],
        "hf download nobody/nothing --include=",
    ),
    "not the name of a Hub model": (
        bins_with,
        "train",
        ["--dataset=d", "--init_from=what is this", "--out_dir=out"],
        "not the name of a Hub model",
    ),
    "missing model path": (
        bins_with,
        "train",
        ["--dataset=d", "--init_from=./gone", "--out_dir=out"],
        "no such file or directory",
    ),
    "a directory that is no model": (
        bins_with,
        "train",
        ["--dataset=d", "--init_from=data", "--out_dir=out"],
        "no model here",
    ),
    "a model that is no GPT-2": (
        lambda: (bins_with(), model(), text(b'{"model_type": "llama"}', "model/config.json")),
        "train",
        ["--dataset=d", "--init_from=model", "--out_dir=out"],
        "model_type is llama, not gpt2",
    ),
    "damaged weights": (
        lambda: (bins_with(), model(), text(b"cut", "model/model.safetensors")),
        "train",
        ["--dataset=d", "--init_from=model", "--out_dir=out"],
        "model",
    ),
    "nothing to resume": (
        bins_with,
        "train",
        ["--dataset=d", "--init_from=resume", "--out_dir=out"],
        "nothing to resume",
    ),
    "out_dir below a file": (
        lambda: (bins_with(), text(b"", "f")),
        "train",
        [*SCRATCH, "--dataset=d", "--out_dir=f/out"],
        "out_dir f/out: cannot be written",
    ),
    "out_dir that is a file": (
        lambda: (bins_with(), text(b"", "f")),
        "train",
        [*SCRATCH, "--dataset=d", "--out_dir=f"],
        "out_dir f: cannot be written",
    ),
    "out_dir with a run in it": (run_exists, "train", [*SCRATCH, "--dataset=d"], "holds a run already"),
    # prepare
    "nothing to prepare": (None, "prepare", ["--out_dir=x"], "no text given"),
    "samples where nobody writes": (
        speaker,
        "sample",
        ["--init_from=model", "--start=a", "--num_samples=1", "--out=/proc/x.jsonl"],
        "out /proc/x.jsonl: cannot be written: ",
    ),
    "a tour where nobody writes": (None, "tour", ["--out_dir=/proc/tour"], "out_dir: /proc/tour cannot be written: "),
    "a tokenizer in capitals": (
        lambda: text(b"a"),
        "prepare",
        ["t.txt", "--tokenizer=CHAR", "--out_dir=o"],
        "tokenizer CHAR: no such directory. Did you mean char?",
    ),
    "missing text": (None, "prepare", ["gone.txt"], "gone.txt: no such file"),
    "empty text": (lambda: text(b""), "prepare", ["t.txt"], "no text in it"),
    "one character": (lambda: text(b"a"), "prepare", ["t.txt", "--tokenizer=char"], "too few"),
    "latin-1": (lambda: text(b"caf\xe9"), "prepare", ["t.txt", "--tokenizer=char"], "byte 0xE9 at offset 3 (line 1)"),
    "cut in a character": (lambda: text(b"caf\xc3"), "prepare", ["t.txt", "--tokenizer=char"], "byte 0xC3 at offset 3"),
    "UTF-16": (lambda: text("text".encode("utf-16")), "prepare", ["t.txt", "--tokenizer=char"], "looks like UTF-16"),
    "a directory as text": (lambda: Path("d").mkdir(), "prepare", ["d"], "no text there"),
    "too large a val_fraction": (lambda: text(b"abc"), "prepare", ["t.txt", "--val_fraction=0.9"], "at most 0.5"),
    "no such tokenizer": (
        lambda: text(b"abcdef"),
        "prepare",
        ["t.txt", "--tokenizer=gpt7"],
        "no such directory, not in the local cache",
    ),
    "unwritable data directory": (
        lambda: text(b"abcdef"),
        "prepare",
        ["t.txt", "--tokenizer=char", "--out_dir=t.txt/x"],
        "out_dir t.txt/x: cannot be written",
    ),
    # doctor
    "nothing to examine": (None, "doctor", [], "nothing to examine"),
    "a missing text to examine": (None, "doctor", ["gone.txt"], "gone.txt: no such file"),
    "a text to examine that is not UTF-8": (
        lambda: text(b"caf\xe9"),
        "doctor",
        ["t.txt", "--fix=dedup", "--out_dir=o"],
        "byte 0xE9 at offset 3 (line 1)",
    ),
    "a directory without bins to examine": (lambda: Path("d").mkdir(), "doctor", ["d"], "no text there"),
    "a directory and a text": (lambda: (bins_with(), text(b"a")), "doctor", ["data/d", "t.txt"], "examined by itself"),
    "mistyped fix": (lambda: text(b"a"), "doctor", ["t.txt", "--fix=leak", "--out_dir=o"], "Did you mean 'leaks'?"),
    "fix without out_dir": (lambda: text(b"a"), "doctor", ["t.txt", "--fix=leaks"], "needs --out_dir=DIR"),
    "out_dir without fix": (lambda: text(b"a"), "doctor", ["t.txt", "--out_dir=o"], "no effect without --fix"),
    "fix over a file": (
        lambda: (text(b"a"), text(b"", "clean.jsonl")),
        "doctor",
        ["t.txt", "--fix=dedup", "--out_dir=."],
        "clean.jsonl: is there already",
    ),
    "fix below a file": (
        lambda: text(b"a"),
        "doctor",
        ["t.txt", "--fix=dedup", "--out_dir=t.txt/x"],
        "out_dir t.txt/x: cannot be written",
    ),
    "tokenizer of data that has one": (characters, "doctor", ["data/d", "--tokenizer=gpt2"], "has no effect"),
    # sample
    "sample of nothing": (None, "sample", [], "give --out_dir=OUT"),
    "sample of a missing run": (lambda: run_exists(), "sample", ["--out_dir=outt"], "runs here: out"),
    "temperature below 0": (None, "sample", ["--out_dir=out", "--temperature=-1"], "must be at least 0"),
    "empty prompt": (None, "sample", ["--out_dir=out", "--start="], "prompt is empty"),
    "missing prompt file": (run_exists, "sample", ["--out_dir=out", "--start=FILE:gone"], "gone: cannot be read"),
    "missing file of prompts": (
        run_exists,
        "sample",
        ["--out_dir=out", "--prompts=gone.txt"],
        "gone.txt: cannot be read",
    ),
    "prompts and a prompt": (
        lambda: (run_exists(), text(b"a")),
        "sample",
        ["--out_dir=out", "--prompts=t.txt", "--start=a"],
        "--start: cannot go with --prompts",
    ),
    "empty file of prompts": (
        lambda: (speaker(), text(b"\n \n")),
        "sample",
        ["--init_from=model", "--prompts=t.txt"],
        "t.txt: no prompt in it",
    ),
    "prompts that are not JSON": (
        lambda: (speaker(), text(b'{"prompt": "a"}\n{', "t.jsonl")),
        "sample",
        ["--init_from=model", "--prompts=t.jsonl"],
        "t.jsonl:2: not JSON",
    ),
    "prompts without a prompt": (
        lambda: (speaker(), text(b'{"text": "a"}', "t.jsonl")),
        "sample",
        ["--init_from=model", "--prompts=t.jsonl"],
        "t.jsonl:1: expected an object with a prompt",
    ),
    "messages without a template": (
        lambda: (speaker(), text(b'{"messages": [{"role": "user", "content": "a"}]}', "t.jsonl")),
        "sample",
        ["--init_from=model", "--prompts=t.jsonl"],
        "t.jsonl:1: messages need a chat template",
    ),
    "prompt outside the vocabulary": (
        speaker,
        "sample",
        ["--init_from=model", "--start=ab\u00e9"],
        "'\u00e9' not among the 5 characters",
    ),
    "prompts outside the vocabulary": (
        lambda: (speaker(), text(b"a\nx")),
        "sample",
        ["--init_from=model", "--prompts=t.txt"],
        "t.txt:2: ",
    ),
    "a conversation without a template": (
        speaker,
        "sample",
        ["--init_from=model", "--chat=true"],
        "has no chat template",
    ),
    "a conversation with a prompt": (
        speaker,
        "sample",
        ["--init_from=model", "--chat=true", "--start=a"],
        "--start: cannot go with --chat",
    ),
    "samples over a file": (
        lambda: (speaker(), text(b"a")),
        "sample",
        ["--init_from=model", "--out=t.txt"],
        "t.txt: is there already",
    ),
    "samples below nothing": (
        speaker,
        "sample",
        ["--init_from=model", "--out=gone/t.jsonl"],
        "there is no directory gone",
    ),
    "sample of a directory that is no model": (bins_with, "sample", ["--out_dir=data"], "data: no model here"),
    "sample of ids without a tokenizer": (model, "sample", ["--init_from=model"], "101 ids are not GPT-2's"),
    "min_p above 1": (speaker, "sample", ["--init_from=model", "--min_p=2"], "min_p: must be at least 0 and at most 1"),
    "repetition_penalty of 0": (
        speaker,
        "sample",
        ["--init_from=model", "--repetition_penalty=0"],
        "must be at least 1e-06",
    ),
    "max_copy of unknown data": (speaker, "sample", ["--init_from=model", "--max_copy=3"], "Give --dataset=DIR"),
    "max_copy of data that is gone": (
        speaker,
        "sample",
        ["--init_from=model", "--start=a", "--max_copy=3", "--dataset=gone"],
        "dataset gone: no such directory or text file",
    ),
    "max_copy of other data": (
        lambda: (speaker("abcdx"), characters()),
        "sample",
        ["--init_from=model", "--start=a", "--max_copy=3", "--dataset=d"],
        "d holds ids of 5 characters, but model uses another vocabulary",
    ),
    "data without max_copy": (speaker, "sample", ["--init_from=model", "--dataset=d"], "no effect without --max_copy"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input(case, command, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    prepare, verb, argv, expected = CASES[case]
    if prepare:
        prepare()
    before = {path: path.is_file() and path.read_bytes() for path in Path(".").rglob("*")}
    code, _, error = command(verb, *argv)
    assert code == 2
    assert expected in error, error
    assert len(error.strip().splitlines()) == 1, error
    after = {path: path.is_file() and path.read_bytes() for path in Path(".").rglob("*") if ".arrow" not in path.parts}
    # a run that was there already may get a lock
    locks = {path for path in after if path.name == ".lock" and path.parent in before}
    assert {path: after[path] for path in after if path not in locks} == {
        path: before[path] for path in before if path not in locks
    }
    assert not Path("ran").exists()


def test_there_are_enough_cases():
    assert len(CASES) >= 30


@pytest.mark.parametrize(
    "argv",
    [
        ["train", "--block_size=99"],
        ["train", "--lora_rank=3000"],
        ["train", "--num_samples=1", "--start=é"],
        ["train", "--num_samples=1", "--start="],
        ["eval", "--block_size=99"],
        ["eval", "--stride=33"],
        ["eval", "--samples=1", "--start=é"],
    ],
)
def test_no_text_is_prepared_for_what_cannot_be(argv, tiny_run, command, corpus, monkeypatch):
    model = tiny_run()
    shutil.rmtree("data")
    code, _, error = command(argv[0], f"--init_from={model}", f"--dataset={corpus()}", "--device=cpu", *argv[1:])
    assert code == 2 and error.count("\n") == 1 and not Path("data").exists(), error
