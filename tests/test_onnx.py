"""`export --format=onnx`: onnxruntime gives the logits of transformers, for any lengths, batches and padding."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from finetune.data.tokenizer import CharTokenizer
from finetune.publishing import onnx_file

TEXT = "Hello world, na\u00efve \u6771\u4eac \U0001f642"


def make(name, hf_model, bpe_directory):
    if name == "char":
        tokenizer = CharTokenizer(sorted(set(TEXT)))
        Path(name).mkdir()
        tokenizer.save(name, 32)
        size, end = tokenizer.vocab_size, None
    else:
        bpe_directory(TEXT * 3, name, 300)
        size, end = 300, 0
    theirs = hf_model(vocab_size=size, bos_token_id=end, eos_token_id=end)
    theirs.save_pretrained(name)
    return theirs


@pytest.mark.parametrize(
    "name", [pytest.param("char", marks=pytest.mark.heavy), pytest.param("bpe", marks=pytest.mark.slow)]
)
def test_onnxruntime_gives_the_logits_of_transformers(name, hf_model, bpe_directory, command, monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime")
    from transformers import AutoTokenizer

    is_large = name == "bpe"
    if is_large:
        monkeypatch.setattr(onnx_file, "MOST", 0)
    theirs = make(name, hf_model, bpe_directory)
    code, out, error = command("export", f"--init_from={name}", "--to=mine", "--format=onnx", "--license=mit")
    assert code == 0 and "verified model.onnx with onnxruntime" in out and not error, error
    session = onnxruntime.InferenceSession("mine/model.onnx")
    for lengths in ([1], [32], [7], [5, 5, 5], [32, 3, 1, 17]):
        rows = [torch.arange(n) * 7 % theirs.config.vocab_size for n in lengths]
        ids, mask = np.zeros((2, len(rows), max(lengths)), np.int64)
        for i, row in enumerate(rows):
            ids[i, -len(row) :], mask[i, -len(row) :] = row, 1
        (logits,) = session.run(["logits"], {"input_ids": ids, "attention_mask": mask})
        for found, row in zip(logits, rows):
            with torch.no_grad():
                np.testing.assert_allclose(found[-len(row) :], theirs(row[None]).logits[0], rtol=1e-4, atol=1e-4)
    assert AutoTokenizer.from_pretrained("mine")("Hello")["input_ids"]
    assert "With onnxruntime: `model.onnx`" in Path("mine/README.md").read_text()
    assert ("model.onnx.data" in Path("mine/manifest.json").read_text()) == is_large
    assert Path("mine/model.onnx").is_file() and Path("mine/model.onnx.data").is_file() == is_large
    assert b"site-packages" not in Path("mine/model.onnx").read_bytes()  # folders of this computer
    found = json.loads(Path("mine/verification.json").read_text())["onnx"]
    assert found["max_difference"] < 1e-4 * found["largest_logit"]


def test_without_its_packages_a_line_says_what_to_install(hf_model, bpe_directory, command, monkeypatch):
    make("char", hf_model, bpe_directory)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    code, _, error = command("export", "--init_from=char", "--to=mine", "--format=onnx")
    assert code == 2 and error.count("\n") == 1 and "pip install 'finetune-gpt2[onnx]'" in error, error
    assert not Path("mine").exists()
