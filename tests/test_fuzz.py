"""Flags, recipes and files that nobody would write, in every command: right, or refused in a line, and nothing written.

400 examples; `-m heavy` runs 2,000 and `-m slow` 50,000. Each has a directory of its own with a text, prepared data and
a run."""

import importlib
import json
import os
import pickle
import typing
from pathlib import Path

import pytest

if not Path("/proc/self/statm").exists():
    pytest.skip("time and memory of a call are limited as Linux does it", allow_module_level=True)

import fuzz
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finetune.common import hub_client
from finetune.config.recipe import Recipe

SHARES = {"arguments": 550, "numbers": 300, "recipes": 250, "texts": 350, "data": 200, "runs": 200, "models": 120}
SHARES |= {"network": 30}
SHAPE = "--n_layer=1 --n_head=1 --n_embd=8 --block_size=8 --batch_size=2 --gradient_accumulation_steps=1".split()
FAST = [*SHAPE, "--dtype=float32", "--device=cpu", "--cpu_threads=1", "--max_iters=1", "--eval_iters=1"]
SCRATCH = ["--init_from=scratch", "--dataset=data", "--out_dir=new", *FAST]
# what each verb needs to go through; short where it can be
SOUND = {
    "prepare": ["text.txt", "--tokenizer=char", "--out_dir=new", "--doctor=false"],
    "doctor": ["data"],
    "plan": ["--quick", *SCRATCH],
    "train": SCRATCH,
    "sample": ["--out_dir=run", "--num_samples=1", "--max_new_tokens=2", "--device=cpu"],
    "eval": ["--out_dir=run", "--device=cpu"],
    "export": ["--out_dir=run", "--to=new"],
    "diagnose": ["--out_dir=run"],
    "report": ["--out_dir=run"],
    "compare": ["run", "run"],
    "recipes": ["small"],
    "env": ["--lock"],
    "completion": ["bash"],
}
# as long as they are asked to be, or a search over the data, or other processes
LONG = "max_iters max_new_tokens num_samples samples completions trial_minutes find_lr num_processes launch".split()
LONG += ["num_proc", "gradient_accumulation_steps", "batch_size", "cpu_threads"]
OUTSIDE = "log_with wandb_log push push_to_hub compile".split()


def examples(kind):
    """Settings of a test: a few examples, and marked ones with more."""
    scales = [0.1, pytest.param(1, marks=pytest.mark.heavy), pytest.param(25, marks=pytest.mark.slow)]
    quiet = {
        "deadline": None,
        "database": None,
        "suppress_health_check": list(HealthCheck),
        "report_multiple_bugs": False,
    }
    times = float(os.environ.get("FUZZ_TIMES", 1))

    def decorate(test):
        def run(base, scale):
            number = int(SHARES[kind] * times * scale)
            derandomize = times == 1
            settings(max_examples=number, derandomize=derandomize, **quiet)(given(st.data())(test))(base)

        run.__name__, run.__doc__ = test.__name__, test.__doc__
        return pytest.mark.parametrize("scale", scales)(run)

    return decorate


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    """Between the tries of a request."""
    monkeypatch.setattr(hub_client, "PAUSE_SECONDS", 0)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A directory with a text, prepared data and a run over it."""
    from finetune.training import trainer  # noqa: F401  reading libraries from disk takes its time

    place = tmp_path_factory.mktemp("base")
    with fuzz.inside(place):
        Path("text.txt").write_text(
            "".join(f"the quick brown fox {n % 7} jumps\n" for n in range(60)), encoding="utf-8"
        )
        rows = [{"prompt": f"what is {n}?", "completion": f"it is {n + 1}"} for n in range(12)]
        write_files(Path("files"), rows)
        sound = fuzz.call("prepare", "text.txt", "--tokenizer=char", "--out_dir=data", "--doctor=false")
        assert sound.code == 0, sound.err
        flags = [*SHAPE, "--dtype=float32", "--device=cpu", "--cpu_threads=1", "--max_iters=2", "--eval_interval=1"]
        sound = fuzz.call("train", "--init_from=scratch", "--dataset=data", "--out_dir=run", *flags)
        assert sound.code == 0, sound.err
        write_model(Path("model"))
        sound = fuzz.call("prepare", "text.txt", "--tokenizer=model", "--out_dir=tokens", "--doctor=false")
        assert sound.code == 0, sound.err
        talk = [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "b"}]
        Path("talks.jsonl").write_text((json.dumps({"messages": talk}) + "\n") * 6)
    return place


def write_model(folder):
    """A model as somebody else may have made it, with every file that is read."""
    from finetune import GPT, GPTConfig
    from finetune.data.new_tokenizers import train_tokenizer

    end = "<|endoftext|>"
    train_tokenizer(["the quick brown fox jumps"] * 9, 290).save(folder)
    GPT.from_scratch(GPTConfig(8, 290, 1, 1, 8)).save_pretrained(folder)
    files = {
        "special_tokens_map.json": {"eos_token": end, "pad_token": {"content": end, "lstrip": False}},
        "generation_config.json": {"eos_token_id": [0, 1], "temperature": 0.7, "top_k": 5, "max_new_tokens": 9},
        "added_tokens.json": {end: 289},
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    template = "{% for m in messages %}{{ m['role'] + m['content'] }}{% endfor %}"
    (folder / "chat_template.jinja").write_text(template)


def write_files(folder, rows):
    """The same rows in every format that prepare reads."""
    import bz2
    import csv
    import gzip
    import lzma
    import tarfile
    import zipfile

    import pyarrow
    import pyarrow.feather
    import pyarrow.parquet

    folder.mkdir()
    with open(folder / "t.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    (folder / "t.jsonl").write_bytes(lines)
    (folder / "t.json").write_text(json.dumps(rows))
    talks = [{"messages": [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "b"}]}] * 6
    (folder / "talks.json").write_text(json.dumps(talks))
    (folder / "t.tsv").write_bytes((folder / "t.csv").read_bytes().replace(b",", b"\t"))
    (folder / "t.txt").write_text("one line\n\nand another\n" * 20)
    (folder / "utf16.txt").write_text("ein wort\n" * 20, encoding="utf-16")
    table = pyarrow.Table.from_pylist(rows)
    pyarrow.parquet.write_table(table, folder / "t.parquet")
    pyarrow.feather.write_feather(table, folder / "t.arrow", compression="uncompressed")
    for name, module in (("gz", gzip), ("bz2", bz2), ("xz", lzma)):
        (folder / f"t.jsonl.{name}").write_bytes(module.compress(lines))
    with zipfile.ZipFile(folder / "t.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.jsonl", lines)
        archive.writestr("b.txt", "a text\n" * 9)
    with tarfile.open(folder / "t.tar.gz", "w:gz") as archive:
        archive.add(folder / "t.csv", "t.csv")


def kinds_of(verb):
    """{flag: type} of a verb."""
    options = importlib.import_module(f"finetune.{verb}").Options
    return {name: kind for name, kind in typing.get_type_hints(options).items() if name != "sources"}


@st.composite
def value_of(draw, kind):
    """A value that may be right for a type; one in eight is anything."""
    if not draw(st.integers(0, 7)):
        return draw(fuzz.values)
    parts = [part for part in typing.get_args(kind) or (kind,) if part is not type(None)]
    part = draw(st.sampled_from(parts))
    if part is str:
        return draw(fuzz.words)
    likely = {int: fuzz.SIZES, float: fuzz.RATES, bool: ["true", "false"]}
    return draw(st.sampled_from(likely.get(part) or list(typing.get_args(part)) or [part]))


@st.composite
def flags_of(draw, verb, without=()):
    kinds = {name: kind for name, kind in kinds_of(verb).items() if name not in {*without, *OUTSIDE}}
    chosen = draw(
        st.lists(st.sampled_from(sorted(kinds)), min_size=1, max_size=3, unique=True) if kinds else st.just([])
    )
    return [f"--{name}={draw(value_of(kinds[name]))}" for name in chosen]


@examples("arguments")
def test_arguments(base, data):
    """Any flags with any values in any verb, spelled in any way, over files that are not there."""
    verb = data.draw(st.sampled_from([*SOUND]))
    spelled = st.sampled_from(["--{}={}", "--{} {}", "{}={}", "--no_{}", "-{}", "--{}", "\u2014{}={}", "--{} = {}"])
    argv = []
    for _ in range(data.draw(st.integers(0, 4))):
        name = data.draw(st.one_of(st.sampled_from([*kinds_of(verb), "config", "help"]), fuzz.words))
        argv += data.draw(spelled).format(name, data.draw(fuzz.values)).split(" ")
    argv += data.draw(st.lists(fuzz.words, max_size=2))
    argv = [word for word in argv if "find_lr" not in word]
    if verb in ("train", "plan"):  # nothing to train on
        argv += ["--dataset=nowhere", "--init_from=scratch"]
    with fuzz.example(base, "data"):
        fuzz.check(verb, *argv, answers=data.draw(fuzz.words))


@examples("numbers")
def test_values(base, data):
    """A sound command with values of its flags that are out of all bounds."""
    verb = data.draw(st.sampled_from([*SOUND, "sample", "eval", "plan"]))
    with fuzz.example(base):
        fuzz.check(verb, *SOUND[verb], *data.draw(flags_of(verb, LONG)))


@examples("recipes")
def test_recipes(base, data):
    """Recipes of any keys and values, and broken in bytes."""
    kinds, lines = typing.get_type_hints(Recipe), []
    for _ in range(data.draw(st.integers(1, 4))):
        key = data.draw(st.sampled_from([*kinds, "base", "x"]))
        lines.append(f"{key}: {data.draw(st.one_of(value_of(kinds.get(key, str)), st.sampled_from(YAML)))}")
    dataset = data.draw(st.sampled_from(["data", "nowhere"]))
    content = "\n".join([f"dataset: {dataset}", "init_from: scratch", *lines]).encode("utf-8", "surrogatepass") + b"\n"
    if data.draw(st.booleans()):
        content = data.draw(fuzz.changed_bytes(content))
    verb = data.draw(st.sampled_from(["train", "plan", "train", "recipes"]))
    name = data.draw(st.sampled_from(["recipe.yaml", "recipe.yaml", "recipe.yml", "nano.py"]))
    with fuzz.example(base, "data"):
        Path(name).write_bytes(content)
        end = (
            []
            if verb == "recipes"
            else ["--max_iters=0", "--out_dir=new", "--find_lr=false"][: 2 if verb == "train" else 3]
        )
        fuzz.check(verb, name, *end)


YAML = [
    "[a, b]",
    "{a: b}",
    "&a [*a]",
    "!!python/name:os.system ''",
    "!!binary aaaa",
    "|\n  a\n  b",
    "'",
    '"\\x1b"',
    "? a",
]
YAML += [
    "recipe.yaml",
    "[recipe.yaml, small]",
    "small",
    "FILE:text.txt",
    "[" * 5000,
    "{a: " * 5000,
    "data",
    "2026-01-01",
    "0o7",
]


@examples("texts")
def test_texts(base, data):
    """Damaged files of every format, prepared or examined."""
    name = data.draw(st.sampled_from(sorted(path.name for path in (base / "files").iterdir())))
    content = (base / "files" / name).read_bytes()
    if name.endswith(".json") and data.draw(st.booleans()):
        content = data.draw(fuzz.changed_json(json.loads(content)))
    else:
        content = data.draw(fuzz.changed_bytes(content))
    suffix = data.draw(
        st.sampled_from([name] * 5 + ["t.txt", "t.csv", "t.jsonl", "t.json", "t.gz", "t.zip", "t.parquet"])
    )
    verb = data.draw(st.sampled_from(["prepare", "prepare", "prepare", "doctor"]))
    with fuzz.example(base, "files"):
        Path(suffix).write_bytes(content)
        argv = {"prepare": ["--tokenizer=char", "--out_dir=new", "--doctor=false"], "doctor": []}[verb]
        fuzz.check(verb, suffix, *argv)


@examples("data")
def test_prepared_data(base, data):
    """Damaged bins and descriptions of them, trained on, planned, examined and measured."""
    with fuzz.example(base):
        name = data.draw(st.sampled_from(["meta.json", "meta.json", "train.bin", "val.bin", "meta.pkl"]))
        if name == "meta.pkl":
            Path("data/meta.json").unlink()
            letters = {"vocab_size": 5, "itos": dict(enumerate("abcde")), "stoi": {c: i for i, c in enumerate("abcde")}}
            Path("data/meta.pkl").write_bytes(pickle.dumps(letters))
        change(data, Path("data", name))
        verb, *argv = data.draw(st.sampled_from(OVER_DATA))
        fuzz.check(verb, *argv)


OVER_DATA = [
    ["train", *SCRATCH, "--eval_only=true"],
    ["plan", "--quick", *SCRATCH],
    ["doctor", "data"],
    ["eval", "--init_from=run/best", "--dataset=data", "--device=cpu"],
    ["eval", "--out_dir=run", "--device=cpu"],
    ["sample", "--out_dir=run", "--max_copy=3", "--num_samples=1", "--max_new_tokens=2", "--device=cpu"],
    ["prepare", "text.txt", "--tokenizer=char", "--keep_split=data", "--out_dir=new", "--doctor=false"],
    ["prepare", "text.txt", "--tokenizer=char", "--out_dir=data", "--doctor=false"],
    ["train", "--init_from=resume", "--dataset=data", "--out_dir=run", *FAST],
]


@examples("runs")
def test_runs(base, data):
    """Damaged files of a run and of a model, read by every command that reads them."""
    with fuzz.example(base):
        kinds = (".json", ".jsonl", ".yaml", ".jinja", ".safetensors")
        files = sorted(path for path in Path("run").rglob("*") if path.suffix in kinds)
        path = data.draw(st.sampled_from(files))
        change(data, path)
        if path.parent.name != "run" and path.name != "manifest.json":
            data.draw(st.sampled_from([fuzz.sign, fuzz.sign, unsigned, os.path.lexists]))(path)
        verb, *argv = data.draw(st.sampled_from(OVER_RUNS))
        fuzz.check(verb, *argv)


def unsigned(path):
    """A model of somebody else has no manifest."""
    (path.parent / "manifest.json").unlink()


OVER_RUNS = [
    ["report", "--out_dir=run"],
    ["compare", "run", "run"],
    ["diagnose", "--out_dir=run"],
    ["eval", "--out_dir=run", "--device=cpu"],
    ["eval", "--init_from=run/best", "--dataset=data", "--device=cpu"],
    ["sample", "--out_dir=run", "--num_samples=1", "--max_new_tokens=2", "--device=cpu"],
    ["sample", "--init_from=run/best", "--num_samples=1", "--max_new_tokens=2", "--device=cpu"],
    ["export", "--out_dir=run", "--to=new"],
    ["export", "--init_from=run/best", "--to=new", "--format=nanogpt"],
    ["plan", "--quick", "--init_from=run", "--dataset=data"],
    ["plan", "--quick", "run/recipe.yaml", "--init_from=resume"],
    ["prepare", "text.txt", "--tokenizer=run/best", "--out_dir=new", "--doctor=false"],
    ["train", "run/recipe.yaml", "--init_from=resume", "--max_iters=3"],
    ["train", "--init_from=run/best", "--dataset=data", "--out_dir=new", "--max_iters=1", "--eval_only=true"],
]


@examples("models")
def test_models_of_others(base, data):
    """Damaged parts of a model and its tokenizer, in every command that takes one."""
    with fuzz.example(base):
        path = data.draw(st.sampled_from(sorted(path for path in Path("model").iterdir() if path.suffix != ".txt")))
        change(data, path)
        verb, *argv = data.draw(st.sampled_from(OVER_MODELS))
        fuzz.check(verb, *argv)


OVER_MODELS = [
    ["sample", "--init_from=model", "--num_samples=1", "--max_new_tokens=2", "--device=cpu"],
    ["export", "--init_from=model", "--to=new"],
    ["export", "--init_from=model", "--to=new", "--format=gguf"],
    ["plan", "--quick", "--init_from=model", "--dataset=tokens"],
    ["prepare", "text.txt", "--tokenizer=model", "--out_dir=new", "--doctor=false"],
    ["prepare", "talks.jsonl", "--tokenizer=model", "--out_dir=new", "--doctor=false"],
    ["train", "--init_from=model", "--dataset=tokens", "--out_dir=new", "--max_iters=1", "--eval_only=true"],
    ["eval", "--out_dir=run", "--baseline=model", "--device=cpu"],
]


@examples("network")
def test_names_of_the_hub_without_one(base, data):
    """Flags that reach the network, with any names, where nothing can be reached."""
    flags = [("export", "push_to_hub"), ("export", "init_from"), ("sample", "init_from"), ("prepare", "tokenizer")]
    flags += [("prepare", "SOURCE"), ("eval", "baseline"), ("train", "init_from"), ("export", "revision")]
    verb, flag = data.draw(st.sampled_from(flags))
    name = data.draw(
        st.one_of(st.sampled_from(["owner/name", "a/b/c", "owner/", "/", "a//b", "a/..", "o/n@x"]), fuzz.words)
    )
    with pytest.MonkeyPatch.context() as patch, fuzz.example(base):
        patch.setenv("HF_TOKEN", "hf_x")
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", "cache")
        patch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
        more = ["--push_to_hub=owner/name"] if flag == "revision" else []
        fuzz.check(verb, *SOUND[verb], *more, name if flag == "SOURCE" else f"--{flag}={name}")


def change(data, path):
    """Damage a file: a value of its JSON, or its bytes."""
    content = path.read_bytes()
    if path.suffix in (".json", ".jsonl") and data.draw(st.integers(0, 3)):
        if path.suffix == ".json":
            content = data.draw(fuzz.changed_json(json.loads(content)))
        else:
            lines = content.splitlines(keepends=True)
            number = data.draw(st.integers(0, len(lines) - 1))
            lines[number] = data.draw(fuzz.changed_json(json.loads(lines[number]))) + b"\n"
            content = b"".join(lines)
    else:
        content = data.draw(fuzz.changed_bytes(content))
    path.write_bytes(content)
