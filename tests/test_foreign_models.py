"""A model that somebody else made cannot show files, forge figures, run code, hang or steer the terminal."""

import json
import os
import random
import shutil
import threading
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from finetune import GPT, GPTConfig
from finetune.common import files, formatting
from finetune.common.errors import UsageError
from finetune.common.opened import read_whole
from finetune.data import tokenizer as tokenizers
from finetune.gpt import pretrained
from finetune.runs.inputs import find_model
from finetune.runs.model_card import escape_markdown
from finetune.runs.model_ref import read_facts

SECRET = "hf_CANARYtoken123"


@pytest.fixture
def model(hf_model, byte_tokenizer):
    """A small model with a tokenizer in `m`, as transformers writes it."""
    hf_model(vocab_size=257, bos_token_id=0, eos_token_id=0).save_pretrained("m")
    shutil.copy(byte_tokenizer[0] / "tokenizer.json", "m")
    Path("m/tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))
    return Path("m")


@pytest.fixture
def secret(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", SECRET)
    Path("elsewhere").mkdir()
    Path("elsewhere/secret").write_text(SECRET)
    return Path("elsewhere/secret").resolve()


def link(path, target):
    path.unlink(missing_ok=True)
    path.symlink_to(target)


LINKS = {
    "an absolute one": lambda m, secret: link(m / "chat_template.jinja", secret),
    "a relative one": lambda m, secret: link(m / "chat_template.jinja", "../elsewhere/secret"),
    "one of two steps": lambda m, secret: (link(m / "a", secret), link(m / "chat_template.jinja", "a")),
    "the configuration": lambda m, secret: link(m / "tokenizer_config.json", secret),
    "the generation settings": lambda m, secret: link(m / "generation_config.json", secret),
    "a template of a folder": lambda m, secret: (
        (m / "additional_chat_templates").mkdir(),
        link(m / "additional_chat_templates/x.jinja", secret),
    ),
    "a folder of templates": lambda m, secret: (
        shutil.copy(secret, secret.with_name("x.jinja")),
        link(m / "additional_chat_templates", secret.parent),
    ),
    "a false cache": lambda m, secret: (
        Path("blobs").mkdir(),
        shutil.copy(secret, "blobs/secret"),
        link(m / "chat_template.jinja", "../blobs/secret"),
    ),
}


@pytest.mark.parametrize("case", LINKS)
def test_a_link_out_of_the_model_is_refused(case, model, secret, command):
    LINKS[case](model, secret)
    code, out, error = command("export", "--init_from=m", "--to=new")
    assert code == 2 and error.count("\n") == 1 and "is a link to" in error and SECRET not in out + error
    assert not Path("new").exists()


@pytest.mark.skipif(not os.path.exists("/proc/self/environ"), reason="of Linux")
def test_the_environment_does_not_get_out(model, secret, command):
    link(model / "chat_template.jinja", "/proc/self/environ")
    for verb, flags in (("export", ["--to=new"]), ("sample", []), ("eval", ["--dataset=x"])):
        code, out, error = command(verb, "--init_from=m", *flags)
        assert code == 2 and SECRET not in out + error
    with pytest.raises(UsageError, match="is a link to"):  # as a data directory, whose tokenizer a run copies
        tokenizers.from_directory("m")
    assert not Path("new").exists()


def test_links_within_a_directory_and_into_the_hubs_cache_are_followed(model, monkeypatch):
    os.rename("m/config.json", "m/real.json")
    link(model / "config.json", "real.json")
    pretrained.load("m")
    snapshot = Path("hub/models--a--b/snapshots/0123")
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "blobs").mkdir()
    for path in model.iterdir():
        blob = snapshot.parents[1] / "blobs" / f"{path.name}-sha"
        shutil.copy(path, blob)
        link(snapshot / path.name, Path(os.path.relpath(blob, snapshot)))
    pretrained.load(snapshot)
    Path("mine").mkdir()
    for path in snapshot.iterdir():
        link(Path("mine") / path.name, path.resolve())
    with pytest.raises(UsageError, match="is a link to"):
        pretrained.load("mine")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(Path("hub").absolute()))
    pretrained.load("mine")
    os.symlink("m", "named")  # a name for the whole directory
    pretrained.load("named")


def test_code_is_not_copied_on(model, command):
    code = {"AutoModelForCausalLM": "evil.Model", "AutoTokenizer": ["evil.Tokenizer", None]}
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        held = json.loads((model / name).read_text())
        more = {"custom_pipelines": code, "custom_generate": "evil"} if name != "tokenizer_config.json" else {}
        (model / name).write_text(json.dumps({**held, **more, "auto_map": code}))
    (model / "evil.py").write_text("import os; os.mkdir('ran')")
    status, _, error = command("export", "--init_from=m", "--to=new")
    assert status == 0, error
    assert not Path("ran").exists() and not list(Path("new").glob("*.py"))
    assert not [path for path in Path("new").glob("*config.json") if "evil" in path.read_text()]


EVIL = (
    "gpt2](http://evil)\n\n## Free tokens\n\n![p](http://evil/track.png) <script>alert(1)</script> **x** www.evil.com"
)


def test_the_card_believes_nothing_of_a_foreign_finetune_json(model, command):
    forged = {"base_model": EVIL, "init_from": EVIL, "val_loss": 0.01, "step": 1, "train_loss": 0.01}
    (model / "finetune.json").write_text(json.dumps(forged))
    status, _, error = command("export", "--init_from=m", "--to=new")
    assert status == 0, error
    card = Path("new/README.md").read_text()
    assert "0.01" not in card.replace("0.01M", "") and "evil" not in card and "this model" not in card
    assert "0.01" not in Path("new/finetune.json").read_text()
    metadata = yaml.safe_load(card.split("---")[1])
    assert "model-index" not in metadata and "base_model" not in metadata


def test_markdown_shows_a_name_as_it_is():
    from markdown_it import MarkdownIt

    render = MarkdownIt("gfm-like", {"html": True, "linkify": False}).render
    for name in (
        EVIL,
        "# a",
        "> a",
        "- a",
        "+ a",
        "=== ",
        "a\n===",
        "*a* _b_ ~~c~~ __d__",
        "\\[a](b)",
        "&lt;b>",
        "a@b.c",
    ):
        for before in ("", "# ", "- ", "on "):
            html = render(before + escape_markdown(name))
            plain = {"": "<p>", "# ": "<h1>", "- ": "<ul>\n<li>", "on ": "<p>on "}[before]
            assert html.startswith(plain) and html.count("<") == 2 * plain.count("<"), html
    assert escape_markdown("data/my_texts-2 (v1.0): a, b") == "data/my_texts-2 (v1.0): a, b"
    assert escape_markdown("\x1b[31mred\u202e") == "&#92;x1b 31mred&#92;u202e"


FACTS = [
    ("step", ["1", -1, 1.5, True, None, 10**30, [1]]),
    ("val_loss", ["0.1", float("nan"), None, True, [0.1]]),
    ("init_from", [1, None, "", "x" * 5000, ["gpt2"]]),
    ("base_model", [1, EVIL, "a/b/c", "../x", "", ["gpt2"]]),
    ("new_tokens", ["1", -1, 10**30]),
    ("interpolation", [1, {}, {"losses": 1}, {"losses": [[1]], "weight": 1, "base": "x"}, [1]]),
]


@pytest.mark.parametrize("key, values", FACTS)
def test_facts_of_the_wrong_type_are_left_out(key, values):
    for value in values:
        Path("finetune.json").write_text(json.dumps({key: value, "train_loss": 2.5}))
        assert read_facts(Path()) == {"train_loss": 2.5}


def test_text_of_files_does_not_steer_the_terminal(model, command):
    save_file({"a\x1b[2J\r\nb": torch.zeros(10**5)}, "m/model.safetensors")
    os.rename("m", "m\x1b]0;evil\x07\x9b")
    for verb, flags in (("export", ["--to=new"]), ("sample", [])):
        code, _, error = command(verb, "--init_from=m\x1b]0;evil\x07\x9b", *flags)
        assert code == 2 and error.count("\n") == 1 and error.strip().isprintable(), repr(error)
    assert r"\x1b]0;evil\x07\x9b" in error
    assert formatting.printable("é 東京 🙂\n\t\x00\ud800\u202e") == "é 東京 🙂\n\\t\\x00\\ud800\\u202e"
    assert formatting.shown(10**5000) == "a longer number" and formatting.shown("a\nb" * 100, 10) == r"a\nba\n..."


# a directory that is replaced


def write_model(directory, number):
    """A model whose weights and finetune.json hold one number, with a manifest."""

    def fill(work):
        model = GPT.from_scratch(GPTConfig(block_size=8, vocab_size=11, n_layer=1, n_head=1, n_embd=4))
        with torch.no_grad():
            model.ln_f.bias.fill_(number)
        model.save_pretrained(work)
        files.write_json(work / "finetune.json", {"val_loss": float(number), "step": number})

    files.write_directory(directory, fill)


@pytest.mark.parametrize("way", ["swapped", "written anew"])
def test_a_model_is_read_whole_while_it_is_replaced(way):
    write_model(Path("best"), 1)
    write_model(Path("other"), 2)
    ended, replaced = threading.Event(), []

    def replace():
        while not ended.is_set():
            if way == "swapped":
                files.exchange(Path("best").absolute(), Path("other").absolute())
            else:
                write_model(Path("best").absolute(), 3 + len(replaced))
                time.sleep(0.005)
            replaced.append(1)

    def read(place):
        facts = find_model(place).facts
        time.sleep(0.002)
        _, weights = pretrained.load(place)
        return facts["val_loss"], weights["ln_f.bias"][0].item()

    other = threading.Thread(target=replace)
    other.start()
    pairs, refused = [], 0
    try:
        for _ in range(60):
            try:
                pairs.append(read_whole(Path("best"), read))
            except UsageError as error:
                assert "is replaced faster than it can be read" in str(error)
                refused += 1
    finally:
        ended.set()
        other.join()
    assert len(replaced) > 5 and len(pairs) > 30, (len(replaced), len(pairs), refused)
    assert all(told == held for told, held in pairs), pairs
    assert len(set(pairs)) > 1


def test_a_damaged_directory_is_named_by_its_own_name():
    write_model(Path("best"), 1)
    Path("best/finetune.json").write_text('{"val_loss": 0.0}')
    with pytest.raises(UsageError, match=r"^best: finetune\.json"):
        read_whole(Path("best"), find_model)
    Path("best/config.json").write_text("{")
    with pytest.raises(UsageError, match=r"^best/config\.json: "):
        read_whole(Path("best"), pretrained.load)


# JSON

WRONG = [
    None,
    True,
    -1,
    0,
    1.5,
    1e308,
    float("nan"),
    10**400,
    10**18,
    "x",
    "",
    [],
    [[]],
    {},
    {"a": 1},
    "\x1b[2J\n" * 300,
]
WRONG += ["</s>" * 1000, "\ud800", [None], {"content": None}, {"content": ""}]
DEEP = "[" * 100_000 + "]" * 100_000
NAMES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "finetune.json")
MORE = {
    "added_tokens.json": {"<a>": 257},
    "special_tokens_map.json": {"eos_token": "<|endoftext|>"},
    "model.safetensors.index.json": {"weight_map": {"transformer.wte.weight": "model.safetensors"}},
}


def places(value, path=()):
    """The path of each value within some JSON, of long lists and objects the first few."""
    yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for number, (key, child) in enumerate(children):
        if number < 40:
            yield from places(child, (*path, key))


def mutated(value, rng):
    """A copy with one value replaced, or one key doubled, renamed or removed."""
    path = rng.choice(list(places(value)))
    if not path:
        return rng.choice(WRONG)
    copy = json.loads(json.dumps(value))
    place = copy
    for key in path[:-1]:
        place = place[key]
    if isinstance(place, dict) and rng.random() < 0.1:
        place[rng.choice(["", "auto_map", "\x1b[2J"])] = place.pop(path[-1])
    else:
        place[path[-1]] = rng.choice(WRONG)
    return copy


@pytest.mark.heavy
def test_mutated_json_of_a_model_is_read_or_refused_in_a_line(model, capfd):
    (model / "finetune.json").write_text(json.dumps({"val_loss": 1.0, "step": 2, "init_from": "gpt2"}))
    rng, originals, refused = random.Random(0), {}, 0
    for name in NAMES:
        originals[name] = json.loads((model / name).read_text())
    originals |= MORE
    for number in range(300):
        name = rng.choice([*originals])
        text = json.dumps(mutated(originals[name], rng))
        choice = rng.random()
        if choice < 0.05:
            text = rng.choice([DEEP, text[: len(text) // 2], "\ufeff" + text, "", "\x00" * 10, text + text])
        (model / name).write_text(text)
        if name.endswith("index.json"):
            os.rename("m/model.safetensors", "whole")
        began = time.process_time()
        try:
            found = find_model("m")
            if found.tokenizer and number % 4 == 0:
                found.tokenizer.encode("a text <a> 東", special=True)
                found.tokenizer.describe()
            found.load()
        except UsageError as error:
            refused += 1
            assert len(str(error)) < 500 and formatting.printable(str(error)).count("\n") == 0, (name, str(error))
        assert time.process_time() - began < 20, (name, text[:300])
        if name.endswith("index.json"):
            os.rename("whole", "m/model.safetensors")
        (model / name).unlink() if name in MORE else (model / name).write_text(json.dumps(originals[name]))
    assert 60 < refused < 290
    find_model("m").load()
    assert "panicked" not in capfd.readouterr().err


def test_added_tokens_without_ids_are_refused(byte_tokenizer, command, hf_model):
    hf_model(vocab_size=257).save_pretrained("m")
    shutil.copy(byte_tokenizer[0] / "tokenizer.json", "m")
    Path("m/added_tokens.json").write_text('{"<|endoftext|>": null}')
    code, _, error = command("export", "--init_from=m", "--to=new")
    assert code == 2 and "added_tokens.json: the ids" in error and error.count("\n") == 1 and not Path("new").exists()


@pytest.mark.parametrize("config", [{"pad_token": {}}, {"tokenizer_class": None}, {"eos_token": {"lstrip": True}}])
def test_a_tokenizer_config_with_empty_values_ends_in_no_traceback(config, byte_tokenizer, command):
    Path("m").mkdir()
    shutil.copy(byte_tokenizer[0] / "tokenizer.json", "m")
    Path("m/tokenizer_config.json").write_text(json.dumps(config))
    talk = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    Path("t.jsonl").write_text((json.dumps(talk) + "\n") * 9)
    Path("m/chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    code, _, error = command("prepare", "t.jsonl", "--tokenizer=m", "--out_dir=data")
    assert code in (0, 2) and error.count("\n") <= 1, error
