"""Texts encoded many at a time get the ids that tiktoken gives each."""

import random
import sys
import unicodedata
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import regex
import tiktoken
from tiktoken_ext.openai_public import r50k_pat_str

from finetune.data import bpe_tokenizer, fast_bpe
from finetune.data import tokenizer as tokenizers
from finetune.data.fast_bpe import FastEncoder
from finetune.data.gpt2_pieces import cut_texts

HARD = [
    *[
        "",
        " ",
        "  ",
        "\n",
        " \n ",
        "'",
        "''",
        "'s",
        " 's",
        "\n's",
        "x's's'll'LL've're'r''s\"'s",
        "'l",
        "'v",
        "a  'll b",
    ],
    *["it's  ", "a\n\n b\t\tc \n", "don't\n", "\x1c\x1d a\x1f\u2028b", "naïve 東京 ½ ²x \U0001f600 é'é", "x" * 50],
    *[" " * 50, "a" * 17 + " " + "b" * 16, "\0\0", "a\0", "12 3½4", "\u00a0a \u3000 b", fast_bpe.PROBE],
]
PARTS = [
    *"aA1 \n\t'\".,sdmtlvre  ",
    *"é東\u00a0\u3000½²\U0001f600\x1c\0ǅʰ٣",
    "'ll",
    "'re",
    "'ve",
    "'s",
    "word",
    " the",
    "12345",
]


@pytest.fixture
def tokenizer(bpe_directory, monkeypatch):
    monkeypatch.setattr(bpe_tokenizer, "FAST_FROM", 30_000)  # so that one test sees both ways
    directory = bpe_directory("the word they'll see was theirs, naïve 東京 12345 don't we've " * 3)
    found = tokenizers.from_directory(directory)
    return bpe_tokenizer.BPETokenizer(found.vocabulary, found.special)  # the same files give one with what it learned


@pytest.fixture
def theirs(tokenizer):
    return tiktoken.Encoding("its", pat_str=r50k_pat_str, mergeable_ranks=tokenizer.vocabulary, special_tokens={})


@pytest.fixture
def encoder(theirs):
    return FastEncoder(theirs.encode_ordinary, np.dtype(np.uint16))


def same(encoder, theirs, texts):
    found = encoder.encode_many(texts)
    assert [ids.tolist() for ids in found] == [theirs.encode_ordinary(text) for text in texts]


def test_hard_texts(encoder, theirs):
    assert encoder.is_exact()
    same(encoder, theirs, HARD)
    same(encoder, theirs, HARD[::-1])  # from memory now
    for text in HARD:
        same(encoder, theirs, [text])
    assert encoder.encode_many([]) == []


def test_random_texts(encoder, theirs):
    rng = random.Random(0)
    for _ in range(100):
        same(encoder, theirs, ["".join(rng.choices(PARTS, k=rng.randrange(40))) for _ in range(30)])


def test_every_character_is_of_the_class_that_tiktoken_gives_it(encoder, theirs):
    points = [*range(0x3400), *range(0x3400, 0xD800, 16), *range(0xE000, 0x10000), *range(0x10000, sys.maxunicode, 97)]
    known = [chr(point) for point in points if unicodedata.category(chr(point)) not in ("Cn", "Cs")]
    assert len(known) > 20_000
    texts = [f"a{char}a1{char}1.{char}.\n{char} {char}  {char}" for char in known]
    same(encoder, theirs, texts)
    assert pieces_of(texts) == [regex.findall(r50k_pat_str, text) for text in texts]


def pieces_of(texts):
    pieces = cut_texts(texts)
    each = [pieces.data[start : start + size].decode() for start, size in zip(pieces.starts, pieces.sizes)]
    return [each[first:last] for first, last in zip([0, *pieces.ends], pieces.ends)]


def test_pieces_are_those_of_the_pattern():
    rng = random.Random(3)
    texts = HARD + ["".join(rng.choices(PARTS, k=rng.randrange(40))) for _ in range(3000)]
    assert pieces_of(texts) == [regex.findall(r50k_pat_str, text) for text in texts]


def test_characters_without_a_meaning_are_left_to_tiktoken(encoder, tokenizer):
    assert encoder.encode_many(["a", "\U0002fffe"]) is None and encoder.encode_many(["\ud800"]) is None
    texts = ["word " * 6000, "\U0002fffe \ud800 word"]
    tokenizer.encode_many(texts)
    assert [ids.tolist() for ids in tokenizer.encode_many(texts)] == [tokenizer.encode(text).tolist() for text in texts]


def test_a_full_table_changes_nothing(theirs, monkeypatch):
    rng = random.Random(1)
    monkeypatch.setattr(fast_bpe, "SLOTS", 16)
    encoder = FastEncoder(theirs.encode_ordinary, np.dtype(np.uint16))
    for _ in range(20):
        same(encoder, theirs, ["".join(rng.choices(PARTS, k=300)) for _ in range(5)])


def test_the_first_texts_of_a_tokenizer_are_left_to_tiktoken(tokenizer, theirs):
    rng = random.Random(4)
    texts = ["".join(rng.choices(PARTS, k=10_000)) for _ in range(8)]
    for number, text in enumerate(texts):
        assert tokenizer.encode_many([text])[0].tolist() == theirs.encode_ordinary(text)
        assert ("_fast" in vars(tokenizer)) == (sum(map(len, texts[:number])) >= 30_000)


def test_threads_do_not_disturb_each_other(tokenizer):
    rng = random.Random(2)
    texts = ["".join(rng.choices(PARTS, k=30_000)) for _ in range(16)]
    expected = [tokenizer.encode(text).tolist() for text in texts]
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda text: tokenizer.encode_many([text]), texts)
        assert [ids.tolist() for (ids,) in found] == expected


def test_an_encoder_that_is_not_exact_is_not_used(tokenizer, monkeypatch):
    monkeypatch.setattr(FastEncoder, "is_exact", lambda _: False)
    monkeypatch.setattr(FastEncoder, "encode_many", None)
    text = "the word " * 4000
    tokenizer.encode_many([text])
    assert tokenizer.encode_many([text])[0].tolist() == tokenizer.encode(text).tolist()
