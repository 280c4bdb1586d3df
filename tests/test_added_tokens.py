"""Models and data with added tokens: the embedding grows, the tokenizer, the chat template and the generation settings
stay those of the model, and samples end where transformers ends them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from finetune import GPT
from finetune.config.recipe import Recipe
from finetune.data.prepare import prepare
from finetune.publishing.export import export
from finetune.runs import chat_session
from finetune.training import trainer

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # peft's own
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ADDED = ["<|im_start|>", "<|im_end|>"]
SMALL = {
    "batch_size": 4,
    "gradient_accumulation_steps": 1,
    "max_iters": 6,
    "eval_interval": 3,
    "learning_rate": 1e-2,
    "weight_decay": 0.0,
    "warmup_iters": 0,
    "num_samples": 0,
    "device": "cpu",
    "dtype": "float32",
    "cpu_threads": 1,
}
SETTINGS = {
    "do_sample": True,
    "temperature": 0.7,
    "top_k": 40,
    "repetition_penalty": 1.2,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": [0, 5],
}


@pytest.fixture
def places(corpus, bpe_directory, hf_model):
    """Directories in the working directory: `plain`, a model with a small BPE, and `chat`, the same with ADDED tokens,
    rows for them, CHATML and generation SETTINGS; and a text, corpus.txt."""
    from transformers import GenerationConfig, GPT2TokenizerFast

    directory = bpe_directory(Path(corpus()).read_text())
    names = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
    tokenizer = GPT2TokenizerFast(tokenizer_file=str(directory / "tokenizer.json"), **names)
    ids = len(tokenizer)
    theirs = hf_model(vocab_size=ids, bos_token_id=0, eos_token_id=0)
    theirs.save_pretrained("plain")
    tokenizer.save_pretrained("plain")
    tokenizer.add_special_tokens({"additional_special_tokens": ADDED})
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained("chat")
    theirs.resize_token_embeddings(len(tokenizer), mean_resizing=True)
    theirs.generation_config = GenerationConfig(**SETTINGS)
    theirs.config.pad_token_id = 0
    theirs.save_pretrained("chat")
    return ids


def run(out_dir, start, data, **changes):
    trainer.train(Recipe(**{**SMALL, "init_from": str(start), "dataset": str(data), "out_dir": out_dir, **changes}))
    return Path(out_dir) / "best"


def read(path):
    return json.loads(Path(path).read_text())


def flags_of(changes):
    return [f"--{name}={value}" for name, value in changes.items()]


def added_text(corpus):
    """A text with ADDED tokens in it."""
    lines = Path(corpus).read_text().splitlines()
    text = "\n".join(f"<|im_start|>{line}<|im_end|>" if n % 2 else line for n, line in enumerate(lines))
    Path("added.txt").write_text(text)
    return "added.txt"


def test_generation_settings_and_tokenizer_travel(places):
    from transformers import AutoTokenizer, GenerationConfig

    prepare(["corpus.txt"], "data", "chat")
    best = run("out", "chat", "data", max_iters=3, always_save_checkpoint=True)
    run("out", "resume", "data", max_iters=6, always_save_checkpoint=True)
    wanted = GenerationConfig.from_pretrained("chat")
    for place in (best, *Path("out").glob("iter_*"), export("out", "exported")):
        found = GenerationConfig.from_pretrained(place).to_dict()
        assert found.pop("max_new_tokens") == 16  # a short context, on which the source has no say
        assert found == {name: value for name, value in wanted.to_dict().items() if name != "max_new_tokens"}
        assert read(place / "config.json").items() >= {"pad_token_id": 0, "eos_token_id": 0}.items()
        assert read(place / "config.json").keys() >= read("chat/config.json").keys() - {"transformers_version"}
        for name in ("tokenizer.json", "chat_template.jinja"):
            assert (place / name).read_bytes() == Path("chat", name).read_bytes()
        theirs, source = (AutoTokenizer.from_pretrained(one) for one in (place, "chat"))
        assert theirs("a <|im_start|>b")["input_ids"] == source("a <|im_start|>b")["input_ids"]
        assert theirs.special_tokens_map == source.special_tokens_map | {"pad_token": "<|endoftext|>"}


def test_max_length_of_the_source_counts_new_tokens(places):
    """A max_length would make calls with max_new_tokens warn."""
    for settings, wanted in (({"max_length": 12}, 12), ({"max_length": 20}, 16), ({"max_new_tokens": 20}, 20)):
        Path("chat/generation_config.json").write_text(json.dumps({**settings, "eos_token_id": [5, 7]}))
        GPT.from_pretrained("chat").save_pretrained("saved")
        assert read("saved/generation_config.json") == {"max_new_tokens": wanted, "eos_token_id": [5, 7]}
        assert read("saved/config.json")["task_specific_params"]["text-generation"] == {"max_new_tokens": wanted}
        GPT.from_pretrained("chat", block_size=16).save_pretrained("cropped")
        assert read("cropped/generation_config.json")["max_new_tokens"] == 8


def test_plain_data_keeps_the_larger_vocabulary(places, command):
    prepare(["corpus.txt"], "data", "plain")
    best = run("out", "chat", "data")
    assert read(best / "config.json")["vocab_size"] == places + 2
    assert (best / "tokenizer.json").read_bytes() == Path("chat/tokenizer.json").read_bytes()
    code, out, error = command("eval", "--out_dir=out", "--baseline=auto", "--device=cpu")
    assert code == 0, error
    shutil.rmtree(best)
    best = run("out", "resume", "data", max_iters=9)
    assert (best / "tokenizer.json").read_bytes() == Path("chat/tokenizer.json").read_bytes()


@pytest.mark.heavy
@pytest.mark.parametrize("changes", [{}, {"lora_rank": 2}])
def test_added_tokens_grow_the_embedding(places, corpus, capsys, command, changes):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    prepare([added_text("corpus.txt")], "data", "chat")
    capsys.readouterr()
    best = run("out", "plain", "data", max_iters=3, **changes)
    assert f"vocabulary: 2 tokens added, {places} -> {places + 2}" in capsys.readouterr().out
    run("out", "resume", "data", max_iters=6, **changes)
    assert "vocabulary:" not in capsys.readouterr().out
    code, out, error = command("plan", "--init_from=plain", "--dataset=data", "--device=cpu", *flags_of(changes))
    parameters = GPT.from_pretrained("out").num_parameters()
    assert code == 0 and f"{parameters:,}" in out, (out, error)
    assert f"vocabulary: 2 tokens added, {places} -> {places + 2}" in out
    assert read(best / "config.json")["vocab_size"] == places + 2 == read(best / "finetune.json")["new_tokens"] + places
    before, after = GPT.from_pretrained("plain").wte.weight, GPT.from_pretrained("out").wte.weight
    assert not torch.equal(after[places], after[places + 1])  # they were trained, each by itself
    assert not torch.equal(before[:places], after[:places])
    theirs = AutoModelForCausalLM.from_pretrained(best)
    assert theirs.get_input_embeddings().weight.shape == (places + 2, 32)
    assert AutoTokenizer.from_pretrained(best).convert_tokens_to_ids(ADDED) == [places, places + 1]
    code, out, error = command("eval", "--out_dir=out", "--baseline=auto", "--general=corpus.txt", "--device=cpu")
    assert code == 0, error
    code, out, error = command("export", "--out_dir=out", "--to=hf", "--interpolate=0.5")
    assert code == 0, error


def test_new_rows_are_the_mean_as_in_transformers(places):
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained("plain")
    theirs.resize_token_embeddings(places + 70, mean_resizing=True)
    ours = GPT.from_pretrained("plain", vocab_size=places + 70)
    wanted = theirs.get_input_embeddings().weight
    assert ours.config.vocab_size == places + 70
    torch.testing.assert_close(ours.wte.weight[: places + 70], wanted, rtol=0, atol=1e-3)
    idx = torch.arange(30)[None] + places
    torch.testing.assert_close(ours.eval()(idx), theirs(idx).logits, rtol=0, atol=0.05)


def test_adapters_with_new_tokens_are_exported(places, corpus):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    prepare([added_text("corpus.txt")], "data", "chat")
    run("out", "plain", "data", lora_rank=2)
    export("out", "adapters", format="peft")
    base = AutoModelForCausalLM.from_pretrained("plain")
    base.resize_token_embeddings(places + 2)
    theirs = PeftModel.from_pretrained(base, "adapters").eval()
    idx = torch.arange(32)[None] * 7 % (places + 2)
    idx[0, 3:5] = torch.tensor([places, places + 1])
    torch.testing.assert_close(GPT.from_pretrained("out").eval()(idx), theirs(idx).logits, rtol=1e-4, atol=1e-4)
    assert "resize_token_embeddings" in Path("adapters/README.md").read_text()


def test_rows_of_a_padded_model_are_used_as_they_are(places, corpus, capsys):
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained("plain")
    theirs.resize_token_embeddings(448)
    theirs.save_pretrained("padded")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        Path("padded", name).write_bytes(Path("plain", name).read_bytes())
    prepare([added_text("corpus.txt")], "data", "chat")
    capsys.readouterr()
    best = run("out", "padded", "data", learning_rate=1e-30, min_lr=0)
    assert (
        f"2 tokens added, in rows that padded has already: {places} to {places + 1} of 448" in capsys.readouterr().out
    )
    assert read(best / "config.json")["vocab_size"] == 448
    torch.testing.assert_close(
        GPT.from_pretrained(best).wte.weight[:448], theirs.get_input_embeddings().weight, rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("names", ["data-plain, data-chat", "data-chat,data-plain"])
def test_a_mixture_keeps_the_larger_vocabulary(places, corpus, command, names):
    prepare(["corpus.txt"], "data-plain", "plain")
    prepare([added_text("corpus.txt")], "data-chat", "chat")
    best = run("out", "plain", names, max_iters=3)
    assert read(best / "config.json")["vocab_size"] == places + 2
    assert (best / "tokenizer.json").read_bytes() == Path("chat/tokenizer.json").read_bytes()
    for name in ("data-plain", "data-chat"):
        code, out, error = command("eval", "--out_dir=out", f"--dataset={name}", "--device=cpu")
        assert code == 0, error


def test_a_mixture_of_other_additions_is_refused(places, command):
    from transformers import AutoTokenizer

    for name, tokens in {"one": ["<|a|>"], "two": ["<|b|>"], "both": ["<|a|>", "<|b|>"]}.items():
        tokenizer = AutoTokenizer.from_pretrained("plain")
        tokenizer.add_tokens(tokens)
        tokenizer.save_pretrained(name)
        prepare(["corpus.txt"], f"data-{name}", name)
    mixed = command("plan", "--init_from=plain", "--dataset=data-one,data-both", "--device=cpu", "--block_size=16")
    assert mixed[0] == 0 and f"{places} -> {places + 2}" in mixed[1], mixed
    for names in ("data-one,data-two", "data-both,data-one,data-two"):
        code, out, error = command("train", "--init_from=plain", f"--dataset={names}", "--device=cpu")
        assert code == 2 and "and data-two " in error and "same --tokenizer" in error, error


def test_other_vocabularies_are_refused(places, bpe_directory, command):
    from transformers import AutoTokenizer

    other = AutoTokenizer.from_pretrained("plain")
    other.add_tokens(["<|other|>"])
    other.save_pretrained("other")
    bpe_directory("entirely different words are learned here " * 50, "stranger")
    for name in ("other", "stranger"):
        prepare(["corpus.txt"], f"data-{name}", name)
        for verb in ("train", "plan"):
            flags = ("--init_from=chat", f"--dataset=data-{name}", "--device=cpu", "--block_size=16")
            code, out, error = command(verb, *flags)
            assert code == 2 and f"data-{name} holds ids of" in error, (verb, out, error)
    assert not Path("out").exists()


def test_another_chat_template_is_said(places, capsys):
    Path("rows.jsonl").write_text(
        "".join(json.dumps({"prompt": f"say {n}", "completion": "abc de"}) + "\n" for n in range(90))
    )
    prepare(["rows.jsonl"], "data", "plain")
    best = run("out", "chat", "data")
    assert "warning: data was rendered by another chat template than that of chat" in capsys.readouterr().out
    assert (best / "chat_template.jinja").read_text() == CHATML
    best = run("out2", "plain", "data")
    assert "Assistant:" in (best / "chat_template.jinja").read_text()


def test_a_sample_ends_at_every_eos(places, command):
    """Greedy, against transformers' generate with the same generation settings."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    theirs, tokenizer = AutoModelForCausalLM.from_pretrained("chat"), AutoTokenizer.from_pretrained("chat")
    ids = tokenizer("Abc de", return_tensors="pt").input_ids
    greedy = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": 0, "repetition_penalty": 1.0}
    free = theirs.generate(ids, eos_token_id=None, **greedy)[0, ids.size(1) :].tolist()
    for ends in ([free[7], 0], [0, free[4], free[2]], free[3]):
        Path("chat/generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
        wanted = theirs.generate(ids, eos_token_id=ends, **greedy)[0, ids.size(1) :].tolist()
        Path("samples.jsonl").unlink(missing_ok=True)
        flags = ("--init_from=chat", "--start=Abc de", "--temperature=0", "--max_new_tokens=20", "--num_samples=1")
        code, out, error = command("sample", *flags, "--out=samples.jsonl", "--device=cpu")
        assert code == 0, error
        row = read("samples.jsonl")
        assert row["tokens"] == wanted[:-1] and row["finish_reason"] == "end_of_text"
    code, out, error = command("sample", *flags, "--out=all.jsonl", "--device=cpu", "--ignore_eos=true")
    assert read("all.jsonl")["tokens"] == free


@pytest.mark.parametrize("marked", [False, True])
def test_prompts_are_rendered_as_transformers_does(places, marked):
    """With the tokenizer's own names of special tokens, and with marks of what is learned."""
    from transformers import AutoTokenizer

    from finetune.data import chat, chat_template
    from finetune.data import tokenizer as tokenizers

    theirs = AutoTokenizer.from_pretrained("plain")
    theirs.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>"})
    content = "m['content'] + eos_token"
    said = f"{{%- generation -%}}\n{{{{ {content} }}}}\n{{%- endgeneration -%}}" if marked else f"{{{{ {content} }}}}"
    theirs.chat_template = f"{{{{ bos_token }}}}{{% for m in messages %}}\n{said}\n{{% endfor %}}{{{{ '>' }}}}"
    theirs.save_pretrained("own")
    tokenizer = tokenizers.from_directory("own")
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    text = chat.render(theirs.chat_template, messages, chat_template.special_names(tokenizer))
    assert text == theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text.startswith("<s>") and "</s>" in text
    assert chat_session.turn_ends(theirs.chat_template, tokenizer) == {theirs.eos_token_id}


@pytest.mark.parametrize(
    "template, token",
    [
        (CHATML, "<|im_end|>"),
        (CHATML.replace("'<|im_end|>\n'", "eos_token"), "<|endoftext|>"),
        (CHATML.replace("'<|im_end|>\n'", "'\n'"), None),
    ],
)
def test_a_turn_ends_where_its_template_ends_it(places, template, token):
    from finetune.data import tokenizer as tokenizers

    tokenizer = tokenizers.from_directory("chat")
    wanted = set() if token is None else set(tokenizer.encode(token, special=True).tolist())
    assert chat_session.turn_ends(template, tokenizer) == wanted


def test_chat_stops_at_the_end_of_a_turn(places, command, monkeypatch):
    """A model made to answer with <|im_end|> after its first token."""
    import io

    model = GPT.from_pretrained("chat")
    with torch.no_grad():
        model.ln_f.weight.zero_()
        model.ln_f.bias.copy_(model.wte.weight[places + 1] * 100)
    model.save_pretrained("chat")
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n"))
    code, out, error = command("sample", "--init_from=chat", "--chat=true", "--temperature=0", "--device=cpu")
    assert code == 0, error
    assert "<|im_end|>" not in out and len(out.splitlines()) <= 3


def test_a_prompt_beyond_the_model_is_refused(places, command):
    for path in Path("chat").glob("*token*"):
        Path("plain", path.name).write_bytes(path.read_bytes())
    code, out, error = command("sample", "--init_from=plain", "--start=a <|im_end|>", "--device=cpu")
    assert code == 2 and f"has the token {places + 1} of the tokenizer, and the model has {places} ids" in error


@pytest.mark.heavy
def test_vocabularies_above_16_bits(hf_model, command):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    words = ["[UNK]", "[EOS]", *(f"w{n}" for n in range(66_000))]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    hf_model(vocab_size=len(words), n_embd=16, bos_token_id=1, eos_token_id=1).save_pretrained("wide")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", eos_token="[EOS]").save_pretrained("wide")
    Path("wide.txt").write_text(" ".join(f"w{65_000 + n % 999}" for n in range(4000)))
    prepare(["wide.txt"], "data", "wide")
    assert np.fromfile("data/train.bin", "<u4").max() == 66_000
    best = run("out", "wide", "data", max_iters=2)
    weights = load_file(best / "model.safetensors")
    before = load_file("wide/model.safetensors")
    changed = (weights["transformer.wte.weight"] != before["transformer.wte.weight"]).any(1)
    assert changed[65_536:].any()
    flags = ("--start=w65900 w7", "--num_samples=1", "--max_new_tokens=4", "--device=cpu", "--out=samples.jsonl")
    code, out, error = command("sample", "--out_dir=out", *flags)
    assert code == 0, error
    row = read("samples.jsonl")
    assert row["prompt"] == AutoTokenizer.from_pretrained("wide").decode([65_902, 9])
    code, out, error = command("eval", "--out_dir=out", "--device=cpu")
    assert code == 0, error
    code, out, error = command("export", "--out_dir=out", "--to=hf")
    assert code == 0, error
    code, out, error = command("export", "--out_dir=out", "--to=nano", "--format=nanogpt")
    assert code == 2 and "nanoGPT's sample.py knows GPT-2's BPE and characters" in error
