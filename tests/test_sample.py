"""The verb sample: what ends a sample, what is written where, several prompts, and conversations."""

import io
import json
import os
import random
from pathlib import Path

import pytest

from finetune import GPT, GPTConfig
from finetune.common import console
from finetune.data import chat
from finetune.data import tokenizer as tokenizers
from finetune.gpt.sampling import Sample, draw_samples, print_samples, write_new_text
from finetune.sample import main

TEXT = "Grüße, 世界! 🙂 naïve façade\n" * 20


@pytest.fixture
def model(bpe_directory):
    """A function that writes a directory of a tiny random GPT-2 with a small byte-level BPE, and returns it."""

    def make(name="model", template=None, **shape):
        directory = bpe_directory(TEXT + "User:\nAssistant:\nWhat? Nothing.", name, vocab_size=300)
        tokenizer = tokenizers.from_directory(directory)
        shape = {"block_size": 48, "n_layer": 1, "n_head": 2, "n_embd": 16, "vocab_size": tokenizer.vocab_size} | shape
        GPT.from_scratch(GPTConfig(**shape)).save_pretrained(directory)
        if template:
            (directory / "chat_template.jinja").write_text(template)
        return str(directory)

    return make


def rows_of(path):
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def test_text_grows_by_whole_characters_and_is_the_decoded_whole(bpe_directory):
    tokenizer = tokenizers.from_directory(bpe_directory("abc", vocab_size=257))  # bytes: several tokens a character
    rng = random.Random(0)
    for ids in (tokenizer.encode(TEXT).tolist(), [rng.randrange(256) for _ in range(500)]):
        sample, pieces = Sample(tokenizer), []
        for i in ids:
            sample.add([i])
            pieces.append(sample.new_text())
        sample.finish("length")
        pieces.append(sample.new_text())
        assert sample.text == "".join(pieces) == tokenizer.decode(ids)
        assert sample.ids == ids and sample.finish_reason == "length"
        if sample.text == TEXT:
            assert "\ufffd" not in "".join(pieces) and pieces.count("") == len(TEXT.encode()) - len(TEXT) + 1


@pytest.mark.parametrize(
    "stop, kept", [("界", "Grüße, 世"), ("世界", "Grüße, "), ("ü", "Gr"), ("GG", TEXT), ("🙂 naïve", "Grüße, 世界! ")]
)
def test_a_stop_text_ends_a_sample_and_is_never_shown(bpe_directory, stop, kept):
    tokenizer = tokenizers.from_directory(bpe_directory("abc", vocab_size=257))
    sample, shown = Sample(tokenizer, stop=stop), ""
    for i in tokenizer.encode(TEXT).tolist():
        sample.add([i])
        shown += sample.new_text()
        assert kept.startswith(shown), "nothing is shown that has to be taken back"
    sample.finish("length")
    assert sample.text == shown + sample.new_text() == kept
    assert sample.finish_reason == ("length" if kept == TEXT else "stop")
    assert tokenizer.decode(sample.ids) == (kept if kept == TEXT else kept + stop)


def test_end_of_text_ends_a_sample_unless_it_is_ignored(model, command):
    # with few dimensions all of the 301 ids are about as likely, so most samples of 400 have an end-of-text
    directory = model(n_embd=8)
    eot = tokenizers.from_directory(directory).eot
    flags = [f"--init_from={directory}", "--num_samples=6", "--max_new_tokens=400", "--top_k=0", "--dtype=float32"]
    for name, more in (("ended", []), ("ignored", ["--ignore_eos=true"])):
        assert command("sample", *flags, f"--out={name}.jsonl", *more)[0] == 0
    reasons = set()
    for ended, ignored in zip(rows_of("ended.jsonl"), rows_of("ignored.jsonl")):
        assert len(ignored["tokens"]) == 400 and ignored["finish_reason"] == "length"
        at = ignored["tokens"].index(eot) if eot in ignored["tokens"] else 400
        assert ended["tokens"] == ignored["tokens"][:at]
        assert ended["finish_reason"] == ("length" if at == 400 else "end_of_text")
        assert "<|endoftext|>" not in ended["text"] and ("<|endoftext|>" in ignored["text"]) == (at < 400)
        reasons.add(ended["finish_reason"])
    assert "end_of_text" in reasons


def test_out_holds_what_is_printed_and_what_it_was_drawn_with(model, command):
    given = "--start=What? --num_samples=3 --max_new_tokens=30 --dtype=float32 --seed=5 --top_p=0.9"
    flags = [f"--init_from={model()}", *given.split()]
    code, printed, error = command("sample", *flags)
    assert code == 0, error
    assert command("sample", *flags, "--out=a.jsonl")[1].endswith("wrote 3 samples to a.jsonl\n")
    rows = rows_of("a.jsonl")
    texts = "".join(f"---------------\n{row['prompt']}{row['text']}\n" for row in rows)
    assert printed.split("\n", 1)[1] == texts + "---------------\n"
    assert [row["sample"] for row in rows] == [0, 1, 2] and len({row["text"] for row in rows}) == 3
    settings = {"seed": 5, "top_p": 0.9, "temperature": 0.8, "min_p": 0.0, "stop": "", "max_copy": 0}
    for row in rows:
        assert ({"prompt": "What?"} | settings).items() <= row.items()
        assert len(row["tokens"]) <= 30 and "model" in row


def test_a_prompt_in_a_file_is_that_prompt_by_itself(model, command):
    directory = model(template=chat.TEMPLATE)
    conversation = [{"role": "user", "content": "What?"}]
    Path("p.txt").write_text("What?\n\n naïve Grüße, 世界!\n", encoding="utf-8")
    Path("p.jsonl").write_text(json.dumps({"prompt": "What?\n"}) + "\n" + json.dumps({"messages": conversation}) + "\n")
    starts = {"p.txt": ["What?", " naïve Grüße, 世界!"], "p.jsonl": ["What?\n", "User:\nWhat?\n\nAssistant:\n"]}
    flags = [f"--init_from={directory}", "--num_samples=2", "--max_new_tokens=20", "--dtype=float32"]
    for file, texts in starts.items():
        assert command("sample", *flags, f"--prompts={file}", f"--out={file}.out")[0] == 0
        alone = []
        for number, text in enumerate(texts):
            assert command("sample", *flags, f"--start={text}", f"--out={file}{number}.out")[0] == 0
            alone += rows_of(f"{file}{number}.out")
        assert rows_of(f"{file}.out") == alone
        assert [row["prompt"] for row in alone] == [text for text in texts for _ in range(2)]


def test_end_of_text_in_a_prompt_is_the_token(model):
    tokenizer = tokenizers.from_directory(model())
    assert tokenizers.prompt_ids(tokenizer, "<|endoftext|>").tolist() == [tokenizer.eot]
    assert tokenizer.eot not in tokenizer.encode("<|endoftext|>")


class Terminal(io.StringIO):
    def __init__(self):
        super().__init__()
        self.writes = []

    def write(self, text):
        self.writes.append(text)
        return super().write(text)

    def isatty(self):
        return True


def test_a_terminal_shows_the_first_sample_as_it_is_written_and_the_same_text(model, monkeypatch):
    directory = model()
    tokenizer, network = tokenizers.from_directory(directory), GPT.from_pretrained(directory)
    prompt = tokenizers.prompt_ids(tokenizer, "Grüße")
    options = {"num_samples": 2, "max_new_tokens": 60, "seed": 3, "stop": "zzz", "ignore_eos": True}
    plain, terminal = io.StringIO(), Terminal()
    for stdout in (plain, terminal):
        monkeypatch.setattr("sys.stdout", stdout)
        print_samples(network, tokenizer, prompt, **options)
        monkeypatch.undo()
    assert terminal.getvalue() == plain.getvalue()
    assert sum(map(bool, terminal.writes)) > 40


@pytest.fixture
def unread(monkeypatch):
    """A function that makes standard output a stream whose reader is gone."""

    streams = []

    def make(goes_on=False):
        ours, theirs = os.pipe()
        os.close(ours)
        stream = console.Console(open(theirs, "wb"), encoding="utf-8", line_buffering=True)
        stream.goes_on = goes_on
        monkeypatch.setattr("sys.stdout", stream)
        streams.append(stream)

    yield make
    for stream in streams:
        stream.close()


def test_nothing_is_drawn_when_nobody_reads_it(model, unread, monkeypatch):
    directory = model(template=chat.TEMPLATE)
    drawn, generate = [], GPT.generate
    monkeypatch.setattr(GPT, "generate", lambda self, *args, **how: drawn.append(1) or generate(self, *args, **how))
    flags = [f"--init_from={directory}", "--max_new_tokens=5", "--dtype=float32"]
    for more in (["--num_samples=1000"], ["--chat=true"]):
        monkeypatch.setattr("sys.stdin", io.StringIO("What?\n" * 50))
        unread()
        with pytest.raises(SystemExit) as ended:
            main([*flags, *more])
        assert ended.value.code == 0 and not drawn
    unread()
    main([*flags, "--num_samples=40", "--out=a.jsonl"])
    assert len(rows_of("a.jsonl")) == 40
    unread(goes_on=True)  # in training
    tokenizer, network = tokenizers.from_directory(directory), GPT.from_pretrained(directory)
    prompt = tokenizers.prompt_ids(tokenizer, "a")
    assert len(print_samples(network, tokenizer, prompt, num_samples=40, max_new_tokens=5)) == 40


def test_a_reader_that_goes_ends_it_between_tokens(model, unread, monkeypatch):
    directory = model()
    tokenizer, network = tokenizers.from_directory(directory), GPT.from_pretrained(directory)
    prompt, shown = tokenizers.prompt_ids(tokenizer, "a"), []

    def show(sample):
        shown.append(len(sample.ids))
        if len(shown) == 3:
            unread()
        write_new_text(sample)

    monkeypatch.setattr("sys.stdout", io.StringIO())
    with pytest.raises(SystemExit):
        draw_samples(network, tokenizer, prompt, show, max_new_tokens=500, ignore_eos=True)
    assert 3 <= len(shown) < 20


@pytest.mark.parametrize("stop", ["", "zzz"])
def test_a_copy_blocker_that_leaves_nothing_ends_a_sample(model, stop):
    directory = model()
    tokenizer, network = tokenizers.from_directory(directory), GPT.from_pretrained(directory)
    every_id = lambda ids: range(tokenizer.vocab_size) if len(ids) >= 4 else []  # noqa: E731
    for ignore_eos, reasons in ((True, {"max_copy"}), (False, {"max_copy", "end_of_text", "length"})):
        given = {"num_samples": 3, "max_new_tokens": 9, "stop": stop, "ignore_eos": ignore_eos}
        prompt = tokenizers.prompt_ids(tokenizer, "a")
        samples = draw_samples(network, tokenizer, prompt, copy_blocker=every_id, **given)
        assert {sample.finish_reason for sample in samples} <= reasons
        assert all(len(sample.ids) == 4 for sample in samples if sample.finish_reason == "max_copy")


def test_what_must_not_follow_is_not_spelled_in_shorter_tokens_either(model):
    directory = model()
    tokenizer, network = tokenizers.from_directory(directory), GPT.from_pretrained(directory)
    word = max(tokenizer.vocabulary, key=len)
    assert len(word) > 3
    follow = lambda ids: [tokenizer.vocabulary[word]] if not ids else []  # noqa: E731
    given = {"num_samples": 2000, "max_new_tokens": 1, "copy_blocker": follow, "ignore_eos": True}
    samples = draw_samples(network, tokenizer, tokenizers.prompt_ids(tokenizer, "a"), **given)
    firsts = {sample.ids[0] for sample in samples}
    texts = filter(None, (tokenizer.decode_bytes([i]) for i in firsts))
    assert len(firsts) > 200 and not any(word.startswith(text) for text in texts)


def test_a_conversation_over_a_pipe_keeps_to_the_context(model, command, monkeypatch):
    directory = model(template=chat.TEMPLATE, block_size=96)
    asked = []
    generate = GPT.generate
    monkeypatch.setattr(
        GPT,
        "generate",
        lambda self, idx, *args, **how: asked.append(idx[0].tolist()) or generate(self, idx, *args, **how),
    )
    said = ["What?", "", "naïve", "Grüße", "世界", "x" * 60, "What?"]

    def talk():
        asked.clear()
        monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(said) + "\n"))
        flags = ["--chat=true", "--max_new_tokens=12", "--dtype=float32"]
        code, out, error = command("sample", f"--init_from={directory}", *flags)
        assert code == 0, error
        return out

    out = talk()
    turns, tokenizer = [text for text in said if text], tokenizers.from_directory(directory)
    prompts = [tokenizer.decode(ids) for ids in asked]
    assert len(prompts) == len(turns)
    for ids, prompt, text in zip(asked, prompts, turns):
        assert prompt.endswith(f"User:\n{text}\n\nAssistant:\n")
        assert len(ids) <= 96 - 12 or prompt.count("User:") == 1
    assert prompts[0] == "User:\nWhat?\n\nAssistant:\n" and prompts[1].startswith(f"{prompts[0]}"), (
        "what was said before is there"
    )
    assert any(not prompt.startswith(prompts[0]) for prompt in prompts), "and in the end it did not fit"
    assert tokenizer.eot in asked[1], "the end of a turn is the token"
    assert out.splitlines()[0].startswith(directory) and out == talk()


def test_a_template_of_transformers_is_rendered_as_there(model):
    from transformers import AutoTokenizer

    template = (
        "{% for m in messages %}\n    {% if m.role == 'user' %}\n[{{ m.content | trim }}]{{ eos_token }}\n{% endif"
        " %}\n{% endfor %}{% if add_generation_prompt %}>{% endif %}"
    )
    directory = model(template=template)
    path = Path(directory, "tokenizer_config.json")
    config = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(config | {"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|endoftext|>"}))
    messages = [
        {"role": "user", "content": " a "},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    theirs = AutoTokenizer.from_pretrained(directory)
    assert chat.render(template, messages) == theirs.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    ids = theirs.apply_chat_template(messages, tokenize=True, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert tokenizers.from_directory(directory).encode(chat.render(template, messages), special=True).tolist() == ids


def test_a_question_the_vocabulary_lacks_does_not_end_a_conversation(command, monkeypatch):
    tokenizer = tokenizers.CharTokenizer(sorted(set("User:\nAssistant:\nabc ")))
    Path("model").mkdir()
    tokenizer.save("model", 32)
    config = GPTConfig(vocab_size=tokenizer.vocab_size, block_size=32, n_layer=1, n_head=1, n_embd=8)
    GPT.from_scratch(config).save_pretrained("model")
    Path("model/chat_template.jinja").write_text(chat.TEMPLATE.replace("eos_token", "''"))
    monkeypatch.setattr("sys.stdin", io.StringIO("abc\nxyz\nabc\n"))
    code, out, error = command("sample", "--init_from=model", "--chat=true", "--max_new_tokens=5", "--dtype=float32")
    assert code == 0, error
    assert out.count("'x', 'y', 'z' not among") == 1


def test_the_data_of_a_run_is_known_by_its_content(data, tiny_run, command):
    run = ["--out_dir=out", "--max_copy=3", "--num_samples=1", "--max_new_tokens=20"]
    tiny_run("out", "--tokenizer=auto", "--max_iters=1", text=data)
    assert command("sample", *run)[0] == 0
    Path(data).rename("moved")
    code, _, error = command("sample", *run)
    assert code == 2 and "give --dataset=DIR" in error
    assert command("sample", *run, "--dataset=moved")[0] == 0
    Path("moved").rename(data)
    train = Path(data, "train.bin")
    train.write_bytes(train.read_bytes()[:-2] + b"\1\0")
    code, _, error = command("sample", *run)
    assert code == 2 and len(error.splitlines()) == 1


def test_a_text_that_was_prepared_on_the_way_is_found_again(tiny_run, command):
    tiny_run("out", "--max_iters=1")
    code, out, error = command("sample", "--out_dir=out", "--max_copy=3", "--num_samples=1", "--max_new_tokens=20")
    assert code == 0, error
