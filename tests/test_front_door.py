"""Files as people have them are read as they are meant, or refused in one line: never silently wrong."""

import io
import json
import re
from pathlib import Path

import front_door_advice
import front_door_answers
import front_door_beside
import front_door_chat
import front_door_columns
import front_door_csv
import front_door_dialects
import front_door_directories
import front_door_disguised
import front_door_escapes
import front_door_exports
import front_door_files
import front_door_first_rows
import front_door_flags
import front_door_json
import front_door_objects
import front_door_people
import front_door_sent
import front_door_tables
import front_door_texts
import front_door_turns
import front_door_written
import numpy as np
import pytest
from front_door import documents_of, is_same

MODULES = (
    front_door_advice,
    front_door_answers,
    front_door_beside,
    front_door_chat,
    front_door_columns,
    front_door_csv,
    front_door_dialects,
    front_door_directories,
    front_door_disguised,
    front_door_escapes,
    front_door_exports,
    front_door_files,
    front_door_first_rows,
    front_door_flags,
    front_door_json,
    front_door_objects,
    front_door_people,
    front_door_sent,
    front_door_tables,
    front_door_texts,
    front_door_turns,
    front_door_written,
)
CASES = [case for module in MODULES for case in module.CASES]


def tree():
    return {str(path): path.stat().st_size for path in Path().rglob("*") if path.is_file()}


def test_there_are_many_cases_of_one_name_each():
    assert len(CASES) >= 120 and len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_people_have_is_read_as_meant_or_refused(case, byte_tokenizer, command, monkeypatch):
    directory, byte_of = byte_tokenizer
    case.write()
    before = tree()
    if case.stdin is not None:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(case.stdin)))
    flags = ["--out_dir=out", "--doctor=false"]
    if not any(argument.startswith("--tokenizer=") for argument in case.arguments):
        flags.append(f"--tokenizer={directory}")
    code, out, err = command("prepare", *case.arguments, *flags)
    if code == 0:
        found = documents_of("out", byte_of, 0)
        assert case.readings, f"read, and not refused: {found}\n{out}"
        assert any(is_same(found, reading) for reading in case.readings), found
        missing = [pattern for pattern in case.says if not re.search(pattern, out + err, re.I)]
        assert not missing, f"{out}{err}"
    else:
        assert code == 2 and case.refusal is not None, err
        assert len(err.strip().splitlines()) == 1, err
        missing = [pattern for pattern in case.refusal if not re.search(pattern, err, re.I)]
        assert not missing, err
        assert "Traceback" not in err and "Error:" not in err, err
        assert tree() == before


def test_texts_of_characters_stay_apart(command):
    """A vocabulary of characters has no end-of-text, so line ends stand between its documents."""
    Path("a.txt").write_text("The first text")
    rows = [f"Row {number} of the table" for number in range(12)]
    Path("b.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    for sources in (["a.txt", "b.jsonl"], ["b.jsonl", "a.txt"]):
        out_dir = "out" + "".join(sources)
        code, out, err = command("prepare", *sources, "--tokenizer=char", f"--out_dir={out_dir}", "--doctor=false")
        assert code == 0, err
        chars = np.array(list(json.loads(Path(out_dir, "meta.json").read_text())["tokenizer"]["chars"]))
        read = [
            "".join(chars[np.fromfile(Path(out_dir, f"{split}.bin"), dtype="<u2")]).split("\n")
            for split in ("train", "val")
        ]
        texts = [line for lines in read for line in lines if line]
        assert sorted(texts) == sorted([*rows, "The first text"])
