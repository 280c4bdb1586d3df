"""`USER/NAME@REVISION` as init_from: that version is read and its commit recorded; a wrong one is one line."""

import json
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file
from stand_in_hub import TOKEN, head, talking

from finetune import GPT
from finetune.common import hub_client
from finetune.gpt.pretrained import load_hub_config
from finetune.runs.model_card import without_folders

WORDS = "the quick brown fox jumps over the lazy dog " * 60


@pytest.fixture
def hub(monkeypatch, hf_model, bpe_directory):
    """A Hub with me/base: two versions on main, the older with the tag v1, and the branch trial/a like the older."""
    with talking(monkeypatch, TOKEN) as hub:
        files = {}
        for seed in (1, 2):
            directory = bpe_directory(WORDS, f"base {seed}")
            ids = len(json.loads(Path(directory, "tokenizer.json").read_text())["model"]["vocab"])
            hf_model(seed=seed, vocab_size=ids).save_pretrained(directory)
            files[seed] = {path.name: path.read_bytes() for path in Path(directory).iterdir()}
        old = head(files[1])
        branches = {"trial/a": files[1]}
        refs = {"branches": branches, "tags": {"v1": old}, "history": {old: files[1]}}
        hub.repositories["me/base"] = {"private": True, "files": files[2], **refs}
        hub.old = old
        yield hub


@pytest.fixture
def text():
    Path("words.txt").write_text(WORDS)
    return "words.txt"


TRAIN = "--max_iters=1 --batch_size=1 --gradient_accumulation_steps=1 --block_size=16 --dtype=float32".split()


def weight(directory):
    return load_file(Path(directory, "model.safetensors"))["transformer.wte.weight"]


def test_a_branch_a_tag_and_a_commit_are_read(hub, command):
    wanted = {None: "base 2", "main": "base 2", "v1": "base 1", "trial/a": "base 1", hub.old: "base 1"}
    for revision, directory in wanted.items():
        name = "me/base" if revision is None else f"me/base@{revision}"
        model = GPT.from_pretrained(name)
        assert (model.wte.weight[: len(weight(directory))] == weight(directory)).all(), name
        before = len(hub.requests)
        GPT.from_pretrained(name)
        assert len(hub.requests) == before, "asked once a minute"
    code, out, error = command("export", "--init_from=me/base@v1", "--to=mine")
    assert code == 0 and (weight("mine") == weight("base 1")).all(), error


def first_weight(name):
    return GPT.from_pretrained(name).wte.weight[:20]


def read_before_a_change(hub):
    """Read me/base at its first commit; then the Hub has the second."""
    repository = hub.repositories["me/base"]
    newer, repository["files"] = repository["files"], repository["history"][hub.old]
    assert first_weight("me/base").equal(weight("base 1")[:20])
    repository["files"] = newer


def test_a_model_that_changed_on_the_hub_is_read_anew(hub, monkeypatch, capsys):
    """As transformers does, of which huggingface_hub keeps the newest commit in the same cache."""
    monkeypatch.setattr(hub_client, "COMMIT_SECONDS", 0)
    read_before_a_change(hub)
    assert first_weight("me/base").equal(weight("base 2")[:20])
    assert load_hub_config("me/base").vocab_size == len(weight("base 2"))
    before = len(hub.requests)
    assert first_weight(f"me/base@{hub.old}").equal(weight("base 1")[:20])
    assert len(hub.requests) == before, "a commit that is here needs no Hub"
    assert not capsys.readouterr().err


def test_a_newer_model_that_cannot_be_downloaded_is_told(hub, monkeypatch, capsys):
    monkeypatch.setattr(hub_client, "PAUSE_SECONDS", 0.01)
    read_before_a_change(hub)
    hub_client.ask_again("me/base")
    hub.before = lambda method, path: 503 if "/resolve/" in path else None
    assert first_weight("me/base").equal(weight("base 1")[:20])
    told = capsys.readouterr().err
    assert "answered 503" in told and "the copy in the cache is used" in told and hub.old[:10] in told


@pytest.mark.parametrize("refusal", [503, 404, "silent", "offline"])
def test_a_hub_that_does_not_answer_leaves_the_model_in_the_cache(hub, monkeypatch, capsys, refusal):
    monkeypatch.setattr(hub_client, "PAUSE_SECONDS", 0.01)
    wanted, commit = first_weight("me/base"), head(hub.repositories["me/base"]["files"])
    hub_client.ask_again("me/base")
    if refusal == "offline":
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    elif refusal == "silent":
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    else:
        hub.before = lambda method, path: refusal
    assert first_weight("me/base").equal(wanted)
    told = capsys.readouterr().err
    assert not told if refusal == "offline" else (told.count("\n") == 1 and commit[:10] in told and "me/base" in told)


@pytest.mark.parametrize(
    ("name", "told"),
    {
        "me/base@v9": "the model me/base of the Hub has no branch, tag or commit v9",
        "me/base@" + "a" * 40: "has no branch, tag or commit aaaa",
        "me/base@": "the name of a Hub model ends in @ and a branch, tag or commit",
        "me/none@v1": "no such model on the Hub",
        "@v1": "not the name of a Hub model either",
        "./me/base@v1": "no such file or directory",
        "me/base.pt@v1": "no such file or directory",
    }.items(),
)
def test_what_is_not_there_is_one_line(hub, command, text, name, told):
    assert command("prepare", text, "--tokenizer=base 1", "--out_dir=words")[0] == 0
    calls = {
        "train": (f"--dataset={text}", "--out_dir=out", *TRAIN),
        "plan": ("--dataset=words", "--quick=true"),
        "eval": ("--dataset=words",),
        "sample": ("--num_samples=1",),
        "export": ("--to=mine",),
    }
    for verb, flags in calls.items():
        code, out, error = command(verb, f"--init_from={name}", *flags)
        assert code == 2 and told in error and len(error.splitlines()) == 1, (verb, error)
    assert not Path("out").exists() and not Path("mine").exists()


def test_every_command_takes_it(hub, command, text):
    code, out, error = command("prepare", text, "--tokenizer=me/base@v1", "--out_dir=words")
    assert code == 0, error
    code, out, error = command("plan", "--init_from=me/base@v1", "--dataset=words", "--block_size=16", "--quick=true")
    assert code == 0 and "me/base@v1" in out, error
    losses = []
    for source in ("me/base@v1", "base 1"):
        code, out, error = command(
            "eval", f"--init_from={source}", "--dataset=words", "--block_size=16", "--dtype=float32", "--json=true"
        )
        assert code == 0, error
        losses.append(json.loads(out)["loss"])
    assert losses[0] == losses[1]
    drawn = []
    for source in ("me/base@v1", "base 1"):
        code, out, error = command(
            "sample", f"--init_from={source}", "--num_samples=1", "--max_new_tokens=5", "--start=the", "--dtype=float32"
        )
        assert code == 0, error
        drawn.append(out.splitlines()[-1])
    assert drawn[0] == drawn[1]


def test_a_run_records_the_commit(hub, command, text):
    code, out, error = command("train", "--init_from=me/base@v1", f"--dataset={text}", "--out_dir=out", *TRAIN)
    assert code == 0 and f"initializing from me/base@{hub.old}" in out, error
    pinned = f"me/base@{hub.old}"
    facts = json.loads(Path("out/best/finetune.json").read_text())
    assert (facts["init_from"], facts["base_model"]) == (pinned, "me/base")
    assert yaml.safe_load(Path("out/recipe.yaml").read_text())["init_from"] == pinned
    start = json.loads(Path("out/metrics.jsonl").read_text().splitlines()[0])
    assert start["recipe"]["init_from"] == pinned
    # the tag moves, and the run keeps to its base
    hub.repositories["me/base"]["tags"]["v1"] = head(hub.repositories["me/base"]["files"])
    code, out, error = command("export", "--out_dir=out", "--to=mine", "--interpolate=0")
    assert code == 0 and (weight("mine") == weight("base 1")).all(), error
    exported = json.loads(Path("mine/finetune.json").read_text())
    assert (exported["init_from"], exported["base_model"]) == (pinned, "me/base")
    card = Path("mine/README.md").read_text()
    assert yaml.safe_load(card.split("---\n")[1])["base_model"] == "me/base"
    assert f"trained from me/base, commit {hub.old[:12]}," in card


def test_adapters_name_their_base_and_its_commit(hub, command, text):
    flags = ("--init_from=me/base@v1", f"--dataset={text}", "--out_dir=out", "--lora_rank=2", *TRAIN)
    code, out, error = command("train", *flags)
    assert code == 0, error
    code, out, error = command("export", "--out_dir=out", "--to=mine", "--format=peft")
    assert code == 0, error
    for directory in ("out/best/adapter", "mine"):
        config = json.loads(Path(directory, "adapter_config.json").read_text())
        assert (config["base_model_name_or_path"], config["revision"]) == ("me/base", hub.old)
    assert f"from_pretrained('me/base', revision='{hub.old}')" in Path("mine/README.md").read_text()
    code, out, error = command("train", "out/recipe.yaml", "--init_from=resume", "--max_iters=2")
    assert code == 0 and "resuming out at iteration 1" in out, error


def test_a_directory_with_an_at_sign_is_a_directory(hub, command):
    Path("me").mkdir()
    Path("base 2").rename("me/base@v1")
    assert (GPT.from_pretrained("me/base@v1").wte.weight[: len(weight("base 1"))] == weight("me/base@v1")).all()
    assert hub.requests == []


def test_the_name_in_a_card_stays_whole():
    commit = "0123456789" * 4
    assert without_folders(f"me/base@{commit}") == f"me/base@{commit}"
    assert without_folders("/home/me/base@v1") == "base@v1"
