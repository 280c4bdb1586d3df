"""Text becomes nanoGPT's bins, byte for byte, and nanoGPT's own files are read as data."""

import hashlib
import json
import os
import pickle
import pickletools
import random
import re
import shutil
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from finetune.common.errors import UsageError
from finetune.data import dataset as datasets
from finetune.data import named_texts, nanogpt_meta, own_files, text_files
from finetune.data import tokenizer as tokenizers
from finetune.data.bin_writer import BinWriter
from finetune.data.documents import Chunk, cut
from finetune.data.prepare import TokenizeOptions, prepare

SHAKESPEARE = os.environ.get("FINETUNE_SHAKESPEARE", "")


@pytest.mark.parametrize(
    "source, name",
    [
        (".", "here"),
        ("..", "novels"),
        ("*.txt", "here"),
        ("../here/*.txt", "here"),
        ("../**/*.txt", "novels"),
        ("../here", "here"),
        ("../here/a.b.txt", "a.b"),
    ],
)
def test_prepared_data_are_named_after_the_source(command, corpus, tmp_path, monkeypatch, source, name):
    here = tmp_path / "novels/here"
    here.mkdir(parents=True)
    Path(corpus()).rename(here / "a.b.txt")
    monkeypatch.chdir(here)
    code, out, error = command("prepare", source, "--tokenizer=char", "--doctor=false")
    assert code == 0 and f"wrote data/{name}/train.bin" in out, error
    assert [str(path) for path in Path("data").rglob("train.bin")] == [f"data/{name}/train.bin"]
    if "*" in source:  # which train does not take
        return
    shape = "--init_from=scratch --n_layer=1 --n_head=1 --n_embd=8 --block_size=8 --max_iters=1 --device=cpu".split()
    code, _, error = command("train", source, "--tokenizer=char", "--out_dir=../../out", *shape)
    assert code == 0, error
    assert [path.name.rpartition("-")[0] for path in Path("data").iterdir() if path.name != name] == [f"{name}-char"]
    assert not re.search(r"<title>[^<]* on ,", Path("../../out/report.html").read_text())


@pytest.mark.parametrize("source", [".", "**/*.txt", "**/*"])
def test_what_finetune_wrote_beside_texts_is_no_text(command, corpus, tiny_run, source):
    """Prepared data, a run and an exported model, with its merges.txt and README.md."""
    Path(corpus()).rename("mine.txt")
    digest = prepare(["mine.txt"], "data/mine", "char").meta["splits"]["train"]["sha256"]
    tiny_run("out", "--max_iters=1", text="mine.txt")
    Path("folder").mkdir()
    assert command("export", "out", "--to=folder/model")[0] == 0
    Path("folder/model/merges.txt").write_text("a b\n" * 50)
    code, out, error = command("prepare", source, "--tokenizer=char", "--out_dir=again", "--doctor=false")
    assert code == 0, error
    assert json.loads(Path("again/meta.json").read_text())["splits"]["train"]["sha256"] == digest
    assert "left out: " in out and "merges.txt" in out
    shutil.copy("mine.txt", "data/mine/own.txt")  # beside prepared data, and so below a run and a model
    Path("mine.txt").rename("folder/model/notes.txt")
    code, out, error = command("prepare", source, "--tokenizer=char", "--out_dir=more", "--doctor=false")
    assert code == 0 and "2 text" in out, out + error


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become somebody else")
def test_a_directory_that_can_be_listed_and_not_entered_is_no_traceback(tmp_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/a.txt").write_text("a text")
    tmp_path.chmod(0o744)
    os.seteuid(65534)  # nobody
    try:
        found = own_files.written([tmp_path / "texts/a.txt"], tmp_path)
    finally:
        os.seteuid(0)
    assert found == set()


def test_character_bins_are_nanogpts(corpus, tmp_path):
    path = corpus(words=800)
    dataset = prepare([path], tmp_path / "data", "char")
    text = Path(path).read_text()
    stoi = {char: i for i, char in enumerate(sorted(set(text)))}  # as nanoGPT numbers them
    cut = int(len(text) * 0.9)
    for split, part in (("train", text[:cut]), ("val", text[cut:])):
        expected = np.array([stoi[char] for char in part], dtype=np.uint16).tobytes()
        assert dataset.bin(split).read_bytes() == expected
        assert dataset.meta["splits"][split]["sha256"] == hashlib.sha256(expected).hexdigest()
        assert dataset.num_bytes(split) == len(part.encode())
    meta = pickle.loads((tmp_path / "data" / "meta.pkl").read_bytes())
    assert meta == {"vocab_size": len(stoi), "stoi": stoi, "itos": {i: char for char, i in stoi.items()}}


def test_bpe_bins_are_nanogpts(corpus, bpe_directory, tmp_path):
    from tokenizers import Tokenizer

    path = corpus(words=2000)
    text = Path(path).read_text()
    directory = bpe_directory(text)
    dataset = prepare([path], tmp_path / "data", str(directory))
    reference = Tokenizer.from_file(str(directory / "tokenizer.json"))
    cut = int(len(text) * 0.9)
    for split, part in (("train", text[:cut]), ("val", text[cut:])):
        assert np.fromfile(dataset.bin(split), dtype="<u2").tolist() == reference.encode(part).ids
    assert dataset.tokenizer.fingerprint == tokenizers.from_directory(directory).fingerprint


@pytest.mark.skipif(
    not SHAKESPEARE, reason="FINETUNE_SHAKESPEARE does not name tiny Shakespeare, or tiktoken has no vocabulary"
)
def test_tiny_shakespeare_has_the_bins_of_nanogpt(tmp_path):
    dataset = prepare([SHAKESPEARE], tmp_path / "data", "gpt2")
    assert {split: dataset.num_tokens(split) for split in ("train", "val")} == {"train": 301_966, "val": 36_059}
    assert (
        dataset.meta["splits"]["train"]["sha256"] == "502a2bdc8210d1ac5d5674867cb74467dd31db575d25cf6dbb08c8bdbea8680f"
    )
    assert dataset.meta["splits"]["val"]["sha256"] == "68a53422394c26a655ebe641f5c6f49888e8f4e45fe5d6f02abda63ba3ebd65b"


HARD = (
    "naïve café — 東京都。人工知能！ \u2028 tab\there  two  spaces\n\n\n  indented\r\nCRLF 'tis don't we've 123,456.78"
    " \U0001f600\x85x\x0cy <|endoftext|> end   "
)


@pytest.mark.parametrize("size", [7, 64, 999])
def test_pieces_encode_to_the_ids_of_the_whole(corpus, bpe_directory, size):
    text = (Path(corpus(words=400)).read_text() + HARD) * 3
    tokenizer = tokenizers.from_directory(bpe_directory(text))
    stream = [Chunk(text[i : i + 50], is_last=i + 50 >= len(text)) for i in range(0, len(text), 50)]
    pieces = list(cut(stream, size))
    assert "".join(piece.text for piece in pieces) == text and len(pieces) > 3
    assert [piece.is_last for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert (
        np.concatenate([tokenizer.encode(piece.text) for piece in pieces]).tolist() == tokenizer.encode(text).tolist()
    )


def test_a_text_without_any_place_to_cut_stays_whole():
    assert list(cut([Chunk("a" * 100), Chunk("b" * 100, is_last=True)], 30)) == [
        Chunk("a" * 100 + "b" * 100, is_last=True)
    ]


def test_documents_are_not_run_together():
    documents = [Chunk("one", is_last=True), Chunk("tw"), Chunk("o", is_last=True), Chunk("three", is_last=True)]
    assert list(cut(documents, 1000)) == [Chunk("one", True), Chunk("two", True), Chunk("three", True)]


def test_characters_of_json_are_those_that_a_model_can_save(command):
    """Half a surrogate pair, as JSON can spell it, ended the training at its first checkpoint."""
    from transformers import AutoTokenizer

    rows = [{"text": f"Half \ud83d of {i}, and ab \ude00."} for i in range(30)]
    Path("a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, out, err = command("prepare", "a.jsonl", "--tokenizer=char", "--out_dir=data", "--doctor=false")
    assert code == 0 and "30 rows with half of a surrogate pair, read as U+FFFD" in out, err
    Path("model").mkdir()
    datasets.load("data").tokenizer.save("model")
    ids = np.fromfile("data/train.bin", dtype="<u2")
    text = AutoTokenizer.from_pretrained("model").decode(ids)
    assert text.count("Half \ufffd of ") == text.count("ab \ufffd.") == 27


def test_byte_order_mark_and_line_ends_are_normalised(tmp_path):
    plain = "first line\nsecond line\nthird\n" * 20
    (tmp_path / "a.txt").write_bytes(plain.encode())
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbf" + plain.replace("\n", "\r\n").encode())
    (tmp_path / "c.txt").write_bytes(plain.replace("\n", "\r").encode())
    written = {
        name: prepare([tmp_path / f"{name}.txt"], tmp_path / name, "char").bin("train").read_bytes() for name in "abc"
    }
    assert written["a"] == written["b"] == written["c"]


def test_python_docs_need_no_download(tmp_path):
    dataset = prepare(["python_docs"], tmp_path / "data", "char")
    assert dataset.num_tokens("train") + dataset.num_tokens("val") > 400_000


def test_shakespeare_without_network_says_where_to_put_the_file():
    with pytest.raises(UsageError, match=r"Put the file http.* at data.shakespeare.input.txt"):
        named_texts.shakespeare("http://127.0.0.1:9/input.txt")


def test_a_failed_preparation_leaves_what_was_there(corpus, tmp_path):
    prepare([corpus()], tmp_path / "data", "char")
    before = {path.name: path.read_bytes() for path in (tmp_path / "data").iterdir()}
    (tmp_path / "bad.txt").write_bytes(b"good\nb\xe9d\n" * 100)
    with pytest.raises(UsageError, match=r"bad.txt: byte 0xE9 at offset 6 \(line 2\) is not UTF-8"):
        prepare([tmp_path / "bad.txt"], tmp_path / "data", "char")
    assert {path.name: path.read_bytes() for path in (tmp_path / "data").iterdir()} == before


def test_the_offset_of_a_bad_byte_is_right_in_a_large_file(tmp_path):
    for lead in (b"", b"\xef\xbb\xbf"):
        content = lead + "zeile ä\n".encode() * 7
        (tmp_path / "x.txt").write_bytes(content + b"\xff")
        with pytest.raises(UsageError, match=rf"0xFF at offset {len(content)} \(line 8\)"):
            list(text_files.read_file(tmp_path / "x.txt", chunk_bytes=10))


def nanogpt_pickle(chars, protocol):
    return pickle.dumps(
        {"vocab_size": len(chars), "itos": dict(enumerate(chars)), "stoi": {c: i for i, c in enumerate(chars)}},
        protocol=protocol,
    )


@pytest.mark.parametrize("protocol", range(6))
def test_meta_pkl_of_every_protocol_is_read(protocol):
    chars = sorted("\n abcé漢\U0001f600")
    assert nanogpt_meta.read(nanogpt_pickle(chars, protocol)).chars == chars


class Payload:
    def __reduce__(self):
        return os.mkdir, ("ran",)


@pytest.mark.parametrize("protocol", range(6))
def test_a_meta_pkl_that_would_run_code_is_refused_and_does_not(protocol):
    for content in (
        Payload(),
        {"vocab_size": Payload()},
        {"itos": {0: Payload()}, "stoi": {}, "vocab_size": 1},
        [Payload()],
    ):
        with pytest.raises(ValueError, match="can run code"):
            nanogpt_meta.read(pickle.dumps(content, protocol=protocol))
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b".",
        b"}.",
        b"}r\x00\x00\x00\x08.",
        b"}",
        b"\x80\x05",
        b"(dp0\n.",
        b"u.",
        b"}(K\x01u.",
        b"I01\n.",
        b"\x80\x02}q\x00h\x05.",
        b"(((((",
        b"hello",
    ],
)
def test_odd_pickles_are_refused_quickly(data):
    began = time.process_time()
    with pytest.raises(ValueError):
        nanogpt_meta.read(data)
    assert time.process_time() - began < 1


def sized(opcode, size, body=b"abc"):
    """An opcode whose length prefix promises `size` bytes."""
    return opcode + size.to_bytes(4 if opcode in b"XBTJ\x8b" else 8, "little") + body


RUNS_CODE = {
    "GLOBAL": b"cos\nmkdir\n(Vran\ntR.",
    "STACK_GLOBAL": b"\x80\x04\x8c\x02os\x8c\x05mkdir\x93(Vran\ntR.",
    "INST": b"(Vran\nios\nmkdir\n.",
    "OBJ": b"(cos\nmkdir\nVran\no.",
    "NEWOBJ": b"\x80\x02Nt\x81.",
    "NEWOBJ_EX": b"\x80\x04N)}\x92.",
    "REDUCE": b"}}R.",
    "BUILD": b"}}b.",
    "EXT1": b"\x80\x02\x82\x01.",
    "EXT2": b"\x80\x02\x83\x01\x00.",
    "EXT4": b"\x80\x02\x84\x01\x00\x00\x00.",
    "PERSID": b"Pname\n.",
    "BINPERSID": b"Vname\nQ.",
    "NEXT_BUFFER": b"\x80\x05\x97.",
    "READONLY_BUFFER": b"\x80\x05}\x98.",
}
HUGE = {
    "LONG_BINPUT": b"}r\xff\xff\xff\xff.",
    "PUT": b"}p" + b"9" * 4000 + b"\n.",
    "GET": b"}g" + b"9" * 4000 + b"\n.",
    "INT": b"I" + b"9" * 1_000_000 + b"\n.",
    "marks": b"(" * 4_000_000,
    "lists in lists": b"](" * 1_000_000 + b"e" * 1_000_000 + b".",
    "tuples that double": b")" + b"2\x86" * 200 + b"}" + b"s.",
    **{
        f"{name} of {size:,}": prefix + sized(opcode, size)
        for name, opcode, sizes in [
            ("BINUNICODE", b"X", [2**31, 2**32 - 1]),
            ("BINUNICODE8", b"\x8d", [2**31, 2**33, 2**40, 2**63 - 1, 2**64 - 1]),
            ("BINBYTES", b"B", [2**31, 2**32 - 1]),
            ("BINBYTES8", b"\x8e", [2**31, 2**33, 2**63 - 1, 2**64 - 1]),
            ("BYTEARRAY8", b"\x96", [2**31, 2**33, 2**63 - 1, 2**64 - 1]),
            ("BINSTRING", b"T", [2**31 - 1, 2**31]),
            ("LONG4", b"\x8b", [2**31 - 1, 2**31]),
            ("FRAME", b"\x95", [2**31, 2**33, 2**63 - 1, 2**64 - 1]),
        ]
        for size in sizes
        for prefix in [b"\x80\x05"]
    },
    "a string of 2^40 within a frame": b"\x80\x04\x95\x0c" + bytes(7) + sized(b"\x8d", 2**40),
}


@pytest.mark.parametrize("name", RUNS_CODE)
def test_an_opcode_that_is_not_plain_data_is_refused_by_name(name):
    with pytest.raises(ValueError, match="can run code"):
        nanogpt_meta.read(RUNS_CODE[name])
    with pytest.raises(ValueError, match=rf"opcode {name} "):  # also where it comes first
        opcode = next(code for code in pickletools.opcodes if code.name == name)
        nanogpt_meta.read(opcode.code.encode("latin-1") + bytes(16))
    assert not Path("ran").exists()


@pytest.mark.parametrize("name", HUGE)
def test_a_meta_pkl_that_promises_much_takes_no_memory(name):
    tracemalloc.start()
    try:
        with pytest.raises(ValueError) as caught:
            nanogpt_meta.read(HUGE[name])
        assert tracemalloc.get_traced_memory()[1] < 1 << 22
    finally:
        tracemalloc.stop()
    assert len(str(caught.value).splitlines()) == 1 and len(str(caught.value)) <= 200


@pytest.mark.parametrize("protocol", range(6))
def test_random_damage_to_a_meta_pkl_never_does_more_than_raise_value_error(protocol):
    rng = np.random.default_rng(protocol)
    whole = nanogpt_pickle(sorted("abcdefghé漢"), protocol)
    opcodes = [ord(opcode.code) for opcode in pickletools.opcodes]
    for _ in range(1000):
        damaged = bytearray(whole)
        for _ in range(rng.integers(1, 4)):
            place = int(rng.integers(len(damaged)))
            new = rng.choice(opcodes) if rng.random() < 0.5 else rng.integers(256)
            damaged[place : place + int(rng.integers(2))] = bytes([new])  # instead of a byte, or beside it
        if rng.random() < 0.1:
            del damaged[int(rng.integers(len(damaged))) :]
        try:
            tokens = nanogpt_meta.read(bytes(damaged)).tokens or []
        except ValueError as error:
            assert len(str(error).splitlines()) == 1
            continue
        assert len(set(tokens)) == len(tokens)


@pytest.mark.parametrize("chars", ["abc", "\n z~é漢\U0001f600"])
def test_our_meta_pkl_is_what_pickle_reads(chars):
    meta = pickle.loads(nanogpt_meta.write(list(chars)))
    assert meta == {
        "vocab_size": len(chars),
        "itos": dict(enumerate(chars)),
        "stoi": {c: i for i, c in enumerate(chars)},
    }


def test_an_edited_bin_is_refused(corpus, tmp_path):
    dataset = prepare([corpus()], tmp_path / "data", "char")
    with open(dataset.bin("train"), "r+b") as file:
        file.seek(10)
        file.write(b"\x01\x00")
    with pytest.raises(UsageError, match="train.bin: is not the file that meta.json describes"):
        datasets.scan(datasets.load(tmp_path / "data"), "train")


def test_meta_json_is_the_record_of_the_data(corpus, tmp_path):
    path = corpus()
    prepare([path], tmp_path / "data", "char", val_fraction=0.2)
    meta = json.loads((tmp_path / "data" / "meta.json").read_text())
    raw = Path(path).read_bytes()
    assert meta["sources"] == [{"name": "corpus.txt", "bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}]
    assert meta["val_fraction"] == 0.2 and meta["vocab_size"] == len(set(raw.decode()))
    assert meta["splits"]["train"]["characters"] == int(len(raw.decode()) * 0.8)


def write_rows(name, rows):
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


def sentences(count, seed=0):
    rng = random.Random(seed)
    words = ["".join(rng.choices("abcdeéß漢", k=1 + i % 7)) for i in range(90)]
    return " ".join(" ".join(rng.choices(words, k=9)).capitalize() + "." for _ in range(count))


def documents():
    return write_rows("documents.jsonl", [{"text": sentences(i % 7, i)} for i in range(60)])  # some of them empty


def conversations():
    turn = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": sentences(1)}]
    return write_rows("conversations.jsonl", [{"messages": turn * (1 + i % 3)} for i in range(30)])


@pytest.mark.parametrize(
    "texts, limits",
    [
        (lambda: {"names": [documents(), conversations()]}, {}),
        (lambda: {"names": [documents()], "val": [conversations()]}, {}),
        (lambda: {"names": [conversations()]}, {"overflow": "drop", "max_tokens": 70}),
    ],
    ids=["documents, then conversations", "another source for validation", "long conversations dropped"],
)
def test_any_number_of_threads_writes_the_same(texts, limits, bpe_directory):
    """With chunks so small that a few kilobytes are many."""
    tokenizer, written = str(bpe_directory(sentences(40, 3))), []
    for threads in (1, 2, 7):
        options = TokenizeOptions(num_proc=threads, group_characters=300, group_chunks=4, **limits)
        prepare(out_dir=f"threads-{threads}", tokenizer=tokenizer, options=options, **texts())
        written.append({path.name: path.read_bytes() for path in Path(f"threads-{threads}").iterdir()})
    assert written[0] == written[1] == written[2]


@pytest.mark.parametrize("chunk_bytes", [1, 2, 3, 1 << 22])
def test_a_mask_that_begins_late_covers_what_came_before(tmp_path, chunk_bytes):
    """In chunks of any size."""
    chunks = [Chunk("abc"), Chunk("de", is_last=True, is_target=False), Chunk("f", is_last=True)]
    with BinWriter(tmp_path / "train.bin", chunk_bytes=chunk_bytes) as writer:
        for chunk in chunks:
            writer.add([(chunk, np.arange(len(chunk.text), dtype=np.uint16))])
        facts = writer.close()
    mask = (tmp_path / "train_mask.bin").read_bytes()
    assert mask == b"\1\1\1\0\0\1" and facts["mask_sha256"] == hashlib.sha256(mask).hexdigest()
    assert (facts["tokens"], facts["targets"], facts["documents"]) == (6, 4, 2)
