"""A chat template that came with a model cannot take all the time or memory of a machine."""

import json
import os
import re
import signal
import time
from pathlib import Path

import pytest

from finetune.data import bounded_call, chat
from finetune.data.new_tokenizers import train_tokenizer

TALK = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
PLAIN = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
BOMBS = {
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "loops over text": "{% set s = 'x' * 9999 %}{% for a in s %}{% for b in s %}{% for c in s %}"
    "{% endfor %}{% endfor %}{% endfor %}",
    "a long product": "{{ 'a' * 10 ** 10 }}",
    "a wide format": "{{ '%9999999999d' % 1 }}",
    "a wide margin": "{{ 'a'.center(10 ** 10) }}",
    "a filter": "{{ 'a' | center(10 ** 10) }}",
    "doubling": "{% set ns = namespace(s='ab' * 99) %}{% for i in range(40) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "a power": "{{ 9 ** (9 ** 9) }}",
    "recursion": "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
}


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(bounded_call, "CPU_SECONDS", 0.5)


@pytest.mark.parametrize("case", BOMBS)
def test_a_template_that_takes_too_much_is_refused_in_a_line(case):
    began = time.perf_counter()
    with pytest.raises(ValueError) as refused:
        chat.call_template(BOMBS[case], TALK, {})
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 300
    if case != "recursion":
        assert re.search("takes more than .* (seconds|of memory)", str(refused.value))
    assert time.perf_counter() - began < 60


def test_a_usual_template_costs_little():
    (text,), _ = chat.call_template(PLAIN, TALK, {})
    assert text == "user: Hello\nassistant: Hi\n"
    began = time.process_time()
    for _ in range(1000):
        chat.call_template(PLAIN, TALK, {})
    assert time.process_time() - began < 20


@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_that_was_ended_between_two_calls_is_started_again(number, ignored, monkeypatch):
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN if ignored else signal.SIG_DFL)
    try:
        for wait in (0, 0.1):
            assert bounded_call.call(len, "four") == 4
            os.kill(bounded_call._children[os.getpid()][0], number)
            time.sleep(wait)
            assert bounded_call.call(len, "three") == 5
        with pytest.raises(ValueError, match="takes more than 0.5 seconds"):
            chat.call_template(BOMBS["nested loops"], TALK, {})
    finally:
        signal.signal(signal.SIGCHLD, before)


def end_this(number):
    os.kill(os.getpid(), number)


def test_a_process_that_a_signal_ends_is_not_called_too_large():
    with pytest.raises(ValueError, match="^its process ended with signal 9$"):
        bounded_call.call(end_this, signal.SIGKILL)
    with pytest.raises(ValueError, match="of memory$"):
        bounded_call.call(bytes, 700 << 20)  # the answer is made, but has no place in the pipe


LATER = {  # with the row that says boom
    "loops": ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "seconds"),
    "memory": ("{% set x = 'a' * 10 ** 10 %}", "GB of memory"),
    "a text without an end": ("{% for a in range(9999) %}{{ 'too long' * 999 }}{% endfor %}", "characters of a"),
    "a fault": ("{{ 1 // 0 }}", "zero"),
}


@pytest.mark.parametrize("case", LATER)
def test_a_template_that_explodes_on_a_later_row_is_named_with_it(case, command, tmp_path):
    bomb, told = LATER[case]
    source = PLAIN.replace("{% endfor %}", "{% if 'boom' in m['content'] %}" + bomb + "{% endif %}{% endfor %}")
    train_tokenizer(["the user says: hello assistant"] * 9, 300).save("model")
    Path("model/chat_template.jinja").write_text(source)
    talks = [[TALK[0], {"role": "assistant", "content": f"{i} {'boom' * (i == 700)}"}] for i in range(900)]
    Path("t.jsonl").write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in talks))
    began = time.perf_counter()
    code, _, error = command("prepare", "t.jsonl", "--tokenizer=model", "--out_dir=data")
    assert code == 2 and error.startswith("t.jsonl: row 701: ") and told in error and error.count("\n") == 1, error
    assert not Path("data").exists() and time.perf_counter() - began < 120


@pytest.mark.parametrize(
    "bad", ["{{ x.y.z }}", "{{ 1 / 0 }}", "{% for %}", "{{ messages[9]['role'] }}", "{{ raise_exception('no\nway') }}"]
)
def test_a_template_that_fails_is_a_line(bad):
    with pytest.raises(ValueError) as refused:
        chat.call_template(bad, TALK, {})
    assert "\n" not in str(refused.value)
