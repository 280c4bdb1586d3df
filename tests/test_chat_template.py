"""A tokenizer with a chat template of its own: ids and masks are those of apply_chat_template."""

import functools
import json
from pathlib import Path

import numpy as np
import pytest

from finetune.common.errors import UsageError
from finetune.data.prepare import prepare

PLAIN = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + (m['content'] or '') + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}{% generation %}"
    "{{ m['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ m['content'] + '<|im_end|>\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TOOLS = (
    "{% if tools %}{{ 'tools: ' + tools | tojson + '\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] }}"
    "{% if m.tool_calls %}{% for call in m.tool_calls %}{{ ' calls ' + call.function.name }}{% endfor %}{% endif %}"
    "{{ '\n' + (m['content'] or '') + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture
def chatml(bpe_directory):
    """Make a tokenizer directory with two added tokens and a chat template."""

    def make(template):
        from transformers import AutoTokenizer

        base = bpe_directory("user\nassistant\nsystem\nWhat is 1? It is 1, naïve 漢. " * 3, vocab_size=300)
        tokenizer = AutoTokenizer.from_pretrained(base)
        tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
        tokenizer.chat_template = template
        tokenizer.save_pretrained("chatml")
        return "chatml", tokenizer

    return make


def conversations(count=20):
    rows = []
    for i in range(count):
        turns = [
            ("system", "Be kind."),
            ("user", f"What is {i}?\n"),
            ("assistant", f" It is {i}, naïve 漢😀."),
            ("user", "And?"),
        ]
        turns += [("assistant", "\nThat is all.")] if i % 2 else [("assistant", "Bye <|im_end|>.")]
        rows.append({"messages": [{"role": role, "content": content} for role, content in turns]})
    return rows


def write(rows, name="data.jsonl"):
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


def documents(dataset):
    """[(ids, mask)] of all documents, by the ends that the prepared directory names."""
    found = []
    for split in ("train", "val"):
        ids, mask = np.fromfile(dataset.bin(split), "<u2"), np.fromfile(dataset.mask(split), np.uint8)
        ends = dataset.document_ends(split)
        found += list(zip(np.split(ids, ends[:-1]), np.split(mask, ends[:-1])))
    return [(ids.tolist(), mask.tolist()) for ids, mask in found]


@pytest.mark.parametrize("template", [PLAIN, MARKED], ids=["plain", "marked"])
def test_ids_are_those_of_apply_chat_template(chatml, template):
    directory, tokenizer = chatml(template)
    rows = conversations()
    dataset = prepare([write(rows)], "data", directory)
    wanted = [tokenizer.apply_chat_template(row["messages"], return_dict=True)["input_ids"] for row in rows]
    assert sorted(ids for ids, _ in documents(dataset)) == sorted([*ids, dataset.tokenizer.eot] for ids in wanted)


def test_masks_are_those_of_the_marks_in_the_template(chatml):
    directory, tokenizer = chatml(MARKED)
    rows = conversations()
    found = {tuple(ids[:-1]): mask for ids, mask in documents(prepare([write(rows)], "data", directory))}
    for row in rows:
        wanted = tokenizer.apply_chat_template(row["messages"], return_dict=True, return_assistant_tokens_mask=True)
        # the end-of-text behind it is not marked, so it is not learned
        assert found[tuple(wanted["input_ids"])] == [*wanted["assistant_masks"], 0]


def test_without_marks_a_turn_is_learned_to_its_end(chatml):
    directory, tokenizer = chatml(PLAIN)
    rows = [
        {"messages": [{"role": "user", "content": f"What is {i}?"}, {"role": "assistant", "content": "It is 1."}]}
        for i in range(20)
    ]
    for ids, mask in documents(prepare([write(rows)], "data", directory)):
        learned = [token for token, is_target in zip(ids, mask) if is_target]
        assert tokenizer.decode(learned) == "It is 1.<|im_end|>\n<|endoftext|>"


@pytest.mark.parametrize("val_fraction", [0.1, 0.2, 0.3, 0.36, 0.45])
def test_what_is_learned_of_a_conversation_stays_so_where_it_is_cut(chatml, val_fraction):
    """One conversation: val begins within it, in a prompt or an answer."""
    directory, _ = chatml(PLAIN)
    answers = ["It is 1, or so it was said. ", "It is 9, and nobody knows why. "]
    messages = [
        {"role": role, "content": text}
        for answer in answers
        for role, text in (("user", "What?"), ("assistant", answer))
    ]
    dataset, learned = prepare([write([{"messages": messages}])], "data", directory, val_fraction), ""
    for split in ("train", "val"):
        ids, mask = np.fromfile(dataset.bin(split), "<u2"), dataset.mask(split)
        is_target = np.fromfile(mask, bool) if mask else np.ones(len(ids), bool)  # no file where all is learned
        learned += dataset.tokenizer.decode(ids[is_target])
    assert learned == f"{answers[0]}<|im_end|>\n{answers[1]}<|im_end|>\n<|endoftext|>"
    assert dataset.meta["split_by"] == "characters"


@pytest.mark.parametrize("template", [PLAIN, MARKED], ids=["plain", "marked"])
def test_a_turn_of_weight_0_is_not_learned(chatml, template):
    directory, tokenizer = chatml(template)
    rows = conversations()
    for row in rows:
        row["messages"][2]["weight"] = 0
    for ids, mask in documents(prepare([write(rows)], "data", directory)):
        learned = tokenizer.decode([token for token, is_target in zip(ids, mask) if is_target])
        assert "It is" not in learned and ("That is all." in learned or "Bye" in learned)


def test_tool_calls_and_tools_are_rendered(chatml):
    directory, tokenizer = chatml(TOOLS)
    call = {"type": "function", "function": {"name": "weather", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "sunny"},
        {"role": "assistant", "content": "It is sunny."},
    ]
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
    dataset = prepare([write([{"messages": messages, "tools": tools}] * 20)], "data", directory)
    wanted = tokenizer.apply_chat_template(messages, tools=tools, return_dict=True)["input_ids"]
    found = documents(dataset)
    assert all(ids == [*wanted, dataset.tokenizer.eot] for ids, _ in found)
    learned = tokenizer.decode([token for token, is_target in zip(*found[0]) if is_target])
    assert learned.count("<|im_end|>") == 2 and "It is sunny.<|im_end|>" in learned and "Weather?" not in learned


def test_tools_are_refused_without_a_template_for_them(bpe_directory):
    messages = [{"role": "user", "content": "Weather?"}, {"role": "assistant", "content": "It is sunny."}]
    rows = [{"messages": messages, "tools": [{"type": "function"}]}] * 20
    with pytest.raises(UsageError, match="data.jsonl: row 1: it offers tools"):
        prepare([write(rows)], "data", str(bpe_directory("Weather? It is sunny.")))
    assert not Path("data").exists()


def test_the_template_stays_that_of_the_tokenizer(chatml):
    from transformers import AutoTokenizer

    directory, tokenizer = chatml(PLAIN)
    dataset = prepare([write(conversations())], "data", directory)
    assert AutoTokenizer.from_pretrained("data").chat_template == PLAIN == dataset.meta["chat_template"]


def test_a_template_that_fails_is_named_with_its_row(chatml):
    directory, _ = chatml("{{ raise_exception('no systems here') if messages[0]['role'] == 'system' }}" + PLAIN)
    rows = [{"messages": row["messages"][1:]} for row in conversations(3)] + conversations(1)
    with pytest.raises(UsageError, match=r"data.jsonl: row 4: the chat template .* no systems here \(line 4\)"):
        prepare([write(rows)], "data", directory)
    assert not Path("data").exists()


def test_another_template_prepares_a_text_again(chatml):
    from finetune.runs.datasets import find_dataset

    source, found = write(conversations()), []
    for template in (PLAIN, PLAIN.replace("im_start|>' +", "im_start|>Now ' +"), PLAIN):
        name, theirs = chatml(template)
        found.append(find_dataset(source, functools.partial(str, name)))
        texts = {theirs.decode(ids).removesuffix("<|endoftext|>") for ids, _ in documents(found[-1])}
        assert texts == {theirs.apply_chat_template(row["messages"], tokenize=False) for row in conversations()}
    assert found[0].directory == found[2].directory != found[1].directory
