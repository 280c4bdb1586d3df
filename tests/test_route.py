"""A fresh reader's route: README.md and docs/quickstart.md, their commands copied in order, lead from a text to a model
on the Hub.

Every block runs as it is written, by bash or python. What stands in for the world:

    what the docs name      what it is here
    the Hub, and a login    tests/stand_in_hub.py, by HF_ENDPOINT and HF_TOKEN
    gpt2                    on that Hub: two layers of GPT2LMHeadModel, 256 positions, a byte-level BPE of 500 ids
    the rest of the net     a proxy that nobody listens at
    this repository         its recipes/, in a directory of the reader's
    my.txt                  topics of Python's help
    a GPU                   none, and one core, as several are slower at so little work while others want them too
    a start of Python       a fork (tests/warm_shell.py); with -m slow a process of its own

No command is changed for it, so a recipe of 124M parameters trains in seconds.
"""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import warm_shell
from stand_in_hub import TOKEN, serving

ROOT = Path(__file__).parents[1]
README, QUICKSTART = ((ROOT / page).read_text(encoding="utf-8") for page in ("README.md", "docs/quickstart.md"))
REPOSITORY = "USER/NAME"

# blocks that are not run, and why
SKIPPED = {
    "python3 -m venv .venv && . .venv/bin/activate && pip install -e . && finetune train quickstart": (
        "installs, and trains for a minute; test_commands.py runs that recipe in short"
    ),
    "python3 -m venv .venv && . .venv/bin/activate && pip install -e '.[test]' && pytest": (
        "installs, and would run this test again; .ci/run does"
    ),
    "python3 -m venv .venv && . .venv/bin/activate && pip install -e .": "installs",
    "finetune train recipes/quickstart.yaml": ("trains for a minute; test_commands.py runs it in short"),
    "finetune plan recipes/small.yaml --dataset=data/mine --quick=true": (
        "knows the shape of the real gpt2, to which these data are strange; test_plan.py runs it"
    ),
    "hf auth login": "asks for a token, which HF_TOKEN has here",
    "accelerate config\n"
    "accelerate launch -m finetune.train recipes/medium.yaml --dataset=data/mine --out_dir=out-medium": (
        "asks about GPUs"
    ),
}

# blocks beside the way, which take as long again: run with -m slow
VARIATIONS = {
    "\n".join(
        f"finetune prepare {sources} --out_dir=data/{name}"
        for sources, name in [
            ("notes/ more.txt", "notes"),
            ("'src/**/*.py'", "code"),
            ("articles.jsonl --text_column=body", "articles"),
            ("answers.jsonl", "answers"),
            ("talks.jsonl", "talks"),
        ]
    ): "step 2 again with other data",
    "finetune train out-mine/recipe.yaml --init_from=resume": "finds nothing left to do",
}


def blocks(page):
    """The blocks of a page that are meant to be copied, as (language, text)."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page, re.S | re.M)
    assert {language for language, _ in found} <= {"", "sh", "python", "yaml"}, "a language that nobody would run"
    return [(language, text) for language, text in found if language in ("sh", "python")]


def first_line(text):
    return text.splitlines()[0]


def to_run(page, left_out):
    return [block for block in blocks(page) if block[1].strip() not in left_out]


def route(left_out):
    """The blocks of both pages, each once: those of the README in their order, and those of the quickstart in
    theirs."""
    merged, rest = [], to_run(QUICKSTART, left_out)
    for block in to_run(README, left_out):
        if block in rest:
            upto = rest.index(block) + 1
            merged, rest = merged + rest[:upto], rest[upto:]
        else:
            assert block not in merged, f"README and quickstart have this in another order: {block[1]}"
            merged.append(block)
    return merged + rest


def test_every_block_that_is_skipped_is_there():
    assert {*SKIPPED, *VARIATIONS} <= {text.strip() for page in (README, QUICKSTART) for _, text in blocks(page)}


@pytest.fixture
def gpt2(hf_model, bpe_directory):
    """The files of a tiny model that passes for GPT-2."""
    directory = bpe_directory("\n".join(topics.values()), "gpt2", vocab_size=500)
    ids = len(json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"])
    hf_model(vocab_size=ids, n_positions=256, bos_token_id=0, eos_token_id=0).save_pretrained(directory)
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def write_data():
    """What the reader brings along: 24,000 characters are some 10,000 tokens of this gpt2."""
    texts = [text.strip() for _, text in sorted(topics.items()) if 1000 < len(text) < 3000]
    Path("my.txt").write_text("\n\n".join(texts)[:24_000], encoding="utf-8")
    Path("more.txt").write_text(texts[0], encoding="utf-8")
    for folder, ending in (("notes", "md"), ("src", "py")):
        Path(folder).mkdir()
        for number, text in enumerate(texts[1:12]):
            Path(f"{folder}/{number}.{ending}").write_text(text, encoding="utf-8")
    tables = {
        "articles": [{"body": text, "title": first_line(text)} for text in texts],
        "answers": [{"prompt": first_line(text), "completion": text[:400]} for text in texts],
        "talks": [
            {"messages": [{"role": "user", "content": first_line(text)}, {"role": "assistant", "content": text[:400]}]}
            for text in texts
        ],
    }
    for name, rows in tables.items():
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def environment(hub, home):
    """That of a reader who is logged in to a Hub and reaches nothing else."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not re.match("HF_|HUGGING|TRANSFORMERS_|ACCELERATE_|WANDB|.*_proxy", name, re.I)
    }
    nowhere = "http://127.0.0.1:9"
    return inherited | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HOME": str(home),
        "TIKTOKEN_CACHE_DIR": str(home),
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": TOKEN,
        "HF_HOME": str(home / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "http_proxy": nowhere,
        "https_proxy": nowhere,
        "no_proxy": "127.0.0.1",
    }


@pytest.fixture
def one_core():
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    if cores:
        os.sched_setaffinity(0, {max(cores)})  # processes that are started from here inherit it
    yield
    if cores:
        os.sched_setaffinity(0, cores)


def there():
    """What lies in this directory and in those in it."""
    return {str(path) for pattern in ("*", "*/*") for path in Path().glob(pattern)}


@pytest.mark.parametrize(
    "is_whole",
    [pytest.param(False, marks=pytest.mark.heavy), pytest.param(True, marks=pytest.mark.slow)],
    ids=["the way", "with its variations"],
)
def test_a_fresh_reader_comes_to_a_model_on_the_hub(gpt2, one_core, tmp_path, monkeypatch, is_whole):
    home, place = tmp_path / "home", tmp_path / "place"
    home.mkdir()
    shutil.copytree(ROOT / "recipes", place / "recipes")
    monkeypatch.chdir(place)
    write_data()
    left_out = SKIPPED if is_whole else SKIPPED | VARIATIONS
    shell = {"sh": ["bash", "-e", "-c"], "python": ["python", "-c"]}
    outputs = {}
    with serving() as hub, contextlib.ExitStack() as stack:
        variables = environment(hub, home)
        if not is_whole:
            stack.enter_context(warm_shell.serving(variables, tmp_path / "programs"))
            variables["PATH"] = f"{tmp_path / 'programs'}{os.pathsep}{variables['PATH']}"
        hub.repositories["gpt2"] = {"private": False, "files": gpt2}
        for language, text in route(left_out):
            before, began = there(), time.perf_counter()
            done = subprocess.run([*shell[language], text], capture_output=True, text=True, env=variables, timeout=600)
            assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
            print(f"{time.perf_counter() - began:5.1f} s  {first_line(text)}")
            outputs[text] = done.stdout
            for page in (README, QUICKSTART):  # each must do without what only the other one makes
                if (language, text) not in blocks(page):
                    others = "\n".join(other for _, other in to_run(page, left_out))
                    made = [
                        name
                        for name in there() - before
                        if re.search(rf"(?<![\w/.-]){re.escape(name)}(?![\w-])", others)
                    ]
                    assert not made, f"{made} of {text}"
        held = hub.repositories[REPOSITORY]
        asked = [path for _, path in hub.requests if path.startswith(f"{REPOSITORY}/resolve")]
    losses = [
        event
        for event in map(json.loads, Path("out-mine/metrics.jsonl").read_text().splitlines())
        if event["event"] == "eval"
    ]
    assert min(event["val_loss"] for event in losses) < losses[0]["val_loss"]
    assert (
        held["private"]
        and held["files"]["model.safetensors"]
        == Path("mine/model.safetensors").read_bytes()
        != gpt2["model.safetensors"]
    )
    # what the quickstart ends its way to the Hub with has loaded that repository, and nothing that lies here
    told = next(told for text, told in outputs.items() if "import" in text and REPOSITORY in text)
    assert told.startswith("Once upon a time")  # what follows is drawn without a seed, and may end at once
    assert any(path.endswith("model.safetensors") for path in asked)
