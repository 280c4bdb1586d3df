"""What a refusal tells people to type is typed as it stands, and all that they meant is read."""

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from front_door import documents_of, is_same
from front_door_advice import ADVICE

from finetune.data.row_shape import jq_path

JQ = re.compile(r"jq (-[cr]) ('[^']+')(?: FILE)?(?: > ([\w.-]+))?")
FLAG = re.compile(r"""--(?:prompt|completion|messages|text)_\w+=(?:'[^']*'|"[^"]*"|[^\s,;]+)""")


def typed(message, file):
    """What the first way of a message names: the source, after its commands of jq are run, and the flags."""
    written = []
    for kind, program, name in JQ.findall(message):
        name = name or {"-c": "out.jsonl", "-r": "out.txt"}[kind]
        if Path("typed", name) in written:  # another way
            break
        written.append(Path("typed", name))
        written[-1].parent.mkdir(exist_ok=True)
        subprocess.run(f"jq {kind} {program} {file} > typed/{name}", shell=True, check=True)
    return (written[0] if len(written) == 1 else "typed") if written else file


def flags_of(message):
    """The flags of the first way: those up to the column that is learned."""
    found = []
    for flag in FLAG.findall(message):
        found += shlex.split(flag)
        if not flag.startswith("--prompt"):
            break
    return found


@pytest.mark.parametrize(("case", "documents"), ADVICE, ids=[case.name for case, _ in ADVICE])
def test_the_way_out_of_a_refusal_reads_what_was_meant(case, documents, byte_tokenizer, command):
    directory, byte_of = byte_tokenizer
    case.write()
    ours = [f"--tokenizer={directory}", "--out_dir=out", "--doctor=false"]
    code, _, message = command("prepare", *case.arguments, *ours)
    assert code == 2, message
    if JQ.search(message) and not shutil.which("jq"):
        pytest.skip("jq is not installed")
    source = typed(message, case.arguments[0])
    flags = [] if str(source).endswith(".txt") else flags_of(message)  # of another way
    code, out, err = command("prepare", source, *flags, *ours)
    assert code == 0, err
    assert is_same(documents_of("out", byte_of, 0), documents), out


@pytest.mark.skipif(not shutil.which("jq"), reason="jq is not installed")
@pytest.mark.parametrize("name", ["a", "it's", 'my "a"', "a\\b", "é b"])
def test_jq_finds_a_key_of_any_name(name):
    Path("a.json").write_text(json.dumps({name: 1}))
    assert subprocess.check_output(f"jq '{jq_path(name)}' a.json", shell=True) == b"1\n"
