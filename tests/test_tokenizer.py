"""Our tokenizers give the ids of the libraries people compare with, and what they save is what those libraries load."""

import json
import os
import time

import numpy as np
import pytest
from stand_in_hub import TOKEN, serving
from tokenizers import Tokenizer as Library

from finetune.common.errors import UsageError
from finetune.data import bpe_files
from finetune.data import tokenizer as tokenizers

HARD = "Hello world's  end\n\n don't 12345 naïve 東京 \U0001f600\t\x00 ~ <|endoftext|> "


def test_bpe_from_a_directory_encodes_as_its_own_library(bpe_directory):
    from tokenizers import Tokenizer

    directory = bpe_directory(HARD * 3 + "the quick brown fox " * 5, vocab_size=330)
    ours, theirs = tokenizers.from_directory(directory), Tokenizer.from_file(str(directory / "tokenizer.json"))
    text = HARD.replace("<|endoftext|>", "")
    assert ours.encode(text).tolist() == theirs.encode(text).ids
    assert ours.decode(ours.encode(HARD)) == HARD
    assert ours.vocab_size == theirs.get_vocab_size() and ours.eot == theirs.token_to_id("<|endoftext|>")


def test_end_of_text_in_a_text_stays_text(bpe_directory):
    tokenizer = tokenizers.from_directory(bpe_directory(HARD))
    assert tokenizer.eot not in tokenizer.encode("a <|endoftext|> b")


def test_vocab_and_merges_mean_the_same_as_tokenizer_json(bpe_directory, tmp_path):
    directory = bpe_directory(HARD * 3)
    tokenizer = tokenizers.from_directory(directory)
    tokenizer.save(tmp_path)
    (tmp_path / "of_library").mkdir()
    Library.from_file(str(directory / "tokenizer.json")).model.save(str(tmp_path / "of_library"))
    merges = (tmp_path / "of_library/merges.txt").read_bytes()
    assert (tmp_path / "merges.txt").read_bytes() == merges and merges.count(b"\n") > 30
    assert bpe_files.make_bpe_files(tokenizer.vocabulary, tokenizer.special, tokenizer.eot_text)["merges.txt"] == merges
    (tmp_path / "tokenizer.json").unlink()
    assert tokenizers.from_directory(tmp_path).fingerprint == tokenizer.fingerprint


def test_a_tokenizer_is_made_once_and_again_when_its_files_change(bpe_directory):
    directory = bpe_directory(HARD * 3)
    tokenizer = tokenizers.from_directory(directory)
    assert tokenizers.from_directory(directory) is tokenizer
    (directory / "chat_template.jinja").write_text("{{ messages[0].content }}")
    changed = tokenizers.from_directory(directory)
    assert tokenizer.chat_template is None and changed.chat_template == "{{ messages[0].content }}"


def test_a_vocabulary_of_gpt2s_size_is_read_and_written_in_seconds(tmp_path):
    """50,257 ids: the bytes, pairs of them, and end-of-text."""
    letters = list(bpe_files.bytes_to_unicode().values())
    merges = [(a, b) for a in letters for b in letters][:50000]
    vocab = {token: i for i, token in enumerate([*letters, *map("".join, merges), "<|endoftext|>"])}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    began = time.process_time()
    tokenizer = tokenizers.from_directory(tmp_path)
    assert (tokenizer.vocab_size, tokenizer.eot) == (50257, 50256)
    (tmp_path / "saved").mkdir()
    tokenizer.save(tmp_path / "saved")
    assert tokenizers.from_directory(tmp_path / "saved").fingerprint == tokenizer.fingerprint
    assert time.process_time() - began < 20


def test_a_saved_bpe_is_what_transformers_loads(bpe_directory, tmp_path):
    from transformers import AutoTokenizer

    tokenizer = tokenizers.from_directory(bpe_directory(HARD * 3))
    tokenizer.save(tmp_path, block_size=77)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    text = HARD.replace("<|endoftext|>", "")
    assert theirs(text)["input_ids"] == tokenizer.encode(text).tolist()
    assert theirs.decode(tokenizer.encode(text)) == text
    assert theirs.eos_token_id == tokenizer.eot and theirs.model_max_length == 77
    theirs.save_pretrained(tmp_path / "again")
    assert tokenizers.from_directory(tmp_path / "again").fingerprint == tokenizer.fingerprint


def test_a_saved_character_vocabulary_is_what_transformers_loads(tmp_path):
    from transformers import AutoTokenizer

    text = "\n \x00abc漢\U0001f600\u2028'"
    tokenizer = tokenizers.CharTokenizer(sorted(text))
    tokenizer.save(tmp_path, block_size=64)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert theirs(text)["input_ids"] == tokenizer.encode(text).tolist()
    assert theirs.decode(tokenizer.encode(text)) == text
    assert len(theirs) == tokenizer.vocab_size
    again = tokenizers.from_directory(tmp_path)
    assert again.fingerprint == tokenizer.fingerprint and again.kind == "char"


def test_character_round_trip_and_unknown_characters():
    tokenizer = tokenizers.CharTokenizer(list("zab\n"))  # not sorted
    assert tokenizer.encode("az\nb").tolist() == [1, 0, 3, 2]
    assert tokenizer.decode([1, 0, 3, 2]) == "az\nb"
    with pytest.raises(UsageError, match="'q'"):
        tokenizer.encode("aq")


def test_a_tokenizer_that_the_library_does_not_know_is_refused_with_its_reason(tmp_path):
    content = {"version": "1.0", "model": {"type": "Magic", "vocab": {"a": 0}}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UsageError, match="its tokenizer cannot be used: transformers cannot load it"):
        tokenizers.from_directory(tmp_path)


def test_no_tokenizer_files_is_not_an_error(tmp_path):
    assert tokenizers.from_directory(tmp_path) is None


def test_gpt2_without_cache_and_network_says_what_to_do(monkeypatch, tmp_path):
    import tiktoken.load

    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "empty"))
    monkeypatch.setattr("tiktoken.registry.ENCODINGS", {})
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")

    def unreachable(url):
        raise OSError("no network")

    monkeypatch.setattr(tiktoken.load, "read_file", unreachable)
    with pytest.raises(UsageError, match="--tokenizer=DIR"):
        tokenizers.gpt2()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the client's own calls
def test_gpt2_comes_from_the_hub_where_tiktoken_has_nothing(monkeypatch, tmp_path, bpe_directory):
    directory = bpe_directory("some text and some more of it")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "empty"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)

    def unreachable(url):
        raise OSError("no network")

    monkeypatch.setattr(tokenizers, "reach", unreachable)
    with serving() as hub:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
        monkeypatch.setattr(
            "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
            hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        )
        hub.repositories["gpt2"] = {
            "private": False,
            "files": {path.name: path.read_bytes() for path in directory.iterdir()},
        }
        assert tokenizers.gpt2().fingerprint == tokenizers.from_directory(directory).fingerprint
    assert tokenizers.gpt2().fingerprint == tokenizers.from_directory(directory).fingerprint  # there is no Hub any more


@pytest.mark.skipif(
    not os.environ.get("TIKTOKEN_CACHE_DIR"), reason="TIKTOKEN_CACHE_DIR does not name a cache with GPT-2's vocabulary"
)
def test_gpt2s_own_vocabulary(tmp_path):
    import tiktoken

    ours, theirs = tokenizers.gpt2(), tiktoken.get_encoding("gpt2")
    assert ours.encode(HARD).tolist() == theirs.encode_ordinary(HARD)
    assert (ours.vocab_size, ours.eot) == (50257, 50256)
    ours.save(tmp_path)
    again = tokenizers.from_directory(tmp_path)
    assert again.fingerprint == ours.fingerprint
    points = np.random.default_rng(0).integers(1, 0xD7FF, 20000)
    text = "".join(map(chr, points))
    assert again.encode(text).tolist() == theirs.encode_ordinary(text)
    assert len((tmp_path / "merges.txt").read_text(encoding="utf-8").splitlines()) == 50_001


def test_a_prompt_of_which_a_tokenizer_keeps_nothing_is_refused():
    class KeepsNothing:
        def encode(self, text, special=False):
            return np.array([], dtype=np.uint16)

    for start in ("", "\n"):
        with pytest.raises(UsageError, match="start: the prompt is empty; the model needs at least one token"):
            tokenizers.prompt_ids(KeepsNothing(), start)
