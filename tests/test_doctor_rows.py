"""The doctor's --fix writes rows from which prepare makes the same ids and masks: texts, pairs and conversations."""

import itertools
import json
from pathlib import Path

import pytest

from finetune.data import chat
from finetune.data.documents import Chunk
from finetune.tools.doctor.rows import row_of_chunks

BINS = [f"{split}{kind}.bin" for split in ("train", "val") for kind in ("", "_mask", "_documents")]
TOPICS = "weather music trains bread rivers chess glass winter maps stones paper clocks salt wool ships".split()
HARD = [
    "plain",
    "",
    "\n",
    "two\n\nparagraphs\n\n",
    "User:\nno, I am\n\nAssistant:\na quotation",
    "a\n\nUser:\nb\n\nAssistant:\nc\n\n",
    "Assistant:\n",
    "\n\nAssistant:\n",
    "<|endoftext|> spelled, naïve 東京 \U0001f600",
]


def write(name, rows):
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def rows_of(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def message(role, content, **more):
    return {"role": role, "content": content, **more}


def conversations():
    """Every shape that our template has, around contents that look like its parts."""
    for number, (hard, topic) in enumerate(zip(HARD, TOPICS)):
        question, answer = message("user", f"About {topic}?\n{hard}"), message("assistant", f"{topic}! {hard}")
        yield {"messages": [question, answer]}
        yield {"messages": [message("system", hard + topic), question, message("assistant", hard + topic, weight=0)]}
        last = message("assistant", f"Number {number}, {hard}{topic} again")
        yield {"messages": [message("user", topic + hard), message("assistant", hard, weight=0), question, last]}
        yield {"messages": [question, message("assistant", hard), message("user", hard + " bye"), last]}
        yield {"messages": [answer, message("tool", hard), answer, message("user", f"{hard} {topic} {number} end")]}


@pytest.fixture
def tokenizer(bpe_directory):
    return bpe_directory("the user and assistant spoke about weather, music, numbers and trains again")


def prepare(command, source, out_dir, tokenizer, *flags):
    code, out, error = command(
        "prepare", source, f"--out_dir={out_dir}", f"--tokenizer={tokenizer}", "--doctor=false", *flags
    )
    assert code == 0, error
    return {name: Path(out_dir, name).read_bytes() for name in BINS if Path(out_dir, name).exists()}, out


def fix(command, *arguments, fixes="encoding"):
    code, out, error = command("doctor", *arguments, f"--fix={fixes}", "--out_dir=clean")
    assert code == 0, error
    return out


@pytest.mark.parametrize("source", ["rows", "bins"])
def test_conversations_come_back_with_their_masks(source, command, tokenizer):
    every = list(conversations())
    write("train.jsonl", every[5:])
    write("val.jsonl", every[:5])
    before, _ = prepare(command, "train.jsonl", "data", tokenizer, "--val=val.jsonl")
    assert len(before) == 6
    names = ["train.jsonl", "--val=val.jsonl", f"--tokenizer={tokenizer}"] if source == "rows" else ["data"]
    fix(command, *names)
    after, _ = prepare(command, "clean", "again", tokenizer)
    assert after == before


def test_a_document_in_our_template_gives_its_messages():
    for row in conversations():
        chunks = list(chat.chunks(row["messages"]))
        again = list(chat.chunks(row_of_chunks(chunks)["messages"]))
        assert flat(again) == flat(chunks)
    ordinary = [message("system", "Be brief."), message("user", "Hi\n\nyou"), message("assistant", "Yes?")]
    assert row_of_chunks(list(chat.chunks(ordinary))) == {"messages": ordinary}


def flat(chunks):
    """(text, is learned, what follows) of a document, whatever its Chunks."""
    parts = []
    for chunk in chunks:
        end = "end" if chunk.is_last else "turn" if chunk.eot_after else ""
        parts += [(char, chunk.is_target) for char in chunk.text] + [(end, chunk.is_target)] * bool(end)
    return parts


@pytest.mark.parametrize(
    "chunks",
    [
        [Chunk("Once upon", is_target=False), Chunk(" a time", is_last=True)],
        [Chunk("Assistant:\n", is_target=False), Chunk("Yes", is_last=False), Chunk(" no", True, is_target=False)],
        [Chunk("no role\n\n", is_last=True, is_target=False)],
        [Chunk("User:\nhalf", is_last=True, is_target=False)],
    ],
)
def test_a_document_of_another_form_is_no_row(chunks):
    with pytest.raises(ValueError):
        row_of_chunks(chunks)


def test_pairs_stay_pairs_and_the_removed_lie_apart(command, tokenizer):
    rows = [
        {"question": f"How is {one} near {two}?", "answer": f"{two} is fine"} for one, two in itertools.pairwise(TOPICS)
    ]
    broken = [*rows, {"question": "How is tea?", "answer": "CafÃ© first\r\n"}, *rows[:2]]
    write("answers.jsonl", broken)
    columns = ["--prompt_column=question", "--completion_column=answer"]
    out = fix(command, "answers.jsonl", *columns, f"--tokenizer={tokenizer}", fixes="dedup,encoding")
    assert "recipes/instruction.yaml" in out and " of them learned" in out
    expected = [{"prompt": row["question"], "completion": row["answer"]} for row in rows]
    assert rows_of("clean/clean.jsonl") == [*expected, {"prompt": "How is tea?", "completion": "Café first\n"}]
    assert [row["kind"] for row in rows_of("clean/removed.jsonl")] == ["exact_duplicates"] * 2
    assert rows_of("clean/removed.jsonl")[0]["messages"][0]["content"] == rows[0]["question"]
    bins, out = prepare(command, "clean", "data", tokenizer)
    assert "15 rows" in out and "removed.jsonl" in out and {"train_mask.bin", "val_mask.bin"} <= bins.keys()


def test_texts_and_conversations_go_to_files_of_their_own(command, tokenizer):
    pair = {"messages": [message("user", "Is it so?"), message("assistant", "It is.")]}
    long = {"messages": [message("user", "And then?"), message("assistant", "Later."), *pair["messages"]]}
    write("pairs.jsonl", [{"prompt": "Is it so?", "completion": "It is."}])
    write("long.jsonl", [long])
    Path("story.txt").write_text("Once upon a time")
    fix(command, "pairs.jsonl", "long.jsonl", "story.txt", f"--tokenizer={tokenizer}")
    assert rows_of("clean/clean-messages.jsonl") == [pair, long]
    assert rows_of("clean/clean-text.jsonl") == [{"text": "Once upon a time"}]
    assert len(list(Path("clean").iterdir())) == 2
    code, _, error = command("doctor", "story.txt", "--fix=dedup", "--out_dir=clean")
    assert code == 2 and "clean/clean-text.jsonl: is there already" in error


def test_a_template_of_the_tokenizers_own_loses_nothing(command, tokenizer):
    turns = "{% for m in messages %}[{{ m.role }} {{ m.name }}] {{ m.content }}{{ eos_token }}{% endfor %}"
    begins = "{% if add_generation_prompt %}[assistant ] {% endif %}"
    Path(tokenizer, "chat_template.jinja").write_text("{{ tools | length }}" + turns + begins)
    rows = [
        {
            "messages": [message("user", f"What of {topic}?", name="Ann"), message("assistant", f"{topic} CafÃ©")],
            "tools": [{"type": "function", "function": {"name": topic}}],
        }
        for topic in TOPICS
    ]
    write("rows.jsonl", rows)
    fix(command, "rows.jsonl", f"--tokenizer={tokenizer}")
    for row in rows:
        row["messages"][1]["content"] = row["messages"][1]["content"].replace("CafÃ©", "Café")
    assert rows_of("clean/clean.jsonl") == rows
    prepare(command, "rows.jsonl", "data", tokenizer)
    code, _, error = command("doctor", "data", "--fix=dedup", "--out_dir=more")
    assert code == 2 and "chat template of the tokenizer's own; --fix needs the sources" in error
    assert not Path("more").exists()
