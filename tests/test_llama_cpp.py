"""`export --format=gguf` asks an installed llama.cpp, which may crash, hang or answer otherwise. The real one, where it
is installed, writes what transformers writes, and keeps the perplexity."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from test_gguf import TEXT, models  # noqa: F401

from finetune.publishing import llama_cpp

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
REAL = pytest.mark.skipif(find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed")

FAKES = {  # module, and what the export says of it
    "import os; os.abort()": "not checked with llama.cpp: it crashed: Aborted",
    "import time; time.sleep(60)": "not checked with llama.cpp: it took more than 2 seconds",
    "raise ValueError('no such processor')": "not checked with llama.cpp: ValueError: no such processor",
    "import sys; raise OSError(eval(sys.stdin.read())['path'] + ' in /opt/my/lib.so')": (
        "not checked with llama.cpp: OSError: {name} in lib.so"
    ),
    "print('welcome'); raise SystemExit": "not checked with llama.cpp: its answer is no JSON",
}


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """A function that makes a package of llama.cpp's name with the given source."""

    def make(source):
        (tmp_path / "llama_cpp_python-9.9.dist-info").mkdir(exist_ok=True)
        (tmp_path / "llama_cpp_python-9.9.dist-info" / "METADATA").write_text("Name: llama-cpp-python\nVersion: 9.9\n")
        (tmp_path / "llama_cpp.py").write_text(source)

    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return make


@pytest.mark.heavy
def test_a_llama_cpp_that_gives_no_answer_is_told(models, command, fake, monkeypatch):  # noqa: F811
    models("bpe")
    for number, (source, told) in enumerate(FAKES.items()):
        monkeypatch.setattr(llama_cpp, "SECONDS", 2 if "sleep" in source else 60)
        fake(source)
        code, out, error = command("export", "--init_from=bpe", f"--to=g{number}", "--format=gguf")
        told = told.format(name=f"g{number}-F32.gguf")
        assert code == 0 and f"\n{told}\n" in out and "exported to" in out, out + error


def test_other_ids_are_a_failure(models, command, fake):  # noqa: F811
    theirs, _ = models("char")
    worst = int(theirs(torch.zeros(1, 1, dtype=torch.long)).logits[0, 0].argmin())
    answers = """
class llama_cpp: llama_model_default_params = staticmethod(lambda: type("Parameters", (), {}))
class Llama:
    def __init__(self, path, **settings): open(path, "rb").close()
    def tokenize(self, text, **settings): return IDS
    def generate(self, ids, **settings):
        while True: yield WORST
""".replace("WORST", str(worst))
    own = "[sorted(set(TEXT)).index(char) for char in text.decode()]"
    for ids, told in (("[0]", "gives other ids for"), (own.replace("TEXT", repr(TEXT)), "greedy id")):
        fake(answers.replace("IDS", ids))
        code, _, error = command("export", "--init_from=char", "--to=g", "--format=gguf")
        assert code == 1 and told in error and "nothing was exported" in error, error
        assert not Path("g").exists()


def test_a_program_on_the_path_is_asked(models, command, monkeypatch, tmp_path):  # noqa: F811
    models("bpe")
    monkeypatch.setenv("PATH", str(tmp_path))
    if find_spec("llama_cpp"):
        pytest.skip("the package is asked first")
    for script, told in (
        ("echo out of memory >&2; exit 3", "not checked with llama.cpp: out of memory"),
        ("kill -SEGV $$", "not checked with llama.cpp: it crashed: Segmentation fault"),
        ("echo hello", "not checked with llama.cpp: its output does not hold the prompt"),
    ):
        Path("llama-cli").write_text(f"#!/bin/sh\n{script}\n")
        Path("llama-cli").chmod(0o755)
        code, out, error = command("export", "--init_from=bpe", f"--to=g{len(told)}", "--format=gguf")
        assert code == 0 and f"\n{told}\n" in out, out + error


@REAL
@pytest.mark.parametrize("kind", ["f32", "f16", "q8_0"])
@pytest.mark.parametrize("name", ["char", "bpe", "chat"])
def test_the_export_is_checked_with_the_real_one(models, command, name, kind):  # noqa: F811
    models(name, n_positions=128)
    code, out, error = command("export", f"--init_from={name}", "--to=g", "--format=gguf", f"--gguf_type={kind}")
    assert code == 0 and "\nchecked with llama.cpp (llama-cpp-python " in out and "32 greedy ids equal" in out, out


LOSS = """
import json, sys
import numpy as np
from llama_cpp import Llama, llama_cpp
made = llama_cpp.llama_model_default_params()
made.use_extra_bufts = False
llama_cpp.llama_model_default_params = lambda: made
model, losses = Llama(sys.argv[1], n_ctx=0, logits_all=True, verbose=False), []
for row in json.load(sys.stdin):
    model.reset()
    model.eval(row)
    logits = model.scores[: len(row) - 1].astype(np.float64)
    logits -= logits.max(1, keepdims=True)
    losses += (np.log(np.exp(logits).sum(1)) - logits[np.arange(len(row) - 1), row[1:]]).tolist()
print(np.mean(losses))
"""


@REAL
@pytest.mark.parametrize("name", ["char", "bpe"])
def test_the_real_one_keeps_the_perplexity(models, command, name):  # noqa: F811
    theirs, _ = models(name, n_positions=128)
    start = torch.arange(8)[:, None]
    idx = theirs.generate(start, do_sample=True, max_length=128, eos_token_id=None, pad_token_id=0)
    with torch.no_grad():
        wanted = theirs(idx, labels=idx).loss.exp().item()
    told = []
    for kind, bound in {"f32": 0.001, "q8_0": 0.01}.items():
        code, _, error = command("export", f"--init_from={name}", "--to=g", "--format=gguf", f"--gguf_type={kind}")
        assert code == 0, error
        argv = [sys.executable, "-c", LOSS, f"g/g-{kind.upper()}.gguf"]
        done = subprocess.run(argv, input=json.dumps(idx.tolist()), capture_output=True, text=True, env=os.environ)
        found = torch.tensor(float(done.stdout.split()[-1])).exp().item()
        told.append(f"{name}, {kind}: perplexity {found:.4f} in llama.cpp, {wanted:.4f} in transformers")
        assert abs(found / wanted - 1) < bound, done.stderr
    print(*told, sep="\n")
