"""Samples in pieces are those of one batch, and a file of samples is continued."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from finetune import GPT, GPTConfig
from finetune.data import tokenizer as tokenizers
from finetune.gpt import pieces, sampling
from finetune.gpt.sampling import draw_samples
from finetune.runs import sample_file
from finetune.sample import main

TOKENS = 36  # beyond the blocks of the model
GPT2 = {"n_layer": 12, "n_head": 12, "n_embd": 768, "vocab_size": 50257}


@pytest.fixture
def model(bpe_directory):
    """A directory with a tiny random GPT-2 and a small byte-level BPE."""
    directory = bpe_directory("Grüße, 世界! What? Nothing.\n" * 20, "model", vocab_size=300)
    shape = {"block_size": 24, "n_layer": 2, "n_head": 2, "n_embd": 32}
    vocab_size = tokenizers.from_directory(directory).vocab_size
    GPT.from_scratch(GPTConfig(vocab_size=vocab_size, **shape)).save_pretrained(directory)
    return str(directory)


def ids_of(network, tokenizer, number, **options):
    prompt = tokenizers.prompt_ids(tokenizer, "What?")
    options = {"max_new_tokens": TOKENS, "ignore_eos": True, "temperature": 0.8, "top_k": 200} | options
    return [sample.ids for sample in draw_samples(network, tokenizer, prompt, num_samples=number, **options)]


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.heavy)])
def test_a_sample_does_not_depend_on_how_many_follow(model, dtype):
    network, tokenizer = GPT.from_pretrained(model).to(dtype), tokenizers.from_directory(model)
    for settings in ({}, {"top_k": 0, "top_p": 0.9}, {"repetition_penalty": 1.3, "min_p": 0.01}):
        whole = ids_of(network, tokenizer, 70, **settings)
        assert len({tuple(ids) for ids in whole}) == 70
        for number in (1, 2, 16, 17, 33):
            assert ids_of(network, tokenizer, number, **settings) == whole[:number]


def test_pieces_are_one_batch(model):
    """In float32, where rounding differs in the last bits only: the second road is `generate` of all rows at once."""
    network, tokenizer = GPT.from_pretrained(model), tokenizers.from_directory(model)
    idx = torch.from_numpy(tokenizers.prompt_ids(tokenizer, "What?")).expand(70, -1)
    how = {"temperature": 0.8, "top_k": 200, "eos_token_id": None}
    out = network.generate(idx, TOKENS, generator=torch.Generator().manual_seed(1337), **how)
    assert out[:, idx.size(1) :].tolist() == ids_of(network, tokenizer, 70)


def test_less_memory_makes_smaller_pieces_and_oom_halves_them(model, monkeypatch):
    network, tokenizer = GPT.from_pretrained(model), tokenizers.from_directory(model)
    whole, rows, generate = ids_of(network, tokenizer, 40), [], GPT.generate

    def limited(self, idx, *args, **how):
        rows.append(len(idx))
        if len(idx) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 TiB")
        return generate(self, idx, *args, **how)

    monkeypatch.setattr(GPT, "generate", limited)
    limit = 8
    assert ids_of(network, tokenizer, 40) == whole and rows == [16, 8, 8, 8, 8, 8]
    rows.clear()
    row, prompt = pieces.bytes_of_row(network.config, 5, TOKENS, 4), pieces.bytes_of_pass(network.config, 5, 4)
    monkeypatch.setattr(pieces, "available_bytes", lambda device: 5 * row + 2 * prompt)
    assert ids_of(network, tokenizer, 10) == whole[:10] and rows == [4, 4, 4]
    limit = 0
    with pytest.raises(Exception, match="out of memory with one sample; a smaller --max_new_tokens"):
        ids_of(network, tokenizer, 10)


def test_after_oom_a_terminal_shows_every_sample_whole(model, monkeypatch, capsys):
    network, tokenizer = GPT.from_pretrained(model), tokenizers.from_directory(model)
    prompt, generate, calls = tokenizers.prompt_ids(tokenizer, "What?"), GPT.generate, []
    how = {"num_samples": 40, "max_new_tokens": TOKENS, "ignore_eos": True, "temperature": 0.8}
    whole = [sample.text for sample in draw_samples(network, tokenizer, prompt, **how)]

    def limited(self, idx, *args, **options):
        calls.append(len(idx))
        if len(calls) > 1:
            return generate(self, idx, *args, **options)
        generate(self, idx, TOKENS // 2, **options)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 TiB")

    monkeypatch.setattr(GPT, "generate", limited)
    monkeypatch.setattr(sampling, "is_terminal", lambda stream: True)
    sampling.print_samples(network, tokenizer, prompt, **how)
    line = "---------------\n"
    assert calls == [16, 8, 8, 8, 8, 8]
    assert capsys.readouterr().out == "".join(f"{line}What?{text}\n" for text in whole) + line


class Numbers:
    """A tokenizer whose texts are numbers."""

    eot = None

    def decode(self, ids):
        return "".join(f"{i} " for i in ids)

    def decode_bytes(self, ids):
        return self.decode(ids).encode()


FLAGS = ["--num_samples=20", "--max_new_tokens=30", "--dtype=float32", "--seed=5", "--start=What?"]


def test_a_file_is_continued_from_wherever_it_was_cut(model, command):
    flags = [f"--init_from={model}", *FLAGS]
    assert command("sample", *flags, "--out=whole.jsonl")[0] == 0
    whole = Path("whole.jsonl").read_bytes()
    ends = [0, *(match.end() for match in re.finditer(b"\n", whole))]
    for cut in (0, 1, 14, 40, ends[1], ends[1] + 1, ends[3] - 1, ends[16], ends[18] + 30, len(whole)):
        Path("cut.jsonl").write_bytes(whole[:cut])
        code, out, error = command("sample", *flags, "--out=cut.jsonl")
        assert code == 0, error
        assert Path("cut.jsonl").read_bytes() == whole
        assert out.endswith("wrote 20 samples to cut.jsonl\n")
    Path("cut.jsonl").write_bytes(whole[: ends[2]])  # more of the same are the same
    assert command("sample", *flags, "--num_samples=24", "--out=cut.jsonl")[0] == 0
    assert Path("cut.jsonl").read_bytes().startswith(whole) and Path("cut.jsonl").read_bytes().count(b"\n") == 24


def test_ctrl_c_names_the_command_that_goes_on(model, monkeypatch, capsys):
    flags, add = [f"--init_from={model}", *FLAGS, "--out=a.jsonl"], sample_file.SampleWriter.add

    def add_three(writer, *sample):
        if writer.done == 3:
            raise KeyboardInterrupt
        add(writer, *sample)

    for more, same in (([], "the same command"), (["--overwrite=true"], "the same command without --overwrite")):
        monkeypatch.setattr(sample_file.SampleWriter, "add", add_three)
        with pytest.raises(KeyboardInterrupt):
            main([*flags, *more])
        assert f"\n3 of 20 samples are in a.jsonl; {same} goes on\n" in capsys.readouterr().out
        monkeypatch.setattr(sample_file.SampleWriter, "add", add)
        three = Path("a.jsonl").read_bytes()
        main(flags)
        assert three.count(b"\n") == 3 and Path("a.jsonl").read_bytes().startswith(three)
        Path("a.jsonl").unlink()


def test_bytes_that_are_not_utf_8_are_written_and_continued(model, command):
    flags = [f"--init_from={model}", *FLAGS, "--stop=\udcff", "--out=a.jsonl"]
    assert command("sample", *flags)[0] == 0
    whole = Path("a.jsonl").read_bytes()
    assert json.loads(whole.decode("utf-8").splitlines()[0])["stop"] == "\udcff"
    Path("a.jsonl").write_bytes(whole[: len(whole) // 2])
    assert command("sample", *flags)[0] == 0 and Path("a.jsonl").read_bytes() == whole


def test_several_prompts_are_continued(model, command):
    Path("p.txt").write_text("What?\nNothing\nWorld\n")
    flags = [f"--init_from={model}", "--prompts=p.txt", "--num_samples=3", "--max_new_tokens=9"]
    assert command("sample", *flags, "--out=whole.jsonl")[0] == 0
    whole = Path("whole.jsonl").read_bytes().splitlines(keepends=True)
    for lines in range(10):
        Path("cut.jsonl").write_bytes(b"".join(whole[:lines]) + b'{"prom' * (0 < lines < 9))
        assert command("sample", *flags, "--out=cut.jsonl")[0] == 0
        assert Path("cut.jsonl").read_bytes() == b"".join(whole)
    code, _, error = command("sample", *flags, "--out=cut.jsonl", "--num_samples=2")
    assert code == 2 and "line 3 is not by this command: its prompt is 'What?', here it is 'Nothing'" in error


def other_weights(model):
    network = GPT.from_pretrained(model)
    with torch.no_grad():
        network.h[1].mlp.c_fc.weight[3, 3] += 1e-3
    network.save_pretrained(model)


@pytest.mark.parametrize(
    "change, message",
    [
        (["--seed=6"], "line 1 is not by this command: its seed is 5, here it is 6; name another file, or --over"),
        (["--temperature=0.5"], "its temperature is 0.8"),
        (["--start=Why?"], "its prompt is 'What?', here it is 'Why?'"),
        (["--num_samples=19"], "has more than the 19 samples"),
        (["--dtype=bfloat16"], "its dtype is 'float32'"),
        (other_weights, "its weights is"),
        (b"mine\n", "is there already; name another file"),
        (b"mine", "is there already; name another file"),
        (b'{"prompt": "What?"}\n', "its sample is none"),
        (b'{"prompt": "Who', "is no sample of this command"),
        (b'{"prompt": "What?", "text": "x\n', "line 1 is not by this command: its prompt is none"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_another_command_wrote_is_refused_and_kept(model, command, change, message):
    flags = [f"--init_from={model}", *FLAGS, "--out=out.jsonl"]
    assert command("sample", *flags)[0] == 0
    if isinstance(change, bytes):
        Path("out.jsonl").write_bytes(change)
    elif callable(change):
        change(model)
    before = Path("out.jsonl").read_bytes()
    more = change if isinstance(change, list) else []
    code, _, error = command("sample", *flags, *more)
    assert code == 2 and message in error and len(error.splitlines()) == 1
    assert Path("out.jsonl").read_bytes() == before
    assert command("sample", *flags, *more, "--overwrite=true")[0] == 0
    assert Path("out.jsonl").read_bytes() != before and Path("out.jsonl").read_bytes().count(b"\n") in (19, 20)


def test_what_is_no_file_is_never_replaced(model, command):
    Path("mine.txt").write_text("mine")
    Path("link.jsonl").symlink_to("mine.txt")
    Path("folder").mkdir()
    for out in ("link.jsonl", "folder", "/dev/null"):
        code, _, error = command("sample", f"--init_from={model}", f"--out={out}", "--overwrite=true")
        assert code == 2 and "is there already and is no file" in error
    assert Path("mine.txt").read_text() == "mine"
    assert "no effect without --out" in command("sample", f"--init_from={model}", "--overwrite=true")[2]


def start(flags, out):
    return subprocess.Popen(
        [sys.executable, "-m", "finetune.sample", *flags, f"--out={out}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def told(flags, out):
    """(exit code, standard error) of the command at its end."""
    with start(flags, out) as process:
        return process.wait(), process.stderr.read()


@pytest.mark.slow
def test_a_killed_command_goes_on_and_writes_the_same_bytes(model):
    flags = [f"--init_from={model}", "--num_samples=200", "--max_new_tokens=150", "--dtype=float32"]
    assert told(flags, "whole.jsonl")[0] == 0
    whole, interrupted = Path("whole.jsonl").read_bytes(), 0
    for how, lines in ((signal.SIGKILL, 1), (signal.SIGINT, 60), (signal.SIGKILL, 130)):
        with start(flags, "killed.jsonl") as process:
            while process.poll() is None:
                if Path("killed.jsonl").exists() and Path("killed.jsonl").read_bytes().count(b"\n") >= lines:
                    second = told(flags, "killed.jsonl")[1] if lines == 130 and not interrupted else ""
                    process.send_signal(how)
                    interrupted += 1
                    assert process.wait() == (130 if how == signal.SIGINT else -how)
                    assert not second or "another command is writing it" in second
                    break
                time.sleep(0.005)
        assert whole.startswith(Path("killed.jsonl").read_bytes())
    assert interrupted >= 2
    assert told(flags, "killed.jsonl")[0] == 0
    assert Path("killed.jsonl").read_bytes() == whole


@pytest.mark.slow
def test_samples_of_gpt2_are_those_of_one_batch():
    """The shape of GPT-2 small in float32."""
    model, prompt = GPT.from_scratch(GPTConfig(**GPT2)), np.array([5, 6, 7])
    how = {"temperature": 0.8, "top_k": 200}
    pieces = draw_samples(model, Numbers(), prompt, num_samples=33, max_new_tokens=25, **how)
    idx, generator = torch.from_numpy(prompt).expand(33, -1), torch.Generator().manual_seed(1337)
    assert model.generate(idx, 25, generator=generator, **how)[:, 3:].tolist() == [sample.ids for sample in pieces]
    [alone] = draw_samples(model, Numbers(), prompt, num_samples=1, max_new_tokens=25, **how)
    assert alone.ids == pieces[0].ids


@pytest.mark.slow
def test_a_thousand_samples_of_gpt2_stay_below_4_gb():
    """The first 161 samples, with five of the largest pieces. They end soon, but their keys and values are
    touched up to the 500th."""
    script = f"""
import itertools
import numpy as np
import torch
from finetune import GPT, GPTConfig
from finetune.gpt import attention, sampling
from finetune.runtime import device
from tests.test_sample_pieces import Numbers

attend = attention.KVCache.attend

def attend_and_touch(cache, layer, q, k, v):
    is_new, out = cache.layers is None, attend(cache, layer, q, k, v)
    if is_new:
        cache.layers[:, :, :, :, 2:].fill_(1e-9)
    return out

attention.KVCache.attend = attend_and_touch
device.keep_heap()
model = GPT.from_scratch(GPTConfig(**{GPT2}))
how = {{"num_samples": 1000, "max_new_tokens": 500, "temperature": 0.8, "top_k": 200, "stop": "5"}}
samples = sampling.iterate_samples(model, Numbers(), np.array([5]), **how)
peaks = {{number: device.peak_memory() for number, _ in enumerate(itertools.islice(samples, 161))}}
print(peaks[64], peaks[160])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env={**os.environ})
    assert done.returncode == 0, done.stderr
    third, last = map(int, done.stdout.split())
    assert last < 4e9 and last < 1.1 * third, (third, last)


@pytest.mark.parametrize("temperature", ["1e-40", "1e-21", "0"])
def test_almost_no_temperature_is_greedy(model, command, temperature):
    flags = [f"--init_from={model}", *FLAGS, "--num_samples=2"]
    assert command("sample", *flags, f"--temperature={temperature}", "--out=cold.jsonl")[0] == 0
    rows = [json.loads(line) for line in Path("cold.jsonl").read_text().splitlines()]
    prompt = torch.from_numpy(tokenizers.prompt_ids(tokenizers.from_directory(model), "What?"))[None]
    greedy = GPT.from_pretrained(model).generate(prompt, 30, temperature=0, eos_token_id=None)[0, prompt.size(1) :]
    assert all(row["tokens"] == greedy[: len(row["tokens"])].tolist() for row in rows) and rows[0]["tokens"]


def test_every_end_of_the_model_ends_a_sample(model, command):
    tokenizer = tokenizers.from_directory(model)
    ends = [ids_of(GPT.from_pretrained(model), tokenizer, 1)[0][at] for at in (7, 3)]
    Path(model, "generation_config.json").write_text(json.dumps({"eos_token_id": [299, *ends]}))
    flags = [f"--init_from={model}", *FLAGS, "--out=a.jsonl"]
    assert command("sample", *flags, "--top_k=0")[0] == 0
    rows = [json.loads(line) for line in Path("a.jsonl").read_text().splitlines()]
    assert {row["finish_reason"] for row in rows} == {"end_of_text", "length"} or len(rows) == 20
    assert all(not {299, *ends} & set(row["tokens"]) for row in rows)
    assert any(row["finish_reason"] == "end_of_text" and len(row["tokens"]) < 30 for row in rows)


def test_a_console_without_the_characters_shows_a_replacement_in_training_too(monkeypatch):
    from finetune import train

    Path("text.txt").write_text("Grüße, 世界! ½ naïve 🙂 ñandú øre.\n" * 60, encoding="utf-8")
    console = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", console)
    shape = {"n_layer": 1, "n_head": 1, "n_embd": 8, "block_size": 16, "max_iters": 2, "device": "cpu"}
    how = {"num_samples": 3, "max_new_tokens": 40, "sample_interval": 1, "start": "世界"}
    run = train(init_from="scratch", dataset="text.txt", tokenizer="char", out_dir="out", **shape, **how)
    texts = run.sample("ß", num_samples=2, max_new_tokens=9)
    console.flush()
    shown = console.buffer.getvalue().decode("ascii")
    assert run.status == "finished" and shown.count("---------------\n??") >= 6 and texts[0].startswith("ß")
