"""pipeline() of transformers on an export: inside the context, without a warning, and in batches.

FINETUNE_TRANSFORMERS_4 may name a directory of `pip install --target DIR "transformers<5"` without torch and numpy,
which is then asked too."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import finetune
from finetune.data.tokenizer import CharTokenizer

ENDS = {"bos_token_id": 0, "eos_token_id": [0, 1], "pad_token_id": 1}
SOURCES = {  # generation_config.json of a source with 32 positions, and what is generated where a call says nothing
    "plain": (None, 16),
    "ends": (ENDS, 16),
    "twenty": ({**ENDS, "max_length": 20}, 16),  # the default of transformers 4
    "beyond": ({**ENDS, "max_length": 64}, 16),
    "short": ({**ENDS, "max_length": 7}, 7),
    "new": ({**ENDS, "max_new_tokens": 8}, 8),
    "many": ({**ENDS, "max_new_tokens": 100}, 16),
}
USE = """
import json, logging, sys
from transformers import pipeline
told, handler, results = [], logging.Handler(), {}
handler.emit = lambda record: told.append(record.getMessage())
logging.getLogger("transformers").addHandler(handler)
texts = ["Hello", "the end Hello world", "world", "end. the end. Hello Hello Hello"]
for name in sys.argv[1:]:
    write = pipeline("text-generation", name)
    told.clear()
    lengths = [len(write(text, return_tensors=True)[0]["generated_token_ids"]) for text in (texts[0], "Hello" * 8)]
    alone = [write(text, max_new_tokens=6, do_sample=False)[0]["generated_text"] for text in texts]
    write = pipeline("text-generation", name)  # it has counted its calls, and would advise batches
    together = write(texts, batch_size=4, max_new_tokens=6, do_sample=False)
    warned = [text for text in told if "max_length" in text or "maximum length" in text or "right-padding" in text]
    results[name] = {"lengths": lengths, "equal": [one[0]["generated_text"] for one in together] == alone,
                     "warned": warned, "ends": write.model.generation_config.eos_token_id}
"""


@pytest.mark.parametrize("version", ["installed", "4"])
def test_pipeline_stays_inside_the_context(version, hf_model, bpe_directory, command, monkeypatch):
    place = os.environ.get("FINETUNE_TRANSFORMERS_4")
    if version == "4" and not place:
        pytest.skip("FINETUNE_TRANSFORMERS_4 names no directory")
    for name, (settings, new_tokens) in SOURCES.items():
        hf_model(vocab_size=300, n_layer=1, bos_token_id=0, eos_token_id=0).save_pretrained(name)
        bpe_directory("Hello world, the end. " * 3, name, 300)
        Path(name, "generation_config.json").unlink()
        if settings:
            Path(name, "generation_config.json").write_text(json.dumps(settings))
        code, _, error = command("export", f"--init_from={name}", f"--to=my-{name}")
        assert code == 0, error
        written = json.loads(Path(f"my-{name}", "generation_config.json").read_text())
        kept = dict(settings or {"bos_token_id": 0, "eos_token_id": 0})
        kept.pop("max_length", None)
        assert written == {**kept, "max_new_tokens": new_tokens}
    argv = [f"my-{name}" for name in SOURCES]
    if version == "4":
        script = USE + "\nprint(json.dumps(results))"
        environ = {**os.environ, "PYTHONPATH": place}
        done = subprocess.run([sys.executable, "-c", script, *argv], capture_output=True, text=True, env=environ)
        assert done.returncode == 0, done.stderr
        results = json.loads(done.stdout.splitlines()[-1])
    else:
        names = {}
        monkeypatch.setattr("sys.argv", ["use", *argv])
        exec(USE, names)
        results = names["results"]
    for name, (settings, new_tokens) in SOURCES.items():
        found = results[f"my-{name}"]
        assert found["lengths"][0] <= 1 + new_tokens and found["lengths"][1] <= 32, (name, found)
        assert found["equal"] and not found["warned"] and found["ends"] == (settings or {}).get("eos_token_id", 0), name


def test_ctranslate2_writes_what_transformers_writes(hf_model, command):
    """With the three lines of docs/export.md for a character model."""
    ctranslate2 = pytest.importorskip("ctranslate2")
    from transformers import AutoTokenizer

    tokenizer = CharTokenizer(sorted(set("Hello world; na\u00efve \u6771\u4eac\n")))
    theirs = hf_model(vocab_size=tokenizer.vocab_size, bos_token_id=None, eos_token_id=None)
    theirs.save_pretrained("char")
    tokenizer.save("char", 32)
    code, _, error = command("export", "--init_from=char", "--to=mine")
    assert code == 0, error
    page = (Path(finetune.__file__).parents[1] / "docs" / "export.md").read_text()
    exec(re.search(r"```python\n([^`]*ctranslate2[^`]*)```", page)[1])
    read, model = AutoTokenizer.from_pretrained("mine"), ctranslate2.Generator("mine-ct2")
    for prompt in ("Hello w", "\n\u6771", "  "):
        ids = read(prompt)["input_ids"]
        tokens = read.convert_ids_to_tokens(ids)
        (found,) = model.generate_batch([tokens], max_length=20, sampling_topk=1, include_prompt_in_result=False)
        wanted = theirs.generate(torch.tensor([ids]), max_new_tokens=20, do_sample=False, pad_token_id=0)
        assert found.sequences_ids[0] == wanted[0, len(ids) :].tolist()
