"""A GGUF file is the model: gguf reads its tensors back, transformers loads it, llama.cpp writes what transformers
writes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from finetune.data import bpe_files, chat
from finetune.data.tokenizer import CharTokenizer
from finetune.publishing import ollama
from finetune.publishing.verify import PROMPTS

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

TEXT = (
    "Hello world's; end\n\n don't 12345 na\u00efve \u6771\u4eac \U0001f600\u200d\U0001f467 e\u0301\t\x00 \u2028 ~\\x41"
    " \ufb01 the quick brown fox jumps over a lazy dog"
)
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# transformers' names of the tensors, as in the issue's list; the Conv1D ones are turned there
THEIRS = {
    "token_embd.weight": "transformer.wte.weight",
    "position_embd.weight": "transformer.wpe.weight",
    "output_norm.weight": "transformer.ln_f.weight",
    "blk.1.attn_norm.bias": "transformer.h.1.ln_1.bias",
    "blk.1.attn_qkv.weight": "transformer.h.1.attn.c_attn.weight",
    "blk.0.attn_output.weight": "transformer.h.0.attn.c_proj.weight",
    "blk.1.ffn_norm.weight": "transformer.h.1.ln_2.weight",
    "blk.0.ffn_up.weight": "transformer.h.0.mlp.c_fc.weight",
    "blk.1.ffn_down.bias": "transformer.h.1.mlp.c_proj.bias",
    "blk.1.ffn_down.weight": "transformer.h.1.mlp.c_proj.weight",
}


@pytest.fixture
def models(hf_model, bpe_directory):
    """A function that makes the directory `char`, `bpe` or `chat` of a model."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    def make(name, **shape):
        if name == "char":
            tokenizer = CharTokenizer(sorted(set(TEXT)))
            size, end = tokenizer.vocab_size, None
            Path("char").mkdir()
            tokenizer.save("char", 64)
        else:
            saved = str(bpe_directory(TEXT * 3) / "tokenizer.json")
            tokenizer = PreTrainedTokenizerFast(tokenizer_file=saved, eos_token="<|endoftext|>")
            if name == "chat":
                tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
                tokenizer.chat_template = CHAT
            size, end = len(tokenizer) + 3, tokenizer.eos_token_id  # three rows without a token
            tokenizer.save_pretrained(name)
        shape = {"vocab_size": size, "n_embd": 64, "n_positions": 64, "bos_token_id": end, "eos_token_id": end, **shape}
        theirs = hf_model(**shape)
        theirs.save_pretrained(name)
        return theirs, AutoTokenizer.from_pretrained(name)

    return make


def fields(path):
    from gguf import GGUFReader

    return {name: field.contents() for name, field in GGUFReader(path).fields.items()}


@pytest.mark.parametrize("name", ["char", "bpe", "chat"])
def test_tensors_are_those_of_the_model(models, command, name):
    from gguf import GGUFReader, quants

    models(name)
    held = load_file(f"{name}/model.safetensors")
    for kind, bound in {"f32": 0, "f16": 2e-3, "q8_0": 2e-2}.items():
        code, out, error = command("export", f"--init_from={name}", "--to=g", "--format=gguf", f"--gguf_type={kind}")
        assert code == 0 and "28 tensors read back are as they were written" in out, error
        path = f"g/g-{kind.upper()}.gguf"
        tensors = {one.name: one for one in GGUFReader(path).tensors}
        assert len(tensors) == len(held)
        for ours, theirs in THEIRS.items():
            read = torch.from_numpy(np.array(quants.dequantize(tensors[ours].data, tensors[ours].tensor_type)))
            is_turned = "c_" in theirs and theirs.endswith("weight")
            wanted = held[theirs].t() if is_turned else held[theirs]
            assert (read - wanted).abs().max() <= bound * wanted.abs().max(), ours
        assert tensors["blk.0.ffn_up.weight"].tensor_type.name.lower() == kind
        assert tensors["blk.0.ffn_up.bias"].tensor_type.name == "F32"
    assert Path("g/manifest.json").is_file() and not Path("g/g-F32.gguf").exists()  # replaced by the last one


def test_transformers_loads_the_file(models, command):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    theirs, tokenizer = models("chat")
    code, _, error = command("export", "--init_from=chat", "--to=g", "--format=gguf")
    assert code == 0, error
    kwargs = {"gguf_file": "g-F32.gguf"}
    loaded = AutoModelForCausalLM.from_pretrained("g", config=theirs.config, **kwargs).eval()
    idx = torch.arange(64)[None]
    torch.testing.assert_close(loaded(idx).logits, theirs(idx).logits, rtol=1e-5, atol=1e-4)
    read = AutoTokenizer.from_pretrained("g", **kwargs)
    assert [read(prompt)["input_ids"] for prompt in PROMPTS] == [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    found = fields("g/g-F32.gguf")
    assert found["tokenizer.chat_template"] == CHAT and found["tokenizer.ggml.add_bos_token"] is False
    assert (found["gpt2.context_length"], found["gpt2.attention.head_count"]) == (64, 4)
    ends = [found[f"tokenizer.ggml.{key}_token_id"] for key in ("eos", "eot")]
    assert ends == tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])  # the turn's end stops too


def test_q8_0_keeps_the_perplexity(models, command):
    from transformers import AutoModelForCausalLM

    theirs, _ = models("bpe")
    code, _, error = command("export", "--init_from=bpe", "--to=g", "--format=gguf", "--gguf_type=q8_0")
    assert code == 0, error
    loaded = AutoModelForCausalLM.from_pretrained("g", config=theirs.config, gguf_file="g-Q8_0.gguf").eval()
    idx = theirs.generate(torch.zeros(8, 1, dtype=torch.long), do_sample=True, max_length=64, eos_token_id=None)
    with torch.no_grad():
        before, after = (model(idx, labels=idx).loss.exp() for model in (theirs, loaded))
    assert abs(after / before - 1) < 0.01


def test_one_export_holds_both(models, command):
    models("bpe")
    code, out, error = command("export", "--init_from=bpe", "--to=mine", "--gguf_type=f16")
    assert code == 0 and "verified with transformers" in out and "verified mine-F16.gguf" in out, error
    assert {"model.safetensors", "README.md", "mine-F16.gguf", *ollama.FILES} <= {
        p.name for p in Path("mine").iterdir()
    }
    params = json.loads(Path("mine/params").read_text())
    assert params == {"num_ctx": 64, "num_predict": 32, "stop": ["<|endoftext|>"]}
    modelfile = Path("mine/Modelfile").read_text()
    assert modelfile.startswith('FROM ./mine-F16.gguf\nTEMPLATE """{{ .Prompt }}"""\nPARAMETER num_ctx 64\n')
    code, out, error = command("export", "--init_from=bpe", "--to=mine", "--gguf_type=f16")
    assert code == 0 and "is this export already" in out, error
    code, out, error = command("export", "--init_from=bpe", "--to=mine")
    assert code == 0 and not Path("mine/mine-F16.gguf").exists(), error


def test_what_the_format_cannot_hold_is_refused(models, command, monkeypatch):
    from transformers import AutoTokenizer

    models("chat")
    for flags, told in {
        ("--format=gguf", "--dtype=float16"): "dtype: a GGUF file has its own types",
        ("--format=gguf", "--push_to_hub=me/x"): "push_to_hub: takes format=hf; with --gguf_type",
        ("--format=nanogpt", "--gguf_type=f16"): "gguf_type: format=nanogpt writes no GGUF file",
    }.items():
        code, _, error = command("export", "--init_from=chat", "--to=g", *flags)
        assert code == 2 and told in error and len(error.splitlines()) == 1, error
    tensors = load_file("chat/model.safetensors")
    tensors["transformer.h.0.mlp.c_fc.weight"][3, 5] = 1e5
    from safetensors.torch import save_file

    save_file(tensors, "chat/model.safetensors", {"format": "pt"})
    code, _, error = command("export", "--init_from=chat", "--to=g", "--format=gguf", "--gguf_type=f16")
    assert code == 2 and "h.0.mlp.c_fc.weight are too large for f16; use f32" in error, error
    tokenizer = AutoTokenizer.from_pretrained("chat")
    tokenizer.backend_tokenizer.normalizer = __import__("tokenizers").normalizers.Lowercase()
    tokenizer.save_pretrained("chat")
    code, _, error = command("export", "--init_from=chat", "--to=g", "--format=gguf")
    assert code == 2 and "GPT-2's kind of BPE and characters: it has a normalizer" in error, error
    monkeypatch.setitem(sys.modules, "gguf", None)
    code, _, error = command("export", "--init_from=chat", "--to=g", "--format=gguf")
    assert code == 2 and "pip install 'finetune-gpt2[gguf]'" in error and not Path("g").exists(), error


def test_a_template_that_is_no_row_of_turns_has_no_modelfile(models, command):
    models("chat")
    for template in (CHAT.replace("m['content']", "m['content'] | trim"), "{{ messages[0]['content'] }}"):
        Path("chat/chat_template.jinja").write_text(template)
        code, out, error = command("export", "--init_from=chat", "--to=g", "--format=gguf")
        assert code == 0 and "no Modelfile: Ollama's templates cannot" in out, error
        assert not Path("g/Modelfile").exists() and fields("g/g-F32.gguf")["tokenizer.chat_template"] == template


LLAMA_CPP = """
const [place, path, count, size, prompts] = process.argv.slice(2);
const {getLlama} = await import(`${place}/node_modules/node-llama-cpp/dist/index.js`);
const llama = await getLlama({build: "never", gpu: false, logLevel: "error", maxThreads: 2});
const model = await llama.loadModel({modelPath: path});
const context = await model.createContext({contextSize: model.trainContextSize});
const results = [];
for (const prompt of JSON.parse(prompts)) {
  const ids = [...model.tokenize(prompt, true)], greedy = [], sequence = context.getSequence();
  for await (const id of sequence.evaluate(ids, {temperature: 0, yieldEogToken: true}))
    if (greedy.push(id) >= Number(count)) break;
  await sequence.dispose();
  results.push({ids, greedy, back: model.detokenize(ids, true)});
}
const ends = Array.from({length: Number(size)}, (_, i) => i).filter(i => model.isEogToken(i));
console.log(JSON.stringify({results, ends}));
process.exit(0);
"""


@pytest.mark.skipif("NODE_LLAMA_CPP" not in os.environ, reason="set it to a directory with npm's node-llama-cpp")
@pytest.mark.parametrize("name", ["char", "bpe", "chat"])
def test_llama_cpp_writes_what_transformers_writes(models, command, name):
    theirs, tokenizer = models(name)
    code, _, error = command("export", f"--init_from={name}", "--to=g", "--format=gguf")
    assert code == 0, error
    prompts = [prompt[:25] for prompt in PROMPTS]
    if name == "char":
        prompts = [
            "".join(char for char in prompt if char in TEXT) for prompt in [*prompts, TEXT[:50], TEXT[50:100], ";"]
        ]
    else:
        prompts += ["a<|endoftext|>b", "\n\n \n  x", "it's  we'll \t tab", "<|im_start|>user\nhi<|im_end|>\n"]
    Path("run.mjs").write_text(LLAMA_CPP)
    argv = [os.environ["NODE_LLAMA_CPP"], "g/g-F32.gguf", "10", str(theirs.config.vocab_size), json.dumps(prompts)]
    done = subprocess.run(["node", "run.mjs", *argv], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    ends = {"char": [], "bpe": ["<|endoftext|>"], "chat": ["<|endoftext|>", "<|im_end|>"]}[name]
    assert found["ends"] == tokenizer.convert_tokens_to_ids(ends)
    for prompt, result in zip(prompts, found["results"]):
        ids, greedy = result["ids"], result["greedy"]
        assert ids == tokenizer(prompt, add_special_tokens=False)["input_ids"] and result["back"] == prompt
        logits = theirs(torch.tensor([ids + greedy])).logits[0, len(ids) - 1 : -1]
        chosen = logits[torch.arange(len(greedy)), torch.tensor(greedy)]
        # llama.cpp's GELU and cache are f16, so that a tie may go either way
        assert greedy and (logits.max(dim=1).values - chosen <= 0.02 * logits.abs().max()).all(), prompt


GO = """
package main

import ("encoding/json"; "os"; "text/template")

type Message struct { Role, Content string }

func main() {
	source, _ := os.ReadFile("g/template")
	var rows [][]Message
	json.Unmarshal([]byte(os.Args[1]), &rows)
	parsed := template.Must(template.New("").Parse(string(source)))
	for _, row := range rows {
		if err := parsed.Execute(os.Stdout, map[string]any{"Messages": row}); err != nil { panic(err) }
		os.Stdout.WriteString("\\x00")
	}
}
"""


@pytest.mark.skipif(not shutil.which("go"), reason="Ollama's templates are Go's, which is not installed")
@pytest.mark.parametrize("template", [CHAT, chat.TEMPLATE])
def test_go_renders_the_template_as_jinja_does(models, command, template):
    from transformers import AutoTokenizer

    models("chat")
    Path("chat/chat_template.jinja").write_text(template)
    code, _, error = command("export", "--init_from=chat", "--to=g", "--format=gguf")
    assert code == 0, error
    turns = [
        ("system", 'Be "kind" {{.Role}}'),
        ("user", "A\n\n"),
        ("assistant", " B`"),
        ("user", "C"),
        ("assistant", "D"),
    ]
    messages = [{"role": role, "content": content} for role, content in turns]
    rows = [messages[:2], messages[1:2], messages[:4], messages[1:4]]
    Path("main.go").write_text(GO)
    given = json.dumps([[{"Role": one["role"], "Content": one["content"]} for one in row] for row in rows])
    done = subprocess.run(["go", "run", "main.go", given], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    tokenizer = AutoTokenizer.from_pretrained("chat")
    wanted = [tokenizer.apply_chat_template(row, tokenize=False, add_generation_prompt=True) for row in rows]
    assert done.stdout.split("\0")[:-1] == wanted


@pytest.mark.parametrize(
    "argv",
    [
        ["export", "--to=new", "--format=gguf"],
        ["export", "--to=new"],
        ["sample", "--chat=true", "--max_new_tokens=2"],
        ["eval", "--dataset=text.txt"],
    ],
)
@pytest.mark.parametrize("kind", ["bpe", "chat"])
def test_a_template_that_is_no_text_is_refused(models, command, argv, kind):
    """By us, or by transformers, which reads the tokenizer `chat`."""
    models(kind)
    Path("text.txt").write_text(TEXT * 9)
    Path(kind, "chat_template.jinja").write_bytes(b"\xff" + CHAT.encode())
    code, _, error = command(argv[0], f"--init_from={kind}", *argv[1:])
    assert code == 2 and error.count("\n") == 1 and "utf-8" in error.lower() and not Path("new").exists(), error


@pytest.mark.parametrize("template", [[{"name": 3}], 7, [7], {"a": "b"}])
def test_a_template_of_no_kind_is_none(template):
    assert bpe_files.chat_template({"tokenizer_config.json": json.dumps({"chat_template": template}).encode()}) is None


def test_half_a_surrogate_pair_in_the_tokenizers_files_is_kept(models, command):
    """JSON can hold one, and UTF-8 cannot."""
    models("bpe")
    path = Path("bpe/tokenizer_config.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "note": "\ud800é", "chat_template": "\ud800"}))
    for flags in ([], ["--format=gguf"]):
        code, _, error = command("export", "--init_from=bpe", f"--to=new{len(flags)}", *flags)
        assert code == 0, error
    assert json.loads(Path("new0/tokenizer_config.json").read_text(encoding="utf-8"))["note"] == "\ud800é"
