"""prepare --dry_run=true says what would be read, marks what is learned, and writes nothing."""

import json
import os
from pathlib import Path


def rows(count=30):
    return [{"id": i, "prompt": f"What is {i}?", "completion": f"It is {i}."} for i in range(count)]


def test_it_says_what_is_read_and_marks_what_is_learned(command, bpe_directory):
    Path("answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()))
    tokenizer = bpe_directory("User: What is it? Assistant: It is. " * 3, vocab_size=300)
    before = sorted(os.listdir())
    code, out, err = command("prepare", "answers.jsonl", f"--tokenizer={tokenizer}", "--dry_run=true")
    assert code == 0, err
    assert "answers.jsonl: 30 rows, columns 'prompt' and 'completion' ('completion' is learned), not read: id" in out
    documents = out.split("document ")[1:]
    assert len(documents) == 3
    for number, document in enumerate(documents):
        lines = document.splitlines()[1:]
        assert [line[4:] for line in lines if line.startswith("  | ")] == [
            "User:",
            f"What is {number}?",
            "",
            "Assistant:",
        ]
        assert [line[4:] for line in lines if line.startswith("  > ")] == [f"It is {number}.<|endoftext|>"]
    assert "nothing was written" in out and sorted(os.listdir()) == before


def test_it_names_separator_encoding_and_what_is_left_out(command):
    Path("in").mkdir()
    lines = ["id;text", *(f"{i};café number {i}; more" if i != 7 else f"{i};" for i in range(20))]
    text = "\n".join(line if line.count(";") == 1 else line.replace("; more", "") for line in lines)
    Path("in/a.csv").write_bytes(text.encode("cp1252"))
    Path("in/b.docx").write_bytes(b"PK\x03\x04")
    code, out, err = command("prepare", "in", "--tokenizer=char", "--encoding=cp1252", "--dry_run=true")
    assert code == 0, err
    assert "in/a.csv: 20 rows, column 'text', separator ';', cp1252, left out 1 row without text, not read: id" in out
    assert "left out: 1 .docx" in out and "  > café number 0" in out
    assert not Path("data").exists()


def test_an_error_is_found_without_writing(command):
    Path("a.jsonl").write_text('{"text": "one"}\n' * 40 + '{"text": "two}\n')
    code, out, err = command("prepare", "a.jsonl", "--tokenizer=char", "--dry_run=true")
    assert code == 2 and "a.jsonl" in err and "line 41" in err and len(err.strip().splitlines()) == 1
    assert not Path("data").exists()
