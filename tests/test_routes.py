"""Three people's routes, docs/routes/*.md: every command as it is written, in order, with what those people bring."""

import csv
import io
import json
import re
import shlex
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import torch
from stand_in_hub import TOKEN, serving

ROUTES = Path(__file__).parents[1] / "docs/routes"
PAGES = {path.stem: path.read_text(encoding="utf-8") for path in sorted(ROUTES.glob("*.md"))}
TEXTS = [text.strip() for _, text in sorted(topics.items()) if 1000 < len(text) < 3000][:24]


def brings_texts():
    Path("novels").mkdir()
    for number, text in enumerate([*TEXTS, TEXTS[0]]):
        Path(f"novels/{number}.txt").write_text(text, encoding="utf-8")


def brings_table():
    with open("tickets.csv", "w", encoding="utf-8-sig", newline="") as file:
        rows = csv.writer(file, delimiter=";")
        rows.writerow(["id", "product", "question", "answer"])
        rows.writerows([1000 + n, "router", text.splitlines()[0], text[:300]] for n, text in enumerate(TEXTS))


def brings_bins(command):
    """Bins and a checkpoint of characters, with their meta.pkl, as nanoGPT leaves them."""
    Path("my.txt").write_text("\n".join(TEXTS)[:20_000], encoding="utf-8")
    shape = "--n_layer=1 --n_head=2 --n_embd=16 --block_size=32 --batch_size=2 --max_iters=2 --tokenizer=char".split()
    for verb, *flags in (
        ["train", "--init_from=scratch", "--dataset=my.txt", "--out_dir=made", "--device=cpu", *shape],
        ["export", "made", "--to=out", "--format=nanogpt"],
    ):
        code, _, error = command(verb, *flags)
        assert code == 0, error
    made = next(path for path in Path("data").iterdir())
    made.rename("data/mine")
    for name in ("meta.json", "tokenizer.json"):
        Path("data/mine", name).unlink(missing_ok=True)
    assert {"train.bin", "val.bin", "meta.pkl"} <= {path.name for path in Path("data/mine").iterdir()}


@pytest.fixture
def gpt2(hf_model, bpe_directory, monkeypatch):
    """A Hub whose gpt2 is a tiny model with a byte-level BPE of its own."""
    directory = bpe_directory("\n".join(topics.values()), "made-gpt2", vocab_size=500)
    ids = len(json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"])
    hf_model(vocab_size=ids, n_positions=256, bos_token_id=0, eos_token_id=0).save_pretrained(directory)
    with serving() as hub:
        hub.repositories["gpt2"] = {
            "private": False,
            "files": {path.name: path.read_bytes() for path in directory.iterdir()},
        }
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(Path("hub-cache").resolve()))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(Path("no-tiktoken").resolve()))
        yield hub


def commands(page):
    for block in re.findall(r"^```sh\n(.*?)^```$", page, re.S | re.M):
        for line in block.replace("\\\n", " ").splitlines():
            tool, *argv = shlex.split(line, comments=True)
            assert tool == "finetune", line
            if argv[0] != "plan":  # it knows the shape of the real gpt2, to which these data are strange
                yield argv


@pytest.mark.parametrize(
    "name", [name if name == "nanogpt" else pytest.param(name, marks=pytest.mark.heavy) for name in PAGES]
)
def test_a_route_leads_to_its_end(name, gpt2, command, monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    if name == "nanogpt":
        brings_bins(command)
    else:
        {"writer": brings_texts, "support": brings_table}[name]()
    for verb, *argv in commands(PAGES[name]):
        monkeypatch.setattr("sys.stdin", io.StringIO("How do I reset it?\n/exit\n"))  # which chat reads
        code, out, error = command(verb, *argv)
        assert code == 0, f"{verb} {argv}\n{out}\n{error}"
    events = [json.loads(line) for line in next(Path().glob("out-*/metrics.jsonl")).read_text().splitlines()]
    losses = [event["val_loss"] for event in events if event["event"] == "eval"]
    assert min(losses) < losses[0]


def test_a_route_is_short_and_leads_on():
    assert set(PAGES) == {"nanogpt", "support", "writer"}
    for page in PAGES.values():
        assert len(page.splitlines()) < 80
        assert "\nFor you if" in page and page.splitlines()[-1].startswith("Next: ")
