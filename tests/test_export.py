"""An export is what the model was: transformers and nanoGPT get the same weights, ids and logits, or nothing is
exported."""

import importlib.metadata
import json
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from finetune import GPT
from finetune.config.recipe import Recipe
from finetune.data import dataset as data_dataset
from finetune.data import tokenizer as tokenizers
from finetune.data.prepare import prepare
from finetune.runs.events import read_metrics
from finetune.runs.model_card import model_card
from finetune.training import trainer

HARD = (
    "Hello world's  end\n\n don't 12345 na\u00efve \u6771\u4eac \U0001f600\u200d\U0001f467 e\u0301\t\x00 \u2028 ~"
    " \ufb01 "
)
SMALL = {
    "n_layer": 2,
    "n_head": 2,
    "n_embd": 32,
    "block_size": 32,
    "batch_size": 4,
    "gradient_accumulation_steps": 1,
    "max_iters": 60,
    "eval_interval": 20,
    "learning_rate": 1e-2,
    "device": "cpu",
    "dtype": "float32",
    "cpu_threads": 1,
}

SHAPE_OF_BASE = dict.fromkeys(("n_layer", "n_head", "n_embd", "block_size"))


def words(seed, count=2400):
    rng = random.Random(seed)
    dictionary = ["".join(rng.choice("abcdefghij") for _ in range(rng.randint(2, 7))) for _ in range(60)]
    return "".join(" ".join(rng.choice(dictionary) for _ in range(8)).capitalize() + ".\n" for _ in range(count // 8))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A directory with a character run from scratch, `base`, and one finetuned from it on another text, `tuned`. Not to
    be changed."""
    place = tmp_path_factory.mktemp("runs")
    for name, seed, start in (("base", 0, "scratch"), ("tuned", 1, str(place / "base"))):
        (place / f"{name}.txt").write_text(words(seed))
        prepare([str(place / f"{name}.txt")], place / "data" / name, "char" if name == "base" else str(place / "base"))
        inputs = {"init_from": start, "dataset": str(place / "data" / name), "out_dir": str(place / name)}
        change = {} if name == "base" else {**SHAPE_OF_BASE, "num_samples": 2, "max_new_tokens": 20}
        trainer.train(Recipe(**{**SMALL, **change, **inputs}))
    return place


@pytest.fixture
def model_directory(hf_model):
    """A function that makes a Hugging Face directory by transformers, with the tokenizer that is given."""

    def make(tokenizer, name="model", **shape):
        theirs = hf_model(
            vocab_size=tokenizer.vocab_size, bos_token_id=tokenizer.eot, eos_token_id=tokenizer.eot, **shape
        )
        theirs.save_pretrained(name)
        tokenizer.save(name, theirs.config.n_positions)
        return theirs

    return make


def verification(directory):
    return json.loads(Path(directory, "verification.json").read_text())


def test_round_trips_leave_every_tensor_as_it_was(model_directory, command):
    """Hugging Face -> ours -> Hugging Face -> nanoGPT -> ours."""
    theirs = model_directory(tokenizers.CharTokenizer(sorted(set(HARD))))
    for flags in (
        ["--init_from=model", "--to=hf"],
        ["--init_from=hf", "--to=nano", "--format=nanogpt"],
        ["--init_from=nano", "--to=back"],
    ):
        code, out, error = command("export", *flags)
        assert code == 0, error
    original = load_file("model/model.safetensors")
    for directory in ("hf", "back"):
        exported = load_file(f"{directory}/model.safetensors")
        assert exported.keys() == original.keys() and all(
            torch.equal(exported[name], original[name]) for name in original
        )
        assert tokenizers.from_directory(directory).chars == sorted(set(HARD))
    ours = GPT.from_pretrained("nano")
    idx = torch.arange(32)[None] % 20
    # the activation is remembered too
    torch.testing.assert_close(ours.eval()(idx), theirs(idx).logits, rtol=1e-5, atol=1e-4)
    config, wanted = (json.loads(Path(directory, "config.json").read_text()) for directory in ("back", "model"))
    assert all(
        config[name] == wanted[name]
        for name in ("activation_function", "n_positions", "vocab_size", "bos_token_id", "eos_token_id")
    )


def test_a_character_export_is_what_transformers_loads(runs, command):
    from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

    code, out, error = command("export", f"--out_dir={runs / 'base'}", "--to=mine")
    assert code == 0, error
    assert {path.name for path in Path("mine").iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "README.md",
        "loss.png",
        "finetune.json",
        "verification.json",
        "manifest.json",
    }
    model, tokenizer = AutoModelForCausalLM.from_pretrained("mine"), AutoTokenizer.from_pretrained("mine")
    ours, text = GPT.from_pretrained(runs / "base").eval(), "Abcd efg.\nHij"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert ids == tokenizers.from_directory(runs / "base" / "best").encode(text).tolist()
    torch.testing.assert_close(model(torch.tensor([ids])).logits, ours(torch.tensor([ids])), rtol=1e-5, atol=1e-5)
    assert pipeline("text-generation", "mine")("Abc")[0]["generated_text"].startswith("Abc")
    found = verification("mine")
    assert found["max_difference"] <= found["tolerance"] and found["ids_compared"] > 100
    assert found["versions"]["torch"] == importlib.metadata.version("torch")
    assert f"{found['ids_compared']:,} ids equal" in out


def test_a_bpe_export_has_tiktokens_ids(model_directory, bpe_directory, command):
    """tiktoken, given the exported vocabulary by transformers' own table of letters, on hard Unicode."""
    import tiktoken
    from tiktoken_ext.openai_public import r50k_pat_str
    from transformers import AutoTokenizer, pipeline
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    model_directory(tokenizers.from_directory(bpe_directory(HARD * 3 + "the quick brown fox ")))
    code, _, error = command("export", "--init_from=model", "--to=mine")
    assert code == 0, error
    numbers = {letter: byte for byte, letter in bytes_to_unicode().items()}
    vocab = json.loads(Path("mine/vocab.json").read_text())
    ranks = {bytes(numbers[letter] for letter in token): i for token, i in vocab.items() if token != "<|endoftext|>"}
    encoding = tiktoken.Encoding(
        "exported",
        pat_str=r50k_pat_str,
        mergeable_ranks=ranks,
        special_tokens={"<|endoftext|>": vocab["<|endoftext|>"]},
    )
    tokenizer = AutoTokenizer.from_pretrained("mine")
    rng = random.Random(0)
    anything = "".join(chr(rng.choice([rng.randrange(0xD800), rng.randrange(0xE000, 0x110000)])) for _ in range(3000))
    for text in (HARD, anything):
        assert tokenizer(text)["input_ids"] == encoding.encode_ordinary(text)
    assert Path("mine/merges.txt").read_text().startswith("#version")
    assert pipeline("text-generation", "mine")("the quick")[0]["generated_text"].startswith("the quick")


def test_a_tokenizer_that_adds_tokens_is_told(hf_model, bpe_directory, command):
    """pipeline() would put them before each prompt; training and sample never do."""
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer, PreTrainedTokenizerFast, pipeline

    directory = bpe_directory("the quick brown fox jumps over the lazy dog " * 9)
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(directory / "tokenizer.json"), bos_token="<|endoftext|>")
    theirs.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    theirs.save_pretrained(directory)
    hf_model(vocab_size=len(theirs)).save_pretrained(directory)
    code, out, error = command("export", f"--init_from={directory}", "--to=mine")
    assert code == 0 and "puts <|endoftext|> around a text" in out and "add_special_tokens=False" in out, error
    assert verification("mine")["special_tokens_added"] == ["<|endoftext|>"]
    ids = AutoTokenizer.from_pretrained("mine")("fox").input_ids
    assert ids[0] == 0 and tokenizers.from_directory(Path("mine")).encode("fox").tolist() == ids[1:]
    call = re.search(r"generator\('Once upon a time'(.*)\)\[0\]", Path("mine/README.md").read_text())[1]
    assert call == ", add_special_tokens=False"
    assert pipeline("text-generation", "mine")("fox", add_special_tokens=False)[0]["generated_text"].startswith("fox")


def test_gpt2s_own_vocabulary_has_tiktokens_ids(model_directory, command):
    import tiktoken
    from transformers import AutoTokenizer

    if not os.path.isdir(os.environ.get("TIKTOKEN_CACHE_DIR", "")):
        pytest.skip("TIKTOKEN_CACHE_DIR names no directory with GPT-2's vocabulary")
    model_directory(tokenizers.gpt2(), n_layer=1, n_head=1, n_embd=8)
    code, _, error = command("export", "--init_from=model", "--to=mine")
    assert code == 0, error
    rng, theirs = random.Random(0), tiktoken.get_encoding("gpt2")
    anything = "".join(chr(rng.choice([rng.randrange(0xD800), rng.randrange(0xE000, 0x110000)])) for _ in range(3000))
    for text in (HARD, anything):
        assert AutoTokenizer.from_pretrained("mine")(text)["input_ids"] == theirs.encode_ordinary(text)
    code, _, error = command("export", "--init_from=mine", "--to=nano", "--format=nanogpt")
    assert code == 0 and GPT.from_pretrained("nano").config == GPT.from_pretrained("mine").config, error


def test_an_export_that_is_not_read_back_as_it_was_is_none(runs, command, monkeypatch):
    from finetune.gpt import pretrained

    code, _, error = command("export", f"--out_dir={runs / 'base'}", "--to=mine")
    before = {path.name: path.read_bytes() for path in Path("mine").iterdir()}
    honest = pretrained.save

    def wrong(directory, tensors, config):
        honest(directory, tensors, config)
        stored = load_file(directory / "model.safetensors")
        stored["transformer.h.1.mlp.c_fc.bias"][0] += 0.1
        save_file(stored, directory / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(pretrained, "save", wrong)
    for to in ("mine", "other"):
        code, _, error = command("export", f"--out_dir={runs / 'tuned'}", f"--to={to}")
        assert code == 1 and "logits of transformers differ" in error and len(error.splitlines()) == 1
    assert {path.name: path.read_bytes() for path in Path("mine").iterdir()} == before
    assert [path.name for path in Path(".").iterdir()] == ["mine"]


def test_only_an_earlier_export_is_replaced(runs, command):
    code, _, error = command("export", f"--out_dir={runs / 'base'}", "--to=mine")
    inode = os.stat("mine/model.safetensors").st_ino
    code, out, error = command("export", f"--out_dir={runs / 'base'}", "--to=mine")
    assert code == 0 and "is this export already" in out and os.stat("mine/model.safetensors").st_ino == inode
    Path("mine/model.safetensors").write_bytes(b"cut")  # no longer whole, so it is written again
    code, out, error = command("export", f"--out_dir={runs / 'base'}", "--to=mine", "--dtype=bfloat16")
    assert code == 0, error
    stored = load_file("mine/model.safetensors")
    original = load_file(runs / "base" / "best" / "model.safetensors")
    assert all(torch.equal(stored[name], original[name].to(torch.bfloat16)) for name in original)
    assert json.loads(Path("mine/config.json").read_text())["dtype"] == "bfloat16"
    assert 1e-4 < verification("mine")["rounding"] < 1.0
    Path("kept").mkdir()
    Path("kept/notes.txt").write_text("mine")
    code, _, error = command("export", f"--out_dir={runs / 'base'}", "--to=kept")
    assert code == 2 and "was not written by an export" in error and os.listdir("kept") == ["notes.txt"]


def test_a_nanogpt_export_computes_what_was_trained(runs, command):
    """nanoGPT's arithmetic, written from its documented structure, on the tensors of ckpt.pt; it has the exact GELU
    only."""
    import pickle

    from test_weights import NanoGPT

    code, out, error = command("export", f"--out_dir={runs / 'base'}", "--to=nano", "--format=nanogpt")
    assert code == 0, error
    checkpoint = torch.load("nano/ckpt.pt", weights_only=True)
    assert set(checkpoint) == {"model", "model_args", "config", "iter_num", "best_val_loss"}
    args = checkpoint["model_args"]
    assert set(args) == {"n_layer", "n_head", "n_embd", "block_size", "bias", "vocab_size", "dropout"}
    ours, idx = GPT.from_pretrained("nano").eval(), torch.arange(20)[None]
    moved = (NanoGPT(checkpoint["model"], args["n_layer"], args["n_head"])(idx) - ours(idx)).abs().max().item()
    assert moved <= verification("nano")["max_difference_by_exact_gelu"] * 3 + 1e-5
    for block in ours.h:
        block.mlp.act = torch.nn.GELU()
    torch.testing.assert_close(
        NanoGPT(checkpoint["model"], args["n_layer"], args["n_head"])(idx), ours(idx), rtol=1e-5, atol=1e-5
    )
    meta = pickle.loads(Path("nano/meta.pkl").read_bytes())
    assert meta["vocab_size"] == args["vocab_size"] and "".join(meta["itos"][i] for i in range(3)) == "\n ."
    assert "cp " in out and checkpoint["config"]["dataset"] == "nano"


@pytest.mark.skipif("FINETUNE_NANOGPT" not in os.environ, reason="FINETUNE_NANOGPT names no checkout of nanoGPT")
def test_nanogpts_own_sample_script_runs_it(runs, command):
    code, _, error = command("export", f"--out_dir={runs / 'base'}", "--to=nano", "--format=nanogpt")
    shutil.copytree(os.environ["FINETUNE_NANOGPT"], "checkout", ignore=shutil.ignore_patterns(".git", "data", "out*"))
    Path("checkout/data/nano").mkdir(parents=True)
    shutil.copy("nano/meta.pkl", "checkout/data/nano")
    given = "--device=cpu --num_samples=2 --max_new_tokens=40 --start=Abc --dtype=float32"
    argv = [sys.executable, "sample.py", f"--out_dir={Path('nano').resolve()}", *given.split()]
    done = subprocess.run(argv, cwd="checkout", capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\nAbc") == 2 and "Loading meta from" in done.stdout


def validation_loss(directory, data):
    """Mean nats per token by transformers, block after block."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory).eval()
    ids, total = np.fromfile(Path(data, "val.bin"), dtype="<u2").astype(np.int64), 0.0
    with torch.no_grad():
        for first in range(0, len(ids) - 1, 32):
            block = torch.from_numpy(ids[first : first + 33])
            logits = model(block[None, :-1]).logits[0].double()
            total += torch.nn.functional.cross_entropy(logits, block[1:], reduction="sum").item()
    return total / (len(ids) - 1)


def test_interpolation_keeps_the_best_mixture_on_validation(runs, command):
    code, out, error = command("export", f"--out_dir={runs / 'tuned'}", "--to=mixed", "--interpolate=auto")
    assert code == 0, error
    mixture = verification("mixed")["interpolation"]
    losses = dict(map(tuple, mixture["losses"]))
    assert len(losses) == 11 and losses[mixture["weight"]] == min(losses.values()) and out.count("interpolate ") == 11
    best = json.loads((runs / "tuned" / "best" / "finetune.json").read_text())
    assert losses[1.0] == pytest.approx(best["val_loss"], abs=1e-5) and losses[0.0] > best["val_loss"]
    assert validation_loss("mixed", runs / "data" / "tuned") == pytest.approx(min(losses.values()), abs=1e-5)
    assert f"| {min(losses.values()):.4f} |" in Path("mixed/README.md").read_text()
    code, out, error = command("export", f"--out_dir={runs / 'tuned'}", "--to=mixed", "--interpolate=0.3")
    assert code == 0, error
    places = (runs / "base/best", runs / "tuned/best", Path("mixed"))
    base, tuned, mixed = (load_file(place / "model.safetensors") for place in places)
    for name in base:
        torch.testing.assert_close(mixed[name], 0.7 * base[name] + 0.3 * tuned[name], rtol=1e-5, atol=1e-6)
    assert json.loads(Path("mixed/finetune.json").read_text())["val_loss"] == pytest.approx(
        validation_loss("mixed", runs / "data/tuned"), abs=1e-5
    )


def test_interpolation_needs_its_base_and_its_data(runs, command):
    code, _, error = command("export", f"--out_dir={runs / 'base'}", "--to=mixed", "--interpolate=auto")
    assert code == 2 and "the run began from scratch" in error
    shutil.copytree(runs / "tuned", "tuned")
    for path in Path("tuned").glob("metrics.jsonl"):
        path.write_text(path.read_text().replace(str(runs / "data" / "tuned"), "moved"))
    shutil.copytree(runs / "data" / "tuned", "moved", ignore=shutil.ignore_patterns("meta.json", ".arrow"))
    Path("moved/val.bin").write_bytes(Path("moved/val.bin").read_bytes()[2:])
    code, _, error = command("export", "--out_dir=tuned", "--to=mixed", "--interpolate=auto")
    assert code == 2 and "moved changed since tuned was trained on it (its val.bin)" in error
    assert not Path("mixed").exists()


def test_the_card_says_what_was_recorded(runs, command, pictures):
    from huggingface_hub import ModelCard

    shutil.copytree(runs / "tuned", "tuned")
    events = read_metrics(Path("tuned/metrics.jsonl"))
    evaluation = {
        "event": "evaluation",
        "split": "val",
        "dataset": "/home/somebody/tuned",
        "loss": 1.25,
        "perplexity": 3.49,
        "bits_per_byte": 1.8034,
        "accuracy": 0.625,
        "targets": 1234,
        "baseline": {"name": "base", "loss": 2.5},
        "difference": {"mean": -1.25, "low": -1.5, "high": -1.0},
        "metrics": {"bleu": 12.5},
        "general": {"before": 3.0, "after": 3.5},
        "memorisation": {"ngram": 8, "copied": 0.031, "longest": 11},
    }
    with open("tuned/metrics.jsonl", "a") as file:
        file.write(json.dumps(evaluation) + "\n")
    code, _, error = command("export", "--out_dir=tuned", "--to=mine")
    assert code == 0, error
    card = ModelCard.load("mine/README.md")
    measured = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert measured == {"loss": 1.25, "perplexity": 3.49, "bits_per_byte": 1.8034, "accuracy": 0.625}
    assert {result.dataset_name for result in card.data.eval_results} == {"tuned"}
    text = card.content
    dataset = data_dataset.load(runs / "data" / "tuned")
    first = next(event for event in events if event["event"] == "eval")["val_loss"]
    best = json.loads(Path("tuned/best/finetune.json").read_text())
    for figure in (first, best["val_loss"]):
        assert f"| {figure:.4f} |" in text
    for figure in (dataset.num_tokens("train"), dataset.num_tokens("val"), dataset.num_bytes("train")):
        assert f" {figure:,} |" in text
    for told in (
        "trained from base on tuned",
        "tuned.txt",
        dataset.meta["sources"][0]["sha256"][:16],
        "| learning_rate | 0.01 |",
        "| loss of base | 2.5000 |",
        "-1.2500 (-1.5000 to -1.0000)",
        "| bleu | 12.5000 |",
        "| 3.1% |",
        "| 11 |",
        "![losses of the run](loss.png)",
        "pipeline('text-generation', 'mine')",
    ):
        assert told in text, told
    recorded = next(event for event in events if event["event"] == "samples")
    assert len(recorded["texts"]) == 2 and all(sample in text for sample in recorded["texts"])
    assert str(runs) not in text and "somebody" not in text and "More information" not in text
    assert str(runs) not in Path("mine/finetune.json").read_text() + Path("mine/verification.json").read_text()
    assert Path("mine/loss.png").read_bytes().startswith(b"\x89PNG")
    # while the run went on, best/ had the same card, without what came later
    early = (runs / "tuned" / "best" / "README.md").read_text()
    for part in ("trained from base on tuned", f"| {best['val_loss']:.4f} |", "| learning_rate | 0.01 |", "tuned.txt"):
        assert part in early


def test_a_card_tells_only_of_its_own_weights(runs):
    config, facts = GPT.from_pretrained(runs / "base").config, {"step": 20, "val_loss": 2.0}
    before = {"event": "best", "step": 20, "val_loss": 2.0}
    samples = {"event": "samples", "step": 20, "texts": ["Abc"], "temperature": 0.8, "top_k": 5, "seed": 1}
    assert "Abc" in model_card("x", "x", config, facts, [before, samples])
    newer = {**before, "step": 40}
    assert "Abc" not in model_card("x", "x", config, facts, [before, samples, newer])  # of an older best/
    assert "Abc" not in model_card("x", "x", config, facts, [newer, samples])  # of other weights
    later = {**samples, "step": 30, "texts": ["Def"]}
    assert "Def" not in model_card("x", "x", config, facts, [before, samples, later])  # drawn while training went on
    plain = model_card("x", "x", config, {}, [])
    assert "loss" not in plain and "None" not in plain and "## Data" not in plain
    nasty = {**samples, "texts": ["a\n```\n# not a heading"]}
    assert "````text\na\n```\n# not a heading\n````" in model_card("x", "x", config, facts, [before, nasty])


def test_no_name_breaks_the_card(runs):
    config, evil = GPT.from_pretrained(runs / "base").config, "a\n---\n# | b `c` [d](e) <script>f</script>"
    started = next(event for event in read_metrics(runs / "tuned" / "metrics.jsonl") if event["event"] == "start")
    started["recipe"]["dataset"] = started["machine"] = evil
    started["data"] |= {"tokenizer": evil, "sources": [{"name": evil, "sha256": "0" * 64}]}
    measured = {"event": "evaluation", "split": evil, "dataset": evil, "loss": 2.0, "metrics": {evil: 1.0}}
    events = [started, {"event": "best", "step": 20, "val_loss": 2.0}, measured]
    mixture = {"base": evil, "weight": 1.0, "losses": [[1.0, 2.0]], "chosen": True}
    for facts in (
        {"step": 20, "val_loss": 2.0, "init_from": evil},
        {"step": 20, "val_loss": 2.0, "base_model": evil},
        {"val_loss": 2.0, "init_from": evil, "interpolation": mixture},
    ):
        card = model_card(evil, evil, config, facts, events)
        _, metadata, text = re.split("^---$", card, flags=re.MULTILINE)
        assert yaml.safe_load(metadata)["model-index"][0]["name"] == evil
        words = re.sub("```.*?```", "", text, flags=re.DOTALL)
        assert "<" not in words and "](" not in words
        assert re.findall("^# .*", words, re.MULTILINE) == ["# a --- # b c d (e) &lt;script>f&lt;/script>"]
        assert {line.count("|") for line in words.splitlines() if "script" in line} <= {0, 3, 4}


def test_the_card_shows_a_chat_only_where_there_is_a_template(model_directory, bpe_directory, command):
    tokenizer = tokenizers.from_directory(bpe_directory(HARD * 3))
    tokenizer.files["chat_template.jinja"] = b"{{ messages[0]['content'] }}"
    model_directory(tokenizer)
    code, _, error = command("export", "--init_from=model", "--to=mine")
    assert code == 0, error
    assert "messages = [" in Path("mine/README.md").read_text() and Path("mine/chat_template.jinja").exists()


def without_best(runs):
    Path("broken/best").mkdir(parents=True)


def damaged(runs):
    shutil.copytree(runs / "base", "broken")
    Path("broken/best/model.safetensors").write_bytes(b"cut")


BAD = {
    "nothing to export": (None, ["--to=x"], "give --out_dir=OUT"),
    "nowhere to write": (None, ["--out_dir=x"], "give --to=DIR"),
    "a missing run": (None, ["--out_dir=bose", "--to=x"], "bose: no such directory; runs here: base"),
    "a directory that is no model": (
        lambda runs: Path("empty").mkdir(),
        ["--init_from=./empty", "--to=x"],
        "no model here",
    ),
    "a run without a model": (without_best, ["--out_dir=broken", "--to=x"], "no model here"),
    "a damaged model": (damaged, ["--out_dir=broken", "--to=x"], "model.safetensors has 3 bytes instead of"),
    "an unknown format": (None, ["--out_dir=base", "--to=x", "--format=ggml"], "expected one of hf, nanogpt"),
    "an unknown dtype": (None, ["--out_dir=base", "--to=x", "--dtype=int8"], "expected one of float32"),
    "a share above one": (None, ["--out_dir=base", "--to=x", "--interpolate=1.5"], "auto or a number from 0 to 1"),
    "interpolation without a run": (None, ["--init_from=base", "--to=x", "--interpolate=auto"], "give --out_dir=OUT"),
    "a file as destination": (lambda runs: Path("f").touch(), ["--out_dir=base", "--to=f"], "to f: is a file"),
    "below a file": (lambda runs: Path("f").touch(), ["--out_dir=base", "--to=f/x"], "cannot be written"),
    "the run itself as destination": (None, ["--out_dir=base", "--to=base"], "was not written by an export"),
    "here": (None, ["--out_dir=base", "--to=."], "is the working directory"),
    "no name of a repository": (None, ["--out_dir=base", "--to=x", "--push_to_hub=name"], "USER/NAME"),
    "nanoGPT on the Hub": (
        None,
        ["--out_dir=base", "--to=x", "--push_to_hub=me/x", "--format=nanogpt"],
        "the Hub takes format=hf",
    ),
    "public without a push": (None, ["--out_dir=base", "--to=x", "--private=false"], "has no effect"),
    "a token as a flag": (None, ["--out_dir=base", "--to=x", "--token=s3cret"], "unknown flag --token"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(case, runs, command):
    prepare_case, argv, message = BAD[case]
    os.symlink(runs / "base", "base")
    if prepare_case:
        prepare_case(runs)
    before = sorted(map(str, Path(".").rglob("*")))
    code, _, error = command("export", *argv)
    assert code == 2 and message in error and len(error.strip().splitlines()) == 1, error
    assert sorted(map(str, Path(".").rglob("*"))) == before and "s3cret" not in error


def test_what_nanogpt_cannot_be_is_refused(model_directory, bpe_directory, command):
    model_directory(tokenizers.from_directory(bpe_directory(HARD * 3)), "bpe")
    model_directory(tokenizers.CharTokenizer(sorted(set(HARD))), "wide", n_inner=48)
    for name, told in (("bpe", "knows GPT-2's BPE and characters"), ("wide", "n_inner=48")):
        code, _, error = command("export", f"--init_from={name}", "--to=nano", "--format=nanogpt")
        assert code == 2 and told in error and not Path("nano").exists()


def test_the_card_tells_what_eval_measured(tiny_run, command):
    tiny_run("out", "--max_iters=4")
    code, _, error = command("eval", "--out_dir=out", "--samples=2", "--max_new_tokens=20")
    assert code == 0, error
    event = [event for event in read_metrics("out/metrics.jsonl") if event["event"] == "evaluation"][-1]
    code, _, error = command("export", "--out_dir=out", "--to=mine")
    assert code == 0, error
    card = Path("mine/README.md").read_text()
    assert f"| loss | {event['loss']:.4f} |" in card and f"| bits per byte | {event['bits_per_byte']:.4f} |" in card
    assert f"| 8-grams of its samples found in the training data | {event['memorisation']['copied']:.1%} |" in card
    results = yaml.safe_load(card.split("---")[1])["model-index"][0]["results"]
    assert {"bits_per_byte", "loss"} <= {metric["type"] for result in results for metric in result["metrics"]}


def test_a_mixture_is_chosen_on_all_the_datasets_of_a_run(runs, tmp_path, command):
    change = {**SHAPE_OF_BASE, "max_iters": 10, "eval_interval": 10}
    datasets = f"{runs / 'data' / 'base'},{runs / 'data' / 'tuned'}"
    inputs = {"init_from": str(runs / "base"), "dataset": datasets, "out_dir": "both"}
    trainer.train(Recipe(**{**SMALL, **change, **inputs}))
    code, out, error = command("export", "--out_dir=both", "--to=mixed", "--interpolate=auto")
    assert code == 0, error
    best = json.loads(Path("both/best/finetune.json").read_text())["val_loss"]
    losses = dict(json.loads(Path("mixed/finetune.json").read_text())["interpolation"]["losses"])
    assert losses[1.0] == pytest.approx(best, abs=1e-5)
    assert "on base, tuned" in Path("mixed/README.md").read_text()


def test_a_difference_without_an_interval_is_told_without_one(runs):
    kept = [event for event in read_metrics(runs / "tuned" / "metrics.jsonl") if event["event"] in ("start", "best")]
    events = [{**event, "step": 0} for event in kept[:2]]
    measured = {"event": "evaluation", "split": "val", "dataset": "d", "loss": 2.0}
    measured["difference"] = {"mean": -0.5, "low": None, "high": None}
    config = GPT.from_pretrained(runs / "tuned" / "best").config
    card = model_card("mine", "mine", config, {"step": 0, "val_loss": 2.0}, [*events, measured], None)
    assert "| difference | -0.5000 |" in card


def test_what_others_put_beside_an_export_is_not_removed(runs, command):
    assert command("export", f"--out_dir={runs / 'tuned'}", "--to=mine")[0] == 0
    Path("mine/notes.txt").write_text("to be kept")
    code, _, error = command("export", f"--out_dir={runs / 'base'}", "--to=mine")
    assert code == 2 and error.count("\n") == 1 and "holds notes.txt besides an earlier export" in error
    assert Path("mine/notes.txt").read_text() == "to be kept"


def test_words_in_the_card_of_a_model_are_no_damage(runs, command):
    assert command("export", f"--out_dir={runs / 'tuned'}", "--to=mine")[0] == 0
    with open("mine/README.md", "a", encoding="utf-8") as card:
        card.write("My own words.\n")
    os.remove("mine/loss.png")  # as in a download of the model's files
    code, _, error = command("export", "--init_from=mine", "--to=copy")
    assert code == 0, error
    assert load_file("copy/model.safetensors").keys() == load_file("mine/model.safetensors").keys()
    Path("mine/generation_config.json").write_text("{}")
    code, _, error = command("export", "--init_from=mine", "--to=other")
    assert code == 2 and "generation_config.json has 2 bytes" in error and "remove manifest.json there" in error
    os.remove("mine/manifest.json")
    assert command("export", "--init_from=mine", "--to=other")[0] == 0


@pytest.mark.parametrize("kind", ["hf", "nanogpt"])
def test_an_export_does_not_replace_the_model_that_it_reads(runs, command, kind):
    assert command("export", f"--out_dir={runs / 'tuned'}", "--to=mine", f"--format={kind}")[0] == 0
    before = {path.name: path.read_bytes() for path in Path("mine").iterdir()}
    os.symlink("mine", "link")
    for source, to in (("mine", "mine"), ("link", "mine"), ("mine", "link")):
        code, _, error = command("export", f"--init_from={source}", f"--to={to}", "--dtype=bfloat16")
        assert code == 2 and "holds the model itself" in error and error.count("\n") == 1
    assert {path.name: path.read_bytes() for path in Path("mine").iterdir()} == before


def test_a_report_made_after_an_export_comes_with_the_next_one(runs, command):
    shutil.copytree(runs / "tuned", "out")
    assert command("export", "--out_dir=out", "--to=mine")[0] == 0 and not Path("mine/report.html").exists()
    assert "is this export already" in command("export", "--out_dir=out", "--to=mine")[1]
    Path("out/report.html").write_text("<p>The report</p>")
    assert command("export", "--out_dir=out", "--to=mine")[0] == 0 and Path("mine/report.html").is_file()
    assert "(report.html)" in Path("mine/README.md").read_text()


def test_a_report_for_others_names_no_folders(runs):
    from finetune.publishing.run_report import public_report

    started = next(event for event in read_metrics(runs / "tuned" / "metrics.jsonl") if event["event"] == "start")
    Path("report.html").write_text(
        f"<p>{runs}/tuned from {runs}/base, {started['recipe']['dataset']}; /home/me/texts/poem.txt, https://a.b/c/d</p>"
    )
    assert public_report(Path(), started["recipe"]) == "<p>tuned from base, tuned; poem.txt, https://a.b/c/d</p>"
    assert public_report(runs, {}) is None


def test_a_report_for_others_names_no_folders_in_other_spellings(runs, monkeypatch):
    from jinja2 import Environment

    from finetune.common.commands import command as spelled
    from finetune.publishing.run_report import public_report

    monkeypatch.setenv("HOME", "/home/John Q")
    recipe = {"dataset": "/srv/it's mine/poem's.txt", "eval": "/data/A & B/c"}
    for text, told in {
        recipe["dataset"]: "poem's.txt",
        "/srv/it's mine/other/x.txt": "x.txt",
        spelled("train", dataset=recipe["dataset"]): spelled("train", dataset="poem's.txt"),
        "/data/A & B/d/e.txt": "e.txt",
        "/home/John Q/texts/x.txt, /home/John Q": "x.txt, ~",
        "file:///srv/acme/x file:/srv/y file:///z": "x y z",
        "0.5:/home/me/x": "0.5:x",
        "../../john/secret and ./../me/b": "secret and b",
        r"C:\Users\me\x C:/Users/me/y \\server\share\z": "x y z",
        "~john/a/b": "b",
        "https://a.b/c/d, 1/2, and/or/not, ~5/6, ... a:b": "https://a.b/c/d, 1/2, and/or/not, ~5/6, ... a:b",
    }.items():
        page = Environment(autoescape=True).from_string("<p>{{ text }}</p>")
        Path("report.html").write_text(page.render(text=text))
        assert public_report(Path(), recipe) == page.render(text=told), text
