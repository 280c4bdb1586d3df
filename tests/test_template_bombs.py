"""A chat template that came with a model cannot take all the time or memory of a machine."""

import time

import pytest

from finetune.data import chat, template_trial

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
    monkeypatch.setattr(template_trial, "CPU_SECONDS", 1)
    template_trial.tried.clear()


@pytest.mark.parametrize("case", BOMBS)
def test_a_template_that_takes_too_much_is_refused_in_a_line(case):
    began = time.perf_counter()
    with pytest.raises(ValueError) as refused:
        chat.call_template(BOMBS[case], TALK, {})
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 300
    if case != "recursion":
        assert "for one conversation" in str(refused.value)
    assert time.perf_counter() - began < 15


def test_a_usual_template_is_tried_once_and_costs_little():
    (text,), _ = chat.call_template(PLAIN, TALK, {})
    assert text == "user: Hello\nassistant: Hi\n" and template_trial.tried == {PLAIN}
    began = time.perf_counter()
    for _ in range(200):
        chat.call_template(PLAIN, TALK, {})
    assert time.perf_counter() - began < 20
    chat.call_template(chat.TEMPLATE, TALK, {"eos_token": "<|endoftext|>"})
    assert template_trial.tried == {PLAIN}


@pytest.mark.parametrize(
    "bad", ["{{ x.y.z }}", "{{ 1 / 0 }}", "{% for %}", "{{ messages[9]['role'] }}", "{{ raise_exception('no\nway') }}"]
)
def test_a_template_that_fails_is_a_line(bad):
    with pytest.raises(ValueError) as refused:
        chat.call_template(bad, TALK, {})
    assert "\n" not in str(refused.value)
