"""What can be typed in a chat."""

import errno
import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from finetune import GPT, GPTConfig
from finetune.common.errors import UsageError
from finetune.data import chat
from finetune.data import tokenizer as tokenizers

FLAGS = ["--chat=true", "--max_new_tokens=12", "--dtype=float32"]


@pytest.fixture
def model(bpe_directory):
    """A function that writes a tiny random GPT-2 with a chat template, and returns its directory."""

    def make(template=chat.TEMPLATE, **shape):
        directory = bpe_directory("System:\nUser:\nAssistant:\nWhat? Nothing. Grüße, 世界! 🙂\n" * 9, vocab_size=300)
        vocab_size = tokenizers.from_directory(directory).vocab_size
        shape = {"block_size": 96, "n_layer": 1, "n_head": 2, "n_embd": 16} | shape
        GPT.from_scratch(GPTConfig(vocab_size=vocab_size, **shape)).save_pretrained(directory)
        (directory / "chat_template.jinja").write_text(template)
        return str(directory)

    return make


@pytest.fixture
def talk(command, monkeypatch):
    """A function that says lines to a model over a pipe: (the prompts of the model, the lines it prints)."""
    prompts, generate = [], GPT.generate

    def record(self, idx, *args, **how):
        prompts.append(idx[0].tolist())
        return generate(self, idx, *args, **how)

    def call(directory, *lines, flags=()):
        prompts.clear()
        monkeypatch.setattr(GPT, "generate", record)
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        code, out, error = command("sample", f"--init_from={directory}", *FLAGS, *flags)
        assert code == 0, error
        return [tokenizers.from_directory(directory).decode(ids) for ids in prompts], out.split("\n", 1)[1]

    return call


def test_the_commands_of_a_chat(model, talk):
    directory = model()
    prompts, out = talk(directory, "What?", "/reset", "Nothing", "/help", "/exit", "never said")
    assert prompts == ["User:\nWhat?\n\nAssistant:\n", "User:\nNothing\n\nAssistant:\n"]
    assert all(name in out for name in ("/help ", "/reset ", "/system ", "/save ", "/exit "))
    prompts, out = talk(directory, "/foo bar", "/", "/Reset", " /etc is what?", "/exit now")
    assert prompts == ["User:\n /etc is what?\n\nAssistant:\n"]
    for name in ("/foo", "/", "/Reset"):
        assert f"{name}: there is no such command; /help lists them\n" in out


def test_a_system_prompt_begins_every_prompt(model, talk, command):
    directory = model(block_size=128)
    system = "Be Grüße."
    prompts, out = talk(directory, "What?", "x" * 90, "/system Nothing.", "Hm", "/system", flags=[f"--system={system}"])
    assert prompts[0] == f"System:\n{system}\n\nUser:\nWhat?\n\nAssistant:\n"
    assert prompts[1] == f"System:\n{system}\n\nUser:\n{'x' * 90}\n\nAssistant:\n", "without the first turn"
    assert prompts[2].startswith("System:\nNothing.\n\nUser:\n") and out.endswith("\nNothing.\n")
    code, _, error = command("sample", f"--init_from={directory}", *FLAGS, f"--system={'x' * 200}")
    assert code == 2 and "more than the 116 that the answer leaves" in error
    assert "no effect without --chat" in command("sample", f"--init_from={directory}", "--system=a")[2]


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{% if m.role != 'system' %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}",
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}{{ messages[-1].content }}",
    ],
)
def test_a_template_without_a_system_prompt_says_so(model, talk, command, template):
    directory = model(template)
    code, _, error = command("sample", f"--init_from={directory}", *FLAGS, "--system=Be good.")
    assert code == 2 and "chat template" in error and len(error.splitlines()) == 1
    prompts, out = talk(directory, "/system Be good.", "What?", "/system")
    assert "chat template" in out and len(prompts) == 1 and "good" not in prompts[0] and "no system prompt" in out


def test_a_saved_conversation_is_data(model, talk, command):
    directory = model()
    Path("mine.jsonl").write_text("mine")
    lines = [
        "/save a.jsonl",
        "What?",
        *["x" * 60] * 3,
        "/save a b.jsonl",
        "/save a b.jsonl",
        "/save",
        "/save mine.jsonl",
    ]
    _, out = talk(directory, *lines, "/save no/a.jsonl", flags=["--system=S"])
    messages = json.loads(Path("a b.jsonl").read_text(encoding="utf-8"))["messages"]
    assert [one["role"] for one in messages] == ["system", *["user", "assistant"] * 4], "also what no longer fits"
    assert messages[1]["content"] == "What?" and messages[2]["content"] == out.splitlines()[1]
    assert Path("mine.jsonl").read_text() == "mine" and not Path("a.jsonl").exists()
    for problem in ("nothing was said yet", "a b.jsonl is there already", "name a file", "mine.jsonl is there already"):
        assert problem in out
    assert "/save: no/a.jsonl cannot be written: No such file" in out
    code, _, error = command("prepare", "a b.jsonl", "--out_dir=data", f"--tokenizer={directory}", "--dry_run=true")
    assert code == 0, error


def test_a_turn_that_fails_is_forgotten(model, talk, monkeypatch):
    directory, refused = model(), []

    def check(prompt, *how):
        if not refused:
            refused.append(prompt)
            raise UsageError("the prompt is refused")

    monkeypatch.setattr("finetune.gpt.sampling.check_prompt", check)
    prompts, out = talk(directory, "What?", "Nothing", "x" * 90, "/save a.jsonl")
    assert "the prompt is refused\n" in out and prompts[0] == "User:\nNothing\n\nAssistant:\n"
    messages = json.loads(Path("a.jsonl").read_text(encoding="utf-8"))["messages"]
    assert [one["role"] for one in messages] == ["user", "assistant"] * 2 and messages[0]["content"] == "Nothing"


@pytest.mark.parametrize("name", ["~nobody-has-this-name/a", "a\0b", "x" * 300, "no/a", "/proc/a", "."])
def test_a_file_that_cannot_be_written_does_not_end_a_chat(name, model, talk):
    prompts, out = talk(model(), "What?", f"/save {name}", "Nothing")
    assert len(prompts) == 2 and out.count("/save: ") == 1 and len(out.splitlines()) >= 3


def test_a_terminal_that_was_closed_ends_a_chat(model, command, monkeypatch):
    class Closed(io.StringIO):
        def readline(self, *size):
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("sys.stdin", Closed())
    code, _, error = command("sample", f"--init_from={model()}", *FLAGS)
    assert code == 0 and error == ""


class Terminal:
    """A chat on a pseudo-terminal."""

    def __init__(self, *flags):
        ours, theirs = pty.openpty()
        self.fd, self.seen = ours, ""
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TERM": "xterm"}
        arguments = [sys.executable, "-m", "finetune.sample", *flags]
        self.process = subprocess.Popen(
            arguments, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True
        )
        os.close(theirs)

    def wait_for(self, text, seconds=60):
        until = time.time() + seconds
        while text not in self.seen:
            assert time.time() < until, self.seen
            if select.select([self.fd], [], [], 0.1)[0]:
                self.seen += os.read(self.fd, 4096).decode(errors="replace")
        before, _, self.seen = self.seen.partition(text)
        return before

    def type(self, text):
        os.write(self.fd, text.encode())


@pytest.mark.slow
def test_a_terminal_has_a_history_and_ctrl_c_stops_an_answer(model):
    pytest.importorskip("readline")
    directory = model(block_size=1024, n_layer=4, n_embd=128)
    terminal = Terminal(f"--init_from={directory}", "--chat=true", "--max_new_tokens=100000", "--ignore_eos=true")
    terminal.wait_for("/help lists the commands")
    terminal.wait_for("> ")
    terminal.type("/foo\n")
    terminal.wait_for("/foo: there is no such command")
    terminal.wait_for("> ")
    terminal.type("\x1b[A\n")  # up-arrow
    terminal.wait_for("/foo: there is no such command")
    terminal.wait_for("> ")
    terminal.type("What?\n")
    terminal.wait_for("What?\r\n")
    time.sleep(2)
    os.killpg(terminal.process.pid, signal.SIGINT)
    terminal.wait_for("\n> ")
    assert terminal.process.poll() is None
    terminal.type("/save a.jsonl\n")
    terminal.wait_for("wrote a.jsonl")
    assert len(json.loads(Path("a.jsonl").read_text())["messages"][1]["content"]) > 20
    terminal.wait_for("> ")
    os.killpg(terminal.process.pid, signal.SIGINT)
    assert terminal.process.wait(20) == 130
