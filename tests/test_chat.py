"""Chat data: only answers and their end-of-text are targets, and the trained model is exported with the same
template."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from finetune import GPT
from finetune.common.errors import UsageError
from finetune.data import arrow_cache, chat
from finetune.data import dataset as datasets
from finetune.data.batches import Blocks
from finetune.data.prepare import prepare
from finetune.data.turns import turns_of


def examples(count=60):
    return [
        {"prompt": f"What is {i} plus {i % 7}?", "completion": f"It is {i + i % 7}, as everybody knows."}
        for i in range(count)
    ]


def test_line_ends_are_unified_at_any_depth():
    calls = [{"function": {"name": "look", "arguments": {"places": ["a\r\nb", 1]}}}]
    (turn,) = turns_of([{"role": "assistant", "content": None, "tool_calls": calls, "thinking": "So\rit is"}])
    assert turn.raw["tool_calls"][0]["function"] == {"name": "look", "arguments": {"places": ["a\nb", 1]}}
    assert turn.raw["thinking"] == "So\nit is"


def as_messages(rows):
    return [
        {"messages": [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]}
        for row in rows
    ]


def write(rows, name="data.jsonl"):
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


@pytest.fixture
def tokenizer(bpe_directory):
    return str(bpe_directory("User:\nAssistant:\nWhat is 1 plus 2? It is 3, as everybody knows. " * 3, vocab_size=300))


def read(dataset, split):
    ids = np.fromfile(dataset.bin(split), dtype="<u2")
    return ids, np.fromfile(dataset.mask(split), dtype=np.uint8)


def test_targets_are_completions_and_one_end_of_text_each(tokenizer):
    rows = examples()
    dataset = prepare([write(rows)], "data", tokenizer)
    encode, eot, seen = dataset.tokenizer.encode, dataset.tokenizer.eot, 0
    for split in ("train", "val"):
        ids, mask = read(dataset, split)
        assert len(ids) == len(mask) and set(mask) == {0, 1}
        ends = np.flatnonzero(ids == eot)
        for document, learned in zip(np.split(ids, ends + 1)[:-1], np.split(mask, ends + 1)[:-1]):
            text = dataset.tokenizer.decode(document)
            row = next(row for row in rows if f"\n{row['prompt']}\n" in text)
            assert text == f"User:\n{row['prompt']}\n\nAssistant:\n{row['completion']}<|endoftext|>"
            assert document[learned == 1].tolist() == [*encode(row["completion"]).tolist(), eot]
            seen += 1
        assert dataset.meta["splits"][split]["targets"] == mask.sum()
    assert seen == 60


def test_messages_are_prompts_and_completions(tokenizer):
    rows = examples()
    one, other = (
        prepare([write(rows, "a.jsonl")], "a", tokenizer),
        prepare([write(as_messages(rows), "b.jsonl")], "b", tokenizer),
    )
    renamed = [{"question": row["prompt"], "answer": row["completion"]} for row in rows]
    third = prepare([write(renamed, "c.jsonl")], "c", tokenizer, columns={"prompt": "question", "completion": "answer"})
    for split in ("train", "val"):
        assert one.bin(split).read_bytes() == other.bin(split).read_bytes() == third.bin(split).read_bytes()
        assert one.mask(split).read_bytes() == other.mask(split).read_bytes()


def test_every_turn_of_an_assistant_is_learned(tokenizer):
    turns = [("system", "Be kind."), ("user", "Hi?"), ("assistant", "Hello."), ("user", "And?"), ("assistant", "Bye.")]
    messages = [{"role": role, "content": content} for role, content in turns]
    dataset = prepare([write([{"messages": messages}] * 20)], "data", tokenizer)
    ids, mask = read(dataset, "val")
    encode, eot = dataset.tokenizer.encode, dataset.tokenizer.eot
    assert ids[mask == 1].tolist() == [*encode("Hello.").tolist(), eot, *encode("Bye.").tolist(), eot] * 2
    assert dataset.meta["splits"]["val"]["documents"] == 2


def test_the_exported_chat_template_is_what_was_trained_on(tokenizer):
    from transformers import AutoTokenizer

    turns = [("system", "Be kind."), ("user", "Hi?"), ("assistant", "Hello."), ("user", "And?"), ("assistant", "Bye.")]
    messages = [{"role": role, "content": content} for role, content in turns]
    dataset = prepare([write([{"messages": messages}] * 20)], "data", tokenizer)
    theirs = AutoTokenizer.from_pretrained("data")
    ids = theirs.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"]
    assert theirs.decode(ids) == dataset.tokenizer.decode(read(dataset, "val")[0])[: len(theirs.decode(ids))]
    asked = theirs.apply_chat_template(messages[:2], tokenize=False, add_generation_prompt=True)
    assert asked == "System:\nBe kind.\n\nUser:\nHi?\n\nAssistant:\n"


def test_plain_text_prepared_after_conversations_has_no_chat_template(tokenizer):
    """In one process, whose tokenizers are cached."""
    from transformers import AutoTokenizer

    prepare([write(examples())], "answers", tokenizer)
    prepare([write([{"text": "What is 1 plus 2?"}] * 20, "plain.jsonl")], "plain", tokenizer)
    assert [bool(AutoTokenizer.from_pretrained(name).chat_template) for name in ("answers", "plain")] == [True, False]


def test_masked_loss_is_that_of_hugging_face_with_its_labels(tokenizer, hf_model):
    dataset = prepare([write(examples())], "data", tokenizer)
    T, hf = 32, hf_model(vocab_size=dataset.tokenizer.vocab_size)
    contents = datasets.scan(dataset, "train")
    blocks = Blocks.from_arrow(arrow_cache.open_cache(dataset, "train", T, contents), contents.tokens)
    rows = list(range(blocks.num_rows))
    idx, targets, _ = blocks.batch(rows)
    loss, count = GPT.from_hf(hf)(idx, targets)
    ids, mask = read(dataset, "train")
    assert count == mask[1:].sum() == blocks.num_targets(rows)
    summed = counted = 0
    for first in range(0, len(ids) - 1, T):
        part = torch.from_numpy(ids[first : first + T + 1].astype(np.int64))[None]
        labels = part.masked_fill(torch.from_numpy(mask[first : first + T + 1])[None] == 0, -100)
        logits = hf(part[:, :-1]).logits
        summed += torch.nn.functional.cross_entropy(
            logits[0].float(), labels[0, 1:], ignore_index=-100, reduction="sum"
        ).item()
        counted += int((labels[0, 1:] != -100).sum())
    assert loss.item() / count.item() == pytest.approx(summed / counted, abs=1e-5)
    assert counted == count
    blocks.cache_on_device("cpu")
    assert all(torch.equal(one, other) for one, other in zip(blocks.batch(rows)[:2], (idx, targets)))
    same = Blocks.from_tokens(ids, T, mask)
    assert all(torch.equal(one, other) for one, other in zip(same.batch(rows)[:2], (idx, targets)))


def test_a_model_learns_to_answer_and_to_stop(tokenizer, command):
    rows = [{"prompt": f"Say {word}", "completion": word} for word in ("yes", "no", "fine")] * 40
    prepare([write(rows)], "data", tokenizer)
    shape = [
        "--init_from=scratch",
        "--n_layer=2",
        "--n_head=2",
        "--n_embd=64",
        "--block_size=48",
        "--batch_size=8",
        "--gradient_accumulation_steps=1",
    ]
    code, _, err = command(
        "train",
        "--dataset=data",
        *shape,
        "--max_iters=200",
        "--learning_rate=3e-3",
        "--eval_interval=60",
        "--device=cpu",
        "--dtype=float32",
    )
    assert code == 0, err
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, theirs = AutoModelForCausalLM.from_pretrained("out/best"), AutoTokenizer.from_pretrained("out/best")
    for word in ("yes", "no", "fine"):
        asked = theirs.apply_chat_template(
            [{"role": "user", "content": f"Say {word}"}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        out = model.generate(**asked, max_new_tokens=12, do_sample=False, pad_token_id=theirs.eos_token_id)
        assert theirs.decode(out[0, asked["input_ids"].size(1) :]) == f"{word}<|endoftext|>"


def test_an_answer_without_an_end_is_refused():
    with pytest.raises(UsageError, match="have no end-of-text"):
        prepare([write(examples())], "data", "char")
    assert not Path("data").exists()


def test_a_mask_that_does_not_belong_is_refused(tokenizer):
    dataset = prepare([write(examples())], "data", tokenizer)
    whole = dataset.mask("train").read_bytes()
    dataset.mask("train").write_bytes(whole[:-1])
    with pytest.raises(UsageError, match=r"train_mask.bin: .* bytes for the .* tokens"):
        datasets.scan(dataset, "train")
    dataset.mask("train").write_bytes(bytes(len(whole)))
    with pytest.raises(UsageError, match="train_mask.bin: is not the file that meta.json describes"):
        datasets.scan(dataset, "train")
    dataset.mask("train").unlink()
    with pytest.raises(UsageError, match="train_mask.bin: there is no such file"):
        datasets.scan(dataset, "train")


@pytest.mark.parametrize(
    "row, message",
    [
        ({"messages": []}, "column 'messages' must be a list of messages, not an empty list"),
        ({"messages": [{"role": "user"}]}, "a message needs role and content"),
        ({"messages": [{"role": "user", "content": "?"}]}, "no message of the assistant has content"),
        ({"prompt": "?", "completion": None}, "column 'completion' must be text, not null"),
    ],
)
def test_a_row_without_a_conversation_is_named(tokenizer, row, message):
    with pytest.raises(UsageError, match=f"data.jsonl: row 1: {message}"):
        prepare([write([row])], "data", tokenizer)


def test_the_template_and_the_chunks_agree():
    import jinja2

    messages = [{"role": role, "content": role * 2} for role in ("system", "user", "assistant", "user", "assistant")]
    text = "".join(
        piece.text + ("<end>" if piece.is_last or piece.eot_after else "") for piece in chat.chunks(messages)
    )
    assert jinja2.Template(chat.TEMPLATE).render(messages=messages, eos_token="<end>") == text
