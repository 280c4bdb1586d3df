"""Evaluation: figures are those of transformers and of training, whatever the batch size, the packing and the number of
processes."""

import json
import math
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import forked
import numpy as np
import pytest
import torch
from conftest import spread, write_bins
from torch.nn import functional as F

from finetune import GPT, GPTConfig
from finetune.common.errors import Failure, UsageError
from finetune.config.recipe import Recipe
from finetune.data import arrow_cache, verbatim
from finetune.data import dataset as datasets
from finetune.data.batches import Blocks
from finetune.data.prepare import prepare
from finetune.evaluation import bootstrap, completions, loss, metrics, token_streams
from finetune.evaluation.loss import TokenStream
from finetune.runtime import device

T = 32
WORDS = "what is one plus two and why does everybody know that it is so".split()


def sentences(count, longest, seed=0):
    rng = random.Random(seed)
    return [
        " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, longest))).capitalize() + "." for _ in range(count)
    ]


def write(rows, name):
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


def read(name):
    return [json.loads(line) for line in Path(name).read_text().splitlines()]


@pytest.fixture
def tokenizer(bpe_directory):
    return str(bpe_directory("User:\nAssistant:\nWhat is one plus two? " + " ".join(WORDS), vocab_size=290))


@pytest.fixture
def documents(tokenizer):
    """64 ragged documents as val, some of a single token and some longer than a block; others as train."""
    write([{"text": text} for text in sentences(10, 20, seed=1)], "train.jsonl")
    write([{"text": text} for text in ["I", *sentences(63, 24)]], "val.jsonl")
    return prepare(["train.jsonl"], "data", tokenizer, val=["val.jsonl"])


@pytest.fixture
def answers(tokenizer):
    """Instruction data."""
    rows = [{"prompt": text, "completion": text[:9]} for text in sentences(60, 5)]
    return prepare([write(rows, "answers.jsonl")], "answers", tokenizer)


@pytest.fixture
def published(hf_model):
    """A function that writes a run's best/ with spread weights and the tokenizer of a dataset; returns transformers'
    model."""

    def make(out_dir, dataset, seed=0):
        size, end = dataset.tokenizer.vocab_size, dataset.tokenizer.eot
        hf = hf_model(seed, vocab_size=size, n_positions=T, bos_token_id=end, eos_token_id=end)
        GPT.from_hf(hf).save_pretrained(f"{out_dir}/best")
        dataset.tokenizer.save(f"{out_dir}/best", T)
        return hf

    return make


@pytest.fixture
def evaluated(command):
    """A function that runs the verb and returns its event, with the table it printed as `out`."""

    def call(*flags, out_dir="out"):
        code, out, error = command("eval", f"--out_dir={out_dir}", "--device=cpu", "--json=true", *flags)
        assert code == 0, error
        return {**json.loads(out), "out": error}

    return call


@pytest.fixture
def cpu():
    return device.start(Recipe(device="cpu", dtype="float32", compile="false", gradient_accumulation_steps=1))


@torch.no_grad()
def theirs(hf, spans, ids):
    """`(nats, right)` of every token in some spans but the first, by transformers, each span alone."""
    nats, right = [], []
    for first, end in spans:
        part = torch.from_numpy(ids[first:end].astype(np.int64))[None]
        if part.size(1) > 1:
            logp = hf(part[:, :-1]).logits.double().log_softmax(-1)[0]
            nats.append(-logp.gather(-1, part[0, 1:, None])[:, 0])
            right.append(logp.argmax(-1) == part[0, 1:])
    return torch.cat(nats), torch.cat(right)


def blocks_of(first, end):
    """A span as blocks, each beginning with the last token of the one before."""
    return [(start, min(start + T + 1, end)) for start in range(first, max(end - 1, first + 1), T)]


@pytest.mark.parametrize("packed", [False, True])
def test_figures_equal_transformers_for_every_batch_size(packed, documents, published, evaluated):
    hf, ids = published("out", documents), np.fromfile("data/val.bin", dtype="<u2")
    ends = np.flatnonzero(ids == documents.tokenizer.eot) + 1
    spans = [(0, len(ids))] if packed else list(zip([0, *ends[:-1]], ends))
    assert len(ends) == 64 and len({end - first for first, end in zip(ends, ends[1:])}) > 10
    nats, right = theirs(hf, [block for span in spans for block in blocks_of(*span)], ids)
    # the bytes of what was predicted: all of the texts but their first tokens
    texts = [row["text"] for row in read("val.jsonl")]
    unpredicted = sum(len(documents.tokenizer.decode([ids[first]]).encode()) for first, _ in spans)
    num_bytes = sum(len(text.encode()) for text in texts) - unpredicted
    for batch_size in (1, 4, 64):
        event = evaluated("--dataset=data", f"--documents={str(not packed).lower()}", f"--batch_size={batch_size}")
        assert event["targets"] == len(nats) == len(ids) - len(spans)
        assert event["loss"] == pytest.approx(nats.mean().item(), abs=1e-5)
        assert event["perplexity"] == pytest.approx(nats.mean().exp().item(), rel=1e-5)
        assert event["bits_per_byte"] == pytest.approx(nats.sum().item() / math.log(2) / num_bytes, abs=1e-5)
        assert event["accuracy"] == pytest.approx(right.double().mean().item(), abs=1e-9)
    alone = evaluated("--dataset=data", f"--documents={str(not packed).lower()}")
    assert alone["loss"] == pytest.approx(event["loss"], abs=1e-6)
    assert "bits per byte" in alone["out"] and f"{event['loss']:.4f}" in alone["out"]


@torch.no_grad()
@pytest.mark.parametrize("scale, offset", [(0.0, 0.0), (1.0, 0.0), (0.02, -100.0)])
def test_of_equal_logits_one_is_right(scale, offset, hf_model):
    """GPT-2's logits are near -100, where bfloat16 has multiples of 0.5."""
    model = GPT.from_hf(hf_model(n_embd=32)).eval()
    model.ln_f.weight.mul_(scale)
    model.ln_f.bias.fill_(offset / 32)
    model.wte.weight.data[:101].add_(1.0 if offset else 0.0)
    if not scale:
        model.wte.weight.zero_()
    stream = loss.TokenStream(np.random.default_rng(0).integers(0, 101, 4000, dtype=np.uint16))
    on = device.start(Recipe(device="cpu", dtype="bfloat16", compile="false", gradient_accumulation_steps=1))
    sums = loss.measure(on, [model], stream, loss.make_windows(stream.as_span(), T), 8, "")
    idx = torch.from_numpy(stream.ids[:-1].astype(np.int64))
    with on.autocast():
        chosen = torch.cat([model(part[None]).argmax(-1)[0] for part in idx.split(T)])
    right = (chosen.numpy() == stream.ids[1:]).mean()
    assert sums.figures(0)["accuracy"] == pytest.approx(right, abs=0.01) and right < 0.1


def test_a_bin_that_is_cut_while_it_is_measured_ends_with_a_line(hf_model, cpu):
    ids = np.zeros(100_000, dtype=np.uint16)
    ids.tofile("val.bin")
    model, stream = GPT.from_hf(hf_model()).eval(), loss.TokenStream(np.memmap("val.bin", np.uint16, "r"))
    os.truncate("val.bin", 10_000)
    with pytest.raises(Failure, match="was cut from 200,000 to 10,000 bytes"):
        loss.measure(cpu, [model], stream, loss.make_windows(stream.as_span(), T), 8, "")


@pytest.mark.parametrize("stride", [1, 7, 32])
def test_a_stride_predicts_every_token_once_with_context(stride, documents, published, evaluated):
    hf, ids = published("out", documents), np.fromfile("data/val.bin", dtype="<u2")[:200]
    write_bins(Path("short"), ids, ids)
    with torch.no_grad():
        nats, seen = [], 0
        for first in range(0, len(ids), stride):  # as in transformers' guide to perplexity
            end = min(first + T, len(ids) - 1)
            part = torch.from_numpy(ids[first : end + 1].astype(np.int64))
            logp = hf(part[None, :-1]).logits[0].double().log_softmax(-1)
            new = -logp.gather(-1, part[1:, None])[seen - first if seen else 0 :, 0]
            nats.append(new)
            seen = end
            if end == len(ids) - 1:
                break
    nats = torch.cat(nats)
    assert len(nats) == len(ids) - 1
    event = evaluated("--dataset=short", f"--stride={stride}")
    assert event["targets"] == len(nats) and event["loss"] == pytest.approx(nats.mean().item(), abs=1e-5)


def test_windows_predict_every_token_but_the_first_of_a_span_once():
    rng = np.random.default_rng(0)
    for block_size, stride in ((8, 8), (8, 3), (8, 1), (1, 1), (40, 40)):
        ends = np.cumsum(rng.integers(1, 30, 20))
        spans = np.stack([np.append(0, ends[:-1]), ends], 1)
        windows = loss.make_windows(spans, block_size, stride, by_span=True)
        predicted = [
            (place, start)
            for start, end, counted in zip(windows.starts, windows.ends, windows.counted)
            for place in range(counted, end + 1)
        ]
        firsts = set(spans[:, 0])
        assert sorted(place for place, _ in predicted) == [place for place in range(ends[-1]) if place not in firsts]
        assert (windows.ends - windows.starts).max() <= block_size
        for place, start in predicted:
            first = max(span for span in spans[:, 0] if span < place)
            assert start >= first and place - start >= min(place - first, block_size - stride)


def test_the_loss_is_the_validation_loss_of_training(tiny_run, evaluated):
    tiny_run("out")
    best = json.loads(Path("out/best/finetune.json").read_text())
    event = evaluated()
    assert event["loss"] == pytest.approx(best["val_loss"], abs=1e-6) and event["step"] == best["step"]
    facts = datasets.load(event["dataset"]).meta["splits"]["val"]
    assert event["targets"] == facts["tokens"] - 1
    bits = event["bits_per_byte"] * (facts["bytes"] - 1)  # of characters; nothing precedes the first
    assert bits == pytest.approx(event["loss"] * event["targets"] / math.log(2), rel=1e-9)
    events = [event["event"] for event in read("out/metrics.jsonl")]
    assert events[-1] == "evaluation" and "end" in events  # what was there is still there
    assert read("out/metrics.jsonl")[-1].keys() >= event.keys() - {"out"}


@pytest.mark.parametrize("model", ["out/best", "exported", "nano"])
def test_a_model_that_is_no_run_gets_no_files(model, tiny_run, command):
    tiny_run("out")
    for flags in (["--to=exported"], ["--to=nano", "--format=nanogpt"]):
        assert command("export", "out", *flags)[0] == 0
    data = f"--dataset={next(Path('data').glob('*/train.bin')).parent}"
    before = sorted(Path(model).iterdir())
    code, out, error = command("eval", model, data)
    assert code == 0 and "perplexity" in out, error
    assert sorted(Path(model).iterdir()) == before


@pytest.mark.parametrize("verb, flags", [("eval", []), ("sample", ["--max_copy=5", "--num_samples=1", "--top_k=1"])])
def test_a_text_whose_prepared_data_are_gone_is_prepared_again(verb, flags, tiny_run, corpus, command):
    text = corpus()
    tiny_run("out", text=text)
    [prepared] = Path("data").glob("*/train.bin")
    shutil.rmtree("data")
    code, _, error = command(verb, "out", *flags)
    assert (code, error) == (
        2,
        f"dataset: {text} is not prepared here as out was trained on it; finetune eval --out_dir=out"
        f" --dataset={text} prepares it\n",
    )
    assert command(verb, "out", *flags, f"--dataset={text}")[0] == 0
    assert prepared.is_file()
    assert command(verb, "out", *flags)[0] == 0


def test_conversations_of_several_turns_are_documents_and_equal_packed_blocks(bpe_directory, published, evaluated):
    """By documents, as training measures them in blocks that are packed."""
    rows = []
    for i in range(40):
        turns = [(role, turn) for turn in range(1 + i % 3) for role in ("user", "assistant")]
        rows.append({"messages": [{"role": role, "content": f"hello {i} {turn}"} for role, turn in turns]})
    tokenizer = str(bpe_directory("User:\nAssistant:\nhello 1 2 3", "bpe-turns", 280))
    dataset = prepare([write(rows, "turns.jsonl")], "turns", tokenizer)
    hf = published("out", dataset)
    event = evaluated("--dataset=turns", f"--block_size={T}")
    assert event["documents"] == dataset.meta["splits"]["val"]["documents"] == 4
    contents = datasets.scan(dataset, "val")
    blocks = Blocks.from_arrow(arrow_cache.open_cache(dataset, "val", T, contents, isolated=True), contents.tokens)
    nats, count = GPT.from_hf(hf)(*blocks.batch(range(blocks.num_rows)))
    assert event["targets"] == count.item() and event["loss"] == pytest.approx(nats.item() / count.item(), abs=1e-5)
    stream = evaluated("--dataset=turns", f"--block_size={T}", "--documents=false")
    assert stream["targets"] == event["targets"] and abs(stream["loss"] - event["loss"]) > 1e-3


def test_masked_tokens_do_not_count(answers, published, evaluated):
    hf = published("out", answers)
    ids, mask = np.fromfile("answers/val.bin", dtype="<u2"), np.fromfile("answers/val_mask.bin", dtype=np.uint8) == 1
    ends = np.flatnonzero(ids == answers.tokenizer.eot) + 1
    spans = list(zip([0, *ends[:-1]], ends))
    nats, _ = theirs(hf, [block for span in spans for block in blocks_of(*span)], ids)
    counted = torch.from_numpy(np.concatenate([mask[first + 1 : end] for first, end in spans]))
    event = evaluated("--dataset=answers")  # by documents, as such data are trained on
    assert event["documents"] == len(ends)
    assert event["targets"] == counted.sum() == mask.sum()
    assert event["loss"] == pytest.approx(nats[counted].mean().item(), abs=1e-5)
    text = answers.tokenizer.decode(ids[mask & (ids != answers.tokenizer.eot)])
    bits = nats[counted].sum().item() / math.log(2)
    assert event["bits_per_byte"] == pytest.approx(bits / len(text.encode()), abs=1e-5)


def test_bins_without_a_tokenizer_have_no_bits_per_byte(documents, published, evaluated):
    published("out", documents)
    for name in ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json"):
        Path("out/best", name).unlink(missing_ok=True)
    write_bins(Path("bare"), np.arange(200) % 200, np.arange(300) % 200)
    event = evaluated("--dataset=bare")
    assert event["bits_per_byte"] is None and "not known" in event["out"] and event["targets"] == 299


def test_the_baseline_of_a_run_is_what_it_started_from(documents, published, evaluated, command):
    published("base", documents)
    given = ["--init_from=base", "--dataset=data", "--out_dir=out", "--device=cpu", "--dtype=float32"]
    shape = "--batch_size=4 --gradient_accumulation_steps=1 --max_iters=6 --learning_rate=1e-3 --eval_interval=6"
    code, _, error = command("train", *given, *shape.split())
    assert code == 0, error
    event = evaluated("--baseline=auto")
    first, last = (line for line in read("out/metrics.jsonl") if line["event"] == "eval")
    assert event["baseline"]["name"] == "base"
    assert event["baseline"]["loss"] == pytest.approx(first["val_loss"], abs=1e-6)
    assert event["loss"] == pytest.approx(last["val_loss"], abs=1e-6)
    difference = event["difference"]
    assert difference["mean"] == pytest.approx(event["loss"] - event["baseline"]["loss"], abs=1e-9)
    assert difference["low"] < difference["mean"] < difference["high"] < 0
    assert f"({difference['low']:+.4f} to {difference['high']:+.4f})" in event["out"]


def test_forgetting_is_the_divergence_of_transformers(documents, published, evaluated):
    before, after = published("base", documents), published("out", documents, seed=1)
    text = " ".join(sentences(30, 8, seed=5))
    Path("general.txt").write_text(text)
    event = evaluated("--dataset=data", "--baseline=base", "--general=general.txt")
    ids = torch.from_numpy(documents.tokenizer.encode(text).astype(np.int64))
    kl, nats = [], [[], []]
    with torch.no_grad():
        for first, end in blocks_of(0, len(ids)):
            part = ids[first:end]
            p, q = (hf(part[None, :-1]).logits[0].double().log_softmax(-1) for hf in (before, after))
            kl.append(F.kl_div(q, p, log_target=True, reduction="none").sum(-1))
            for place, logp in zip(nats, (p, q)):
                place.append(-logp.gather(-1, part[1:, None])[:, 0])
    general = event["general"]
    assert general["targets"] == len(ids) - 1
    assert general["kl"] == pytest.approx(torch.cat(kl).mean().item(), abs=1e-5) and general["kl"] > 0.1
    assert general["baseline_loss"] == pytest.approx(torch.cat(nats[0]).mean().item(), abs=1e-5)
    assert general["loss"] == pytest.approx(torch.cat(nats[1]).mean().item(), abs=1e-5)
    same = evaluated("--dataset=data", "--baseline=out", "--general=data")
    assert same["general"]["kl"] == pytest.approx(0, abs=1e-9)
    assert same["difference"] == {"mean": 0, "low": 0, "high": 0}
    assert same["general"]["loss"] == pytest.approx(same["loss"], abs=1e-9)


SCRIPT = """
import json, sys
from finetune.evaluation import evaluator
from finetune.evaluation.completions import Decoding, complete
from finetune.evaluation.options import Options
options = Options(out_dir="out", dataset="data", baseline="base", documents=True, device="cpu")
device = evaluator.start_device(options)
inputs = evaluator.find_inputs(options, device)
model, ids = inputs.models[0].load(), inputs.stream.ids
prompts = [ids[n : n + 3 + n % 2].astype("int64") for n in range(40)]
decoding = Decoding(max_new_tokens=8, seed=1, temperature=1.0)
written = complete(device, model, prompts, inputs.ends, decoding)
event, main = evaluator.evaluate(options)
if main:
    print(json.dumps([event, [ids.tolist() for ids in written]]))
"""


@pytest.mark.heavy
def test_two_processes_measure_and_write_what_one_does(documents, published):
    published("base", documents)
    published("out", documents, seed=1)
    Path("script.py").write_text(SCRIPT)
    torchrun = ["torch.distributed.run", "--standalone", "--nproc_per_node=2", "script.py"]
    environment = {
        **os.environ,
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    running = [forked.Process(*program, env=environment) for program in (["script.py"], torchrun)]
    (one, written), (two, written_by_two) = (
        json.loads(process.communicate(timeout=200)[0].splitlines()[-1]) for process in running
    )
    assert two["loss"] == pytest.approx(one["loss"], abs=1e-6) and two["targets"] == one["targets"] > 0
    assert two["difference"] == pytest.approx(one["difference"], abs=1e-6)
    assert two["bits_per_byte"] == pytest.approx(one["bits_per_byte"], abs=1e-6)
    assert written_by_two == written and len(written) == 40


def test_the_interval_is_that_of_a_paired_bootstrap():
    """Against the formula for the standard error of a ratio, and against how often such an interval should be right."""
    rng, right, truth = np.random.default_rng(0), 0, 0.05
    for number in range(200):
        targets = rng.integers(20, 200, 80).astype(float)
        hardness = rng.normal(3, 1, 80)  # shared by both models, so only pairing sees the difference
        nats, other = targets * (hardness + truth + rng.normal(0, 0.1, 80)), targets * hardness
        found = bootstrap.paired_bootstrap(nats, other, targets, seed=number)
        right += found["low"] <= truth <= found["high"]
        if number == 0:
            rest = (nats - other) - found["mean"] * targets
            error = math.sqrt((rest**2).sum()) / targets.sum()
            assert found["mean"] == pytest.approx((nats.sum() - other.sum()) / targets.sum())
            assert (found["high"] - found["low"]) / 2 == pytest.approx(1.96 * error, rel=0.1)
            assert found == bootstrap.paired_bootstrap(nats, other, targets, seed=0)
    assert 180 <= right <= 198  # of 200, 95% of them 190
    # blocks of unequal length, all equally worse
    proportional = bootstrap.paired_bootstrap(0.05 * targets + other, other, targets)
    assert list(proportional.values()) == pytest.approx([0.05] * 3)
    assert bootstrap.paired_bootstrap(np.ones(1), np.zeros(1), np.ones(1)) == {"mean": 1, "low": None, "high": None}


def test_long_texts_are_resampled_in_groups_of_neighbours():
    rng = np.random.default_rng(0)
    targets, other = np.full(20_000, 10.0), np.zeros(20_000)
    nats = rng.normal(0.5, 1, 20_000) * targets
    found = bootstrap.paired_bootstrap(nats, other, targets)
    assert (found["high"] - found["low"]) / 2 == pytest.approx(1.96 / math.sqrt(20_000), rel=0.1)


def test_completions_are_those_of_transformers(answers, published, cpu):
    hf = spread(published("out", answers), 2.0)
    with torch.no_grad():
        hf.transformer.wte.weight.mul_(0.1)  # or it would repeat one token for ever
    ids, mask = np.fromfile("answers/val.bin", dtype="<u2"), np.fromfile("answers/val_mask.bin", dtype=np.uint8)
    text = loss.TokenStream(ids, mask)
    ends = answers.document_ends("val")
    found = completions.examples(text, np.stack([np.append(0, ends[:-1]), ends], 1))
    assert len(found) == 6 == answers.meta["splits"]["val"]["documents"]
    asked = {
        f"User:\n{row['prompt']}\n\nAssistant:\n": row["completion"] + "<|endoftext|>" for row in read("answers.jsonl")
    }
    assert all(
        asked[answers.tokenizer.decode(prompt)] == answers.tokenizer.decode(reference) for prompt, reference in found
    )
    prompts = [prompt[-12:] for prompt, _ in found] + [prompt[-7:] for prompt, _ in found]
    # as end-of-text the id that ends most of them at a place of its own
    endless = [
        hf.generate(torch.from_numpy(ids)[None], max_new_tokens=18, do_sample=False, eos_token_id=None)[0]
        for ids in prompts
    ]
    endless = [out[len(ids) :].tolist() for ids, out in zip(prompts, endless)]
    eot = max(set(sum(endless, [])), key=lambda token: len({ids.index(token) for ids in endless if token in ids}))
    decoding = completions.Decoding(max_new_tokens=18, seed=0, temperature=0.0, batch_size=4)
    written = completions.complete(cpu, GPT.from_hf(hf), prompts, [eot], decoding)
    for ours, out in zip(written, endless):
        assert ours.tolist() == (out[: out.index(eot)] if eot in out else out)
    assert len({len(ids) for ids in written}) > 1  # some ended by themselves, at a place of their own


OWN_METRIC = """
import datasets
import evaluate


class Mean(evaluate.Metric):
    def _info(self):
        features = datasets.Features({"predictions": datasets.Value("string"), "references": datasets.Value("string")})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    def _compute(self, predictions, references):
        return {"mean_length": sum(map(len, predictions)) / len(predictions), "given": len(references)}
"""


def test_metrics_are_those_of_the_libraries(answers, published, evaluated, monkeypatch):
    """Through the verb, with a metric of the user's own beside the shipped ones, against sacrebleu and rouge-score
    themselves."""
    import sacrebleu
    from rouge_score.rouge_scorer import RougeScorer

    published("out", answers)
    published("base", answers, seed=1)
    Path("mine.py").write_text(OWN_METRIC)
    asked = []

    # the test above is about the answers of a model; these are something like English
    def answer(device, model, prompts, eot, decoding, title):
        assert decoding.temperature == 0
        asked.append(len(prompts))
        return [answers.tokenizer.encode(text).astype(np.int64) for text in said]

    references = [
        text.split("Assistant:\n")[1]
        for text in answers.tokenizer.decode(np.fromfile("answers/val.bin", dtype="<u2")).split("<|endoftext|>")[:-1]
    ]
    said = [references[0], *(f"{text} is one plus" for text in references[1:])]
    monkeypatch.setattr("finetune.evaluation.evaluator.complete", answer)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    event = evaluated("--dataset=answers", "--baseline=base", "--metrics=bleu,chrf,rouge,exact_match,mine.py")
    scores = event["metrics"]
    assert scores["bleu"] == pytest.approx(sacrebleu.corpus_bleu(said, [references]).score) and 0 < scores["bleu"] < 100
    assert scores["chrf"] == pytest.approx(sacrebleu.corpus_chrf(said, [references]).score)
    pairs = [
        RougeScorer(["rougeL"]).score(reference, text)["rougeL"].fmeasure for reference, text in zip(references, said)
    ]
    assert scores["rougeL"] == pytest.approx(np.mean(pairs))
    assert scores["exact_match"] == 1 / 6 and event["completions"] == 6
    assert scores["mean_length"] == np.mean([len(text) for text in said]) and scores["given"] == 6
    assert asked == [6, 6] and event["baseline"]["metrics"] == scores
    assert "bleu" in event["out"] and "version" in scores["bleu_signature"]


def test_shipped_metrics_are_evaluate_modules():
    """And the wheel takes every module below a package."""
    import evaluate

    loaded = {name: metrics.load(name) for name in metrics.METRICS}
    assert all(isinstance(metric, evaluate.Metric) and metric.description for metric in loaded.values())
    metric = loaded["exact_match"]
    assert metric.compute(predictions=["a", "b", "C"], references=["a", "b", "c"]) == {"exact_match": 2 / 3}
    assert Path(metrics.__file__).is_file()


@pytest.mark.parametrize("name", ["finetune.evaluation.metrics", "finetune.eval"])
def test_evaluate_is_imported_only_when_a_metric_is_loaded(name):
    code = f"import sys, {name}\nassert not {{'evaluate', 'datasets', 'sacrebleu', 'rouge_score'}} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_memorisation_is_reported(tiny_run, evaluated):
    tiny_run("out")
    event = evaluated("--samples=3", "--max_new_tokens=40")
    facts = event["memorisation"]
    assert facts["samples"] == 3 and 0 <= facts["copied"] <= 1 and facts["ngram"] == 8
    assert facts["tokens"] == 120 and "copied 8-grams" in event["out"]
    train = np.fromfile(Path(event["dataset"], "train.bin"), dtype="<u2")
    whole = verbatim.report_copies(datasets.load(event["dataset"]), [train[100:140].astype(np.int64)])
    assert whole["copied"] == 1 and whole["longest"] == 40


def scratch_model(name="model", **shape):
    tiny = {"block_size": 16, "vocab_size": 101, "n_layer": 1, "n_head": 1, "n_embd": 8}
    GPT.from_scratch(GPTConfig(**tiny | shape)).save_pretrained(name)


def bare(**shape):
    scratch_model(**shape)
    write_bins(Path("d"), np.arange(40) % 5, np.arange(40) % 5)


def with_tokenizer(bpe_directory, name, text):
    prepare([write([{"text": text}] * 20, f"{name}.jsonl")], name, str(bpe_directory(text, f"bpe-{name}", 262)))


def other_tokenizer(bpe_directory):
    for name, text in (("one", "hello world, hello all"), ("two", "the other text of this")):
        with_tokenizer(bpe_directory, name, text)
        tokenizer = datasets.load(name).tokenizer
        scratch_model(f"model-{name}", vocab_size=tokenizer.vocab_size)
        tokenizer.save(f"model-{name}", 16)


def unfinished_run(_):
    Path("out-mine/best").mkdir(parents=True)
    Path("out-mine/best/config.json").write_text("{}")


MODEL, BARE = ["--init_from=model"], ["--init_from=model", "--dataset=d"]
CASES = {
    "nothing": (None, [], "give --out_dir=OUT"),
    "a missing run": (unfinished_run, ["--out_dir=out-mien"], "runs here: out-mine"),
    "a directory that is no model": (lambda _: Path("out").mkdir(), ["--out_dir=out"], "out: no model here"),
    "a model without data": (lambda _: scratch_model(), MODEL, "give --dataset=DIR"),
    "missing data": (lambda _: scratch_model(), [*MODEL, "--dataset=gone"], "dataset gone: no such directory"),
    "a split that is absent": (
        lambda _: bare(),
        [*BARE, "--split=test"],
        "d has no test.bin; its splits are train, val",
    ),
    "a split that is a path": (None, [*BARE, "--split=../val"], "not the name of a split"),
    "an unknown metric": (None, [*BARE, "--metrics=bleau"], "Did you mean 'bleu'?"),
    "a missing metric file": (None, [*BARE, "--metrics=mine.py"], "mine.py: there is no such file"),
    "metrics without instruction data": (
        lambda b: other_tokenizer(b),
        ["--init_from=model-one", "--dataset=one", "--metrics=bleu"],
        "one has no val_mask.bin",
    ),
    "data of another tokenizer": (
        lambda b: other_tokenizer(b),
        ["--init_from=model-one", "--dataset=two"],
        "prepare the text with --tokenizer=model-one",
    ),
    "a baseline of another tokenizer": (
        lambda b: other_tokenizer(b),
        ["--init_from=model-one", "--dataset=one", "--baseline=model-two"],
        "only losses over the same tokens",
    ),
    "a baseline that nobody recorded": (lambda _: bare(), [*BARE, "--baseline=auto"], "give --baseline=MODEL"),
    "a baseline that has no weights": (
        lambda _: (bare(), Path("model/finetune.json").write_text('{"init_from": "scratch"}')),
        [*BARE, "--baseline=auto"],
        "model started from scratch",
    ),
    "a missing baseline": (lambda _: bare(), [*BARE, "--baseline=./gone"], "./gone: no such file or directory"),
    "ids beyond the model's": (lambda _: bare(vocab_size=3), BARE, "but model has 3 ids"),
    "a context the model lacks": (
        lambda _: bare(),
        [*BARE, "--block_size=17"],
        "17 is more than the 16 positions of model",
    ),
    "a stride beyond the block": (lambda _: bare(), [*BARE, "--stride=17"], "would be left out"),
    "a stride of nothing": (None, [*BARE, "--stride=0"], "must be at least 1"),
    "documents of a single text": (lambda _: bare(), [*BARE, "--documents=true"], "is one running text"),
    "general without a baseline": (None, [*BARE, "--general=g.txt"], "give --baseline=auto"),
    "a missing general text": (
        lambda b: other_tokenizer(b),
        ["--init_from=model-one", "--dataset=one", "--baseline=model-one", "--general=gone.txt"],
        "gone.txt: no such file",
    ),
    "a general text without a word": (
        lambda b: (other_tokenizer(b), write([{"text": ""}] * 3, "blank.jsonl")),
        ["--init_from=model-one", "--dataset=one", "--baseline=model-one", "--general=blank.jsonl"],
        "blank.jsonl has 0 tokens",
    ),
    "documents of a token each": (
        lambda _: (
            scratch_model(vocab_size=3),
            prepare([write([{"text": c} for c in "abc" * 9], "c.jsonl")], "c", "char"),
        ),
        ["--init_from=model", "--dataset=c", "--documents=true"],
        "there is nothing to predict; --documents=false",
    ),
    "a start for no samples": (None, [*BARE, "--start=Once"], "no effect without --samples"),
    "a temperature for no text": (None, [*BARE, "--temperature=1"], "no effect without --metrics or --samples"),
    "the same sample again and again": (None, [*BARE, "--samples=9", "--temperature=0"], "the same sample 9 times"),
    "a temperature below 0": (None, [*BARE, "--samples=1", "--temperature=-1"], "must be at least 0"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input(case, command, bpe_directory, monkeypatch):
    set_up, argv, message = CASES[case]
    if set_up:
        set_up(bpe_directory)
    before = {path: path.read_bytes() for path in Path(".").rglob("*") if path.is_file()}
    code, out, error = command("eval", "--device=cpu", *argv)
    assert (code, out) == (2, "") and message in error and len(error.strip().splitlines()) == 1, error
    assert before == {path: path.read_bytes() for path in Path(".").rglob("*") if path.is_file()}


def test_answers_that_are_first_tokens_are_not_predicted():
    spans, mask = np.array([[0, 2], [2, 2], [2, 4], [4, 4]]), np.array([1, 0, 1, 0], np.uint8)
    with pytest.raises(UsageError, match="d/val.bin: no document has a target behind its first token"):
        token_streams.check_predicts(TokenStream(np.arange(4), mask), spans, Path("d/val.bin"))
    token_streams.check_predicts(TokenStream(np.arange(4), mask[::-1]), spans, Path("d/val.bin"))


def test_a_missing_library_names_its_extra(command, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    code, _, error = command("eval", *BARE, "--metrics=rouge")
    install = "pip install 'finetune-gpt2[metrics]'"
    assert (code, error) == (2, f"--metrics: rouge needs rouge-score, which is not installed: {install}\n")


def test_one_document_to_validate_on_is_a_document(bpe_directory, published, evaluated):
    rows = [{"prompt": f"What is {i}?", "completion": f"one plus {i}"} for i in range(10)]
    tokenizer = str(bpe_directory("User:\nAssistant:\nWhat is one plus 1 2?", "bpe-few", 280))
    dataset = prepare([write(rows, "few.jsonl")], "few", tokenizer)
    published("out", dataset)
    event = evaluated("--dataset=few", "--baseline=out")
    assert event["documents"] == 1 and event["difference"]["low"] is None
