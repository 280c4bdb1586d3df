"""Tokenizers of every family give AutoTokenizer's ids, and what is saved of them tokenizes as the source did."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import tokenizer_families as families
from tokenizer_families import FAMILIES, TEXT

from finetune.common.errors import UsageError
from finetune.data import dataset as datasets
from finetune.data import tokenizer as tokenizers
from finetune.data.bin_writer import BinWriter
from finetune.data.documents import Chunk, cut, documents_of_bin
from finetune.data.encode import encode_chunks
from finetune.data.new_tokenizers import train_tokenizer, with_added_tokens
from finetune.data.prepare import TokenizeOptions, prepare
from finetune.tools.doctor import bin_reader

SPELLED = """
    <|endoftext|> </s> [SEP] [EOS] <s> <unk> [UNK] [PAD] <|im_start|> <|im_end|> <|startoftext|> <|pad|> <|user|>
    <b> <|bos|> covid19 <speaker1> Ünï [MASK] <|extra_9|> ▁ <0x41> ##ing
""".split()
HARD = [
    "Hello world's  end\n\n don't 12345 naïve 東京 \U0001f600\t\x00 ~ ",
    " a\u0301 ﬁ Ⅳ İ \u200d\u00ad \ufeff\u2028\r\n\x85 ÅÅ 한국어 हिन्दी \U0001f469\u200d\U0001f469\u200d\U0001f467",
    "\uffff \x7f\u3000",
    "",
    "\n",
    "".join(f"word{token}{token} {token}\n" for token in SPELLED),
    TEXT[:3000],
]


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    root = tmp_path_factory.mktemp("families")
    return {family.__name__: families.write(family, root) for family in (*FAMILIES, families.large)}


def auto(directory):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(directory)


def their_ids(theirs, text):
    return theirs(text, add_special_tokens=False, verbose=False)["input_ids"]


def hard_texts():
    rng = random.Random(0)
    points = [*range(1, 0xD800), *range(0xE000, 0x20000)]
    mixed = [rng.choice([chr(rng.choice(points)), rng.choice(SPELLED), " "]) for _ in range(3000)]
    overlaps = rng.choices(["a", "b", "c", "d", "<|x|>", "<|", "|>", " ", "<|endoftext|>"], k=2000)
    return [*HARD, "".join(mixed), "".join(overlaps)]


@pytest.mark.parametrize("family", [family.__name__ for family in FAMILIES])
def test_ids_and_texts_are_those_of_autotokenizer(directories, family, tmp_path):
    ours, theirs = tokenizers.from_directory(directories[family]), auto(directories[family])
    assert ours.kind == "hf" and ours.vocab_size == len(theirs)
    for text in hard_texts():
        ids = ours.encode(text, special=True)
        assert ids.tolist() == their_ids(theirs, text)
        assert ours.decode(ids) == theirs.decode(ids.tolist())
    assert ours.decode([*ours.encode("a"), 60000]) == ours.decode(ours.encode("a"))


@pytest.mark.parametrize("family", [family.__name__ for family in FAMILIES])
def test_what_is_saved_is_what_transformers_loaded(directories, family, tmp_path):
    source, ours = directories[family], tokenizers.from_directory(directories[family])
    ours.save(tmp_path, block_size=77)
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    configs = [json.loads(files.pop("tokenizer_config.json")) for files in (before, after)]
    wanted, pad = {"padding_side": "left", **configs[0], "model_max_length": 77}, auto(source).pad_token
    if not pad and ours.eot_text:  # pipeline() takes batches
        wanted["pad_token"] = pad = ours.eot_text
    assert before == after and configs[1] == wanted
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')  # best/ has one
    theirs, saved = auto(source), auto(tmp_path)
    for text in HARD:
        assert their_ids(saved, text) == their_ids(theirs, text)
    theirs.pad_token = pad
    for name in ("special_tokens_map", "all_special_tokens", "chat_template", "pad_token_id", "eos_token_id"):
        assert getattr(saved, name) == getattr(theirs, name), name
    again = tokenizers.from_directory(tmp_path)
    assert again.fingerprint == ours.fingerprint and again.eot == ours.eot


@pytest.mark.parametrize(("family", "end"), [(family.__name__, end) for family, end in FAMILIES.items()])
def test_documents_end_with_the_tokenizers_own_token(directories, family, end):
    ours, theirs = tokenizers.from_directory(directories[family]), auto(directories[family])
    assert ours.eot_text == end and ours.eot == theirs.convert_tokens_to_ids(end)
    assert (f"{end} ends documents" in ours.describe()["name"]) == (theirs.eos_token is None)
    if family != "chatml":  # where somebody added it, so that texts spell it
        assert ours.eot not in ours.encode(f"a {end} b{end}")
        assert len(ours.encode(f"a {end} b{end}")) > 2


def test_added_tokens_are_always_tokens_and_end_of_text_is_not(directories):
    ours, theirs = tokenizers.from_directory(directories["chatml"]), auto(directories["chatml"])
    text = "<|im_start|>user\nhi [PAD]<|im_end|>"
    assert ours.encode(text).tolist() == their_ids(theirs, text)
    assert ours.added == {"[PAD]": 500, "<|im_start|>": 501, "<|im_end|>": 502}
    assert 0 not in ours.encode("<|endoftext|>") and ours.encode("<|endoftext|>", special=True).tolist() == [0]
    assert ours.chat_template == families.CHATML == theirs.chat_template


@pytest.mark.parametrize("family", ["chatml", "sentencepiece_bpe", "llama", "bert", "prefix_space"])
def test_the_mask_of_a_conversation_is_that_of_transformers(directories, family):
    ours, theirs = tokenizers.from_directory(directories[family]), auto(directories[family])
    messages = [
        {"role": "user", "content": "Who is naïve?"},
        {"role": "assistant", "content": "東京 \U0001f600 or nobody"},
        {"role": "user", "content": "And?"},
        {"role": "assistant", "content": "It's the end"},
    ]
    options = {"tokenize": True, "return_dict": True, "return_assistant_tokens_mask": True}
    expected = theirs.apply_chat_template(messages, chat_template=families.CHATML, **options)
    text = theirs.apply_chat_template(messages, chat_template=families.CHATML, tokenize=False)
    contents = [message["content"] + "<|im_end|>" for message in messages[1::2]]
    spans = [(text.index(content), text.index(content) + len(content)) for content in contents]
    ids, is_target = ours.encode_marked(text, spans)
    assert ids.tolist() == expected["input_ids"]
    assert is_target.astype(int).tolist() == expected["assistant_masks"]


def test_the_mask_of_plain_bpe_and_of_characters(bpe_directory):
    text = "naïve 東京 \U0001f600 \U0001f600! it's <|endoftext|> over"
    ours, theirs = (make(bpe_directory(TEXT)) for make in (tokenizers.from_directory, auto))
    letters = tokenizers.CharTokenizer(sorted(set(text)))
    assert ours.kind == "bpe"
    offsets = theirs(text, return_offsets_mapping=True)["offset_mapping"]
    for span in [(0, 3), (6, 7), (7, 9), (9, 10), (12, len(text)), (0, 0)]:
        ids, is_target = ours.encode_marked(text, [span])
        assert ids.tolist() == their_ids(theirs, text)
        assert is_target.tolist() == [first < span[1] and end > span[0] for first, end in offsets]
        ids, is_target = letters.encode_marked(text, [span])
        assert letters.decode(ids[is_target]) == text[slice(*span)]


def test_a_conversation_becomes_runs_of_learned_and_other_tokens(directories):
    ours = tokenizers.from_directory(directories["chatml"])
    text = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n"
    start = text.index("yes")
    chunk = Chunk(text, is_last=True, spans=((start, len(text) - 1),))
    encoded = encode_chunks([chunk], ours, ours.eot)
    ids = np.concatenate([ids for _, ids in encoded])
    assert ids.tolist() == ours.encode(text, special=True).tolist()
    assert [run.is_target for run, _ in encoded] == [False, True, False]
    assert [run.is_last for run, _ in encoded] == [False, False, True]
    assert "".join(run.text for run, _ in encoded) == text
    assert ours.decode(encoded[1][1]) == "yes<|im_end|>"


@pytest.mark.parametrize("text", ["hi<|im_end|>\nyes<|im_end|>\n", "hi<|im_end|>yes<|im_end|>", "hi", "yes<|im_end|>"])
def test_documents_that_a_template_ended_in_its_own_way_end_where_they_do(directories, tmp_path, text):
    ours = tokenizers.from_directory(directories["chatml"])
    encoded = encode_chunks([Chunk(text, is_last=True, spans=((0, 2),))] * 3, ours, ours.eot)
    writer = BinWriter(tmp_path / "train.bin", ours.eot)
    for first in range(0, len(encoded), 2):
        writer.add(encoded[first : first + 2])
    meta = {"splits": {"train": writer.close()}, "end_of_text": ours.eot}
    size = len(ours.encode(text, special=True))
    assert datasets.Dataset(tmp_path, meta, ours).document_ends("train").tolist() == [size, 2 * size, 3 * size]
    assert (tmp_path / "train_documents.bin").exists() == (text != "yes<|im_end|>")


@pytest.mark.parametrize("family", [family.__name__ for family in FAMILIES])
def test_prepared_documents_have_the_ids_of_the_whole(directories, family, tmp_path):
    theirs = auto(directories[family])
    texts = [f"{number} {TEXT[3000 * number :][:2000]} naïve <|user|> covid19" for number in range(8)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    options = TokenizeOptions(group_characters=300)
    data = prepare([tmp_path / "a.jsonl"], tmp_path / "data", directories[family], 0.25, options=options)
    found = set()
    for split in ("train", "val"):
        ids, ends = np.fromfile(data.bin(split), "<u2"), data.document_ends(split)
        documents = [part.tolist() for part in np.split(ids, ends)[:-1]]
        assert all(document[-1] == data.tokenizer.eot for document in documents)
        found |= {tuple(document[:-1]) for document in documents}
        whole = [chunk.text for chunk in documents_of_bin(data, split, data.tokenizer)]
        assert whole == [theirs.decode(document[:-1]) for document in documents]
        for read in (documents_of_bin, bin_reader.documents_of_bin):
            assert [chunk.text for chunk in read(data, split, data.tokenizer)] == whole
            assert "".join(chunk.text for chunk in read(data, split, data.tokenizer, 50)) == "".join(whole)
    assert found == {tuple(their_ids(theirs, text)) for text in texts}


def test_a_text_between_added_tokens_can_be_cut_unless_one_lies_across(directories):
    assert not tokenizers.from_directory(directories["chatml"]).needs_whole
    for family in ("added_words", "prefix_space", "lower_case", "gpt4", "unigram", "bert", "words"):
        assert tokenizers.from_directory(directories[family]).needs_whole, family
    base = train_tokenizer([TEXT], 300)
    assert not with_added_tokens(base, ["<|a|>", "new.", "\u00abb"]).needs_whole
    assert with_added_tokens(base, ["<:a>"]).needs_whole
    assert with_added_tokens(base, ["new york"]).needs_whole


def test_text_beyond_a_piece_is_cut_where_that_changes_nothing(directories):
    """A tokenizer that puts a space before each text takes a document of any length whole."""
    assert tokenizers.from_directory(directories["llama"]).piece_size(100) > 1 << 40
    for family in ("unigram", "bert", "gpt4", "digits"):
        tokenizer = tokenizers.from_directory(directories[family])
        assert 1 << 20 < tokenizer.piece_size(100) < 1 << 30
        parts = cut([Chunk(TEXT, is_last=True)], 500, pattern=tokenizer.cut_pattern)
        pieces = [tokenizer.encode(chunk.text) for chunk in parts]
        assert len(pieces) > 20
        assert np.concatenate(pieces).tolist() == tokenizer.encode(TEXT).tolist()


def test_samples_go_on_with_a_space(directories):
    for family in ("llama", "unigram", "sentencepiece_bpe", "word_piece"):
        tokenizer = tokenizers.from_directory(directories[family])
        ids = tokenizer.encode("the name", special=True)
        assert b"".join(tokenizer.decode_bytes([i]) for i in ids) == b" the name"
        assert sum(map(len, (tokenizer.token_bytes[i] for i in ids))) == len(" the name")
        assert tokenizer.token_bytes[tokenizer.eot] == b""
    llama = tokenizers.from_directory(directories["llama"])
    assert b"".join(llama.decode_bytes([i]) for i in llama.encode("東")) == " 東".encode()


def test_lone_surrogates_become_the_replacement_character(directories):
    tokenizer = tokenizers.from_directory(directories["digits"])
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"
    assert tokenizer.encode_marked("a\ud800b", [(1, 2)])[1].any()


def test_unknown_words_without_a_token_for_them_are_named(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    backend = Tokenizer(models.WordLevel({"the": 0, "king": 1, "</s>": 2}))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    families.wrap(tmp_path, backend, eos_token="</s>")
    tokenizer = tokenizers.from_directory(tmp_path)
    assert tokenizer.encode("king the").tolist() == [1, 0]
    with pytest.raises(UsageError, match="'queen' not in this vocabulary of 3 ids"):
        tokenizer.encode("the queen the king")
    (tmp_path / "a.txt").write_text("the queen " * 20)
    with pytest.raises(UsageError, match="'queen'"):
        prepare([tmp_path / "a.txt"], tmp_path / "data", tmp_path)
    assert not (tmp_path / "data").exists()


def test_a_pattern_that_takes_too_long_is_one_line(tmp_path, command):
    """The library gives up such a pattern with a panic, which is no Exception."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    backend = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1, "</s>": 2}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("(a+)+$"), "isolated")
    families.wrap(tmp_path / "tokens", backend, eos_token="</s>", unk_token="[UNK]")
    (tmp_path / "a.txt").write_text("a" * 60 + "b" + " a" * 400)
    code, _, error = command("prepare", str(tmp_path / "a.txt"), f"--tokenizer={tmp_path / 'tokens'}", "--out_dir=data")
    assert code == 2 and "cannot encode this text: Onig: Regex search error" in error, error


def test_files_without_tokenizer_json(directories, tmp_path, bpe_directory):
    from transformers import GPT2Tokenizer

    plain = bpe_directory(TEXT)
    saved = json.loads((plain / "tokenizer.json").read_text())["model"]
    merges = ["#version: 0.2", *map(" ".join, saved["merges"])]
    for name, (vocab, rules), ending in [
        ("usual", ("vocab.json", "merges.txt"), "\r\n"),
        ("openai", ("encoder.json", "vocab.bpe"), "\n"),
    ]:
        directory = tmp_path / name
        directory.mkdir()
        (directory / vocab).write_text(json.dumps(saved["vocab"]))
        (directory / rules).write_bytes(ending.join(merges).encode() + ending.encode())
        found, (theirs) = tokenizers.from_directory(directory), auto(plain)
        assert found.kind == "bpe" and found.eot_text == "<|endoftext|>"
        assert all(found.encode(text, special=True).tolist() == their_ids(theirs, text) for text in hard_texts())
        (tmp_path / f"{name} saved").mkdir()
        found.save(tmp_path / f"{name} saved")
        assert isinstance(auto(tmp_path / f"{name} saved"), GPT2Tokenizer)
    assert "vocab.txt" in tokenizers.from_directory(directories["bert"]).files


def test_a_sentencepiece_model_alone_is_refused_with_the_way_out(tmp_path):
    (tmp_path / "spiece.model").write_bytes(b"\n\x0e\n\x05<unk>")
    with pytest.raises(UsageError, match=r"SentencePiece model alone needs .*tokenizer\.json"):
        tokenizers.from_directory(tmp_path)


@pytest.mark.heavy
def test_ids_beyond_16_bits_are_prepared_trained_and_sampled(directories, tmp_path, command):
    rows = [f"w{number} w{65_600 + number} w{69_999 - number}" for number in range(60)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    data = prepare([tmp_path / "a.jsonl"], tmp_path / "data", directories["large"])
    assert data.dtype == np.dtype("<u4") and data.meta["dtype"] == "uint32"
    theirs = auto(directories["large"])
    ids = np.concatenate([np.fromfile(data.bin(split), "<u4") for split in ("train", "val")])
    assert ids.max() == 70_001 and data.num_tokens("train") + data.num_tokens("val") == len(ids)
    documents = {tuple(part) for part in np.split(ids, np.flatnonzero(ids == 70_001) + 1)[:-1]}
    assert documents == {(*their_ids(theirs, row), 70_001) for row in rows}
    texts = {chunk.text for split in ("train", "val") for chunk in documents_of_bin(data, split, data.tokenizer, 64)}
    assert texts == set(rows)
    with pytest.raises(UsageError, match=r"token 6\d,\d+ at offset"):
        datasets.check_ids(data, "train", datasets.scan(data, "train"), 60_000, "m")
    shape = ["--n_layer=1", "--n_head=1", "--n_embd=4", "--block_size=16", "--batch_size=2", "--max_iters=2"]
    flags = ["--init_from=scratch", "--dataset=data", "--gradient_accumulation_steps=1", "--device=cpu", *shape]
    for isolated in ("true", "false"):
        code, _, err = command("train", *flags, f"--isolate_documents={isolated}", f"--out_dir=out-{isolated}")
        assert code == 0, err
    sampled = ["--start=w66000 w1", "--num_samples=1", "--max_new_tokens=4", "--max_copy=2"]
    code, out, err = command("sample", "--out_dir=out-true", *sampled)
    assert code == 0 and "w66000 w1 w" in out, err
    (tmp_path / "data" / "train.bin").write_bytes((tmp_path / "data" / "train.bin").read_bytes()[:-2])
    with pytest.raises(UsageError, match="not a whole number of 32-bit tokens"):
        datasets.load(tmp_path / "data")


def test_a_tokenizer_is_trained_on_the_documents_of_train(tmp_path, command):
    rows = [f"{number} {TEXT[700 * number :][:600]}" for number in range(40)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    flags = ["--tokenizer=train:600", "--val_fraction=0.5", "--doctor=false"]
    for name in ("one", "two"):
        code, _, err = command("prepare", "a.jsonl", f"--out_dir={name}", *flags)
        assert code == 0, err
    one, two = datasets.load("one"), datasets.load("two")
    assert one.meta == two.meta and one.tokenizer.kind == "bpe" and one.tokenizer.vocab_size == 600
    assert one.tokenizer.eot == 599
    trained = [chunk.text for chunk in documents_of_bin(one, "train", one.tokenizer)]
    assert train_tokenizer(trained, 600).fingerprint == one.tokenizer.fingerprint
    assert train_tokenizer(rows, 600).fingerprint != one.tokenizer.fingerprint
    theirs = auto("one")
    assert all(one.tokenizer.encode(text, special=True).tolist() == their_ids(theirs, text) for text in hard_texts())
    code, _, err = command("prepare", "a.jsonl", "--out_dir=three", "--tokenizer=train:99")
    assert code == 2 and "from 257" in err


def test_added_tokens_get_the_next_ids_and_travel(directories, tmp_path, bpe_directory, command):
    plain, names = bpe_directory(TEXT, vocab_size=500), ["<|user|>", "<|bot|>"]
    (tmp_path / "a.txt").write_text("<|user|>hello<|bot|>world " * 50)
    flags = [f"--tokenizer={plain}", f"--add_tokens={', '.join(names)}", "--doctor=false"]
    code, _, err = command("prepare", "a.txt", "--out_dir=data", *flags)
    assert code == 0, err
    data, base, theirs = datasets.load("data"), tokenizers.from_directory(plain), auto(plain)
    assert data.tokenizer.added == {"<|user|>": 500, "<|bot|>": 501}
    theirs.add_tokens(names, special_tokens=True)
    for text in [*hard_texts(), "<|user|>hello<|bot|>world "]:
        assert (
            data.tokenizer.encode(text, special=True).tolist()
            == their_ids(theirs, text)
            == their_ids(auto("data"), text)
        )
    assert data.tokenizer.extends(base) and not base.extends(data.tokenizer)
    assert data.tokenizer.base_fingerprint == base.fingerprint != data.tokenizer.fingerprint
    again = with_added_tokens(data.tokenizer, ["<|bot|>", "<|tool|>"])
    assert again.added == {"<|user|>": 500, "<|bot|>": 501, "<|tool|>": 502} and again.extends(data.tokenizer)
    for family in ("bert", "unigram", "chatml", "letters"):
        source = tokenizers.from_directory(directories[family])
        more = with_added_tokens(source, names)
        assert more.extends(source) and more.added.items() >= {"<|bot|>": source.vocab_size + 1}.items()
        assert more.eot == source.eot and more.chat_template == source.chat_template
    with pytest.raises(UsageError, match="characters"):
        with_added_tokens(tokenizers.CharTokenizer("abc"), names)


def test_other_tokenizers_do_not_pass_for_each_other(directories):
    found = [tokenizers.from_directory(directory) for directory in directories.values()]
    bert, word_piece = (tokenizers.from_directory(directories[name]) for name in ("bert", "word_piece"))
    assert bert.fingerprint == word_piece.fingerprint  # the same vocabulary in two forms
    assert len({tokenizer.fingerprint for tokenizer in found}) == len(found) - 1
    assert sum(one.extends(other) for one in found for other in found) < 3 * len(found)


@pytest.mark.parametrize("family", [family.__name__ for family in FAMILIES])
def test_what_a_tokenizer_does_not_keep_is_said(directories, family, tmp_path):
    theirs = auto(directories[family])
    texts = [f"{TEXT[1000 * number :][:900]} The 東 naïve" for number in range(9)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    data = prepare([tmp_path / "a.jsonl"], tmp_path / "data", directories[family])
    warnings = [line for line in data.meta["read"] if line.startswith("warning: ")]
    unknown = theirs.unk_token_id if "unk" in str(theirs.backend_tokenizer.model.__getstate__()) else None
    count = sum(their_ids(theirs, text).count(unknown) for text in texts) if unknown is not None else 0
    assert any(line.startswith(f"warning: {count:,} of ") for line in warnings) == bool(count)
    parts = [part for text in texts for part in (text, *text.split()) if unknown not in their_ids(theirs, part)]
    is_lossy = any(theirs.decode(their_ids(theirs, part)).strip(" ") != part.strip(" ") for part in parts)
    assert any("does not keep a text" in line for line in warnings) == is_lossy


def gaps(directory):
    """Words whose ids are 0, 3, 5, 7, 9 ..."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    ids = {word: 2 * number + 5 for number, word in enumerate(sorted(set(TEXT.split())))}
    backend = Tokenizer(models.WordLevel({**ids, "[UNK]": 0, "[EOS]": 3}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    families.wrap(directory, backend, eos_token="[EOS]", unk_token="[UNK]")


def merged_gaps(directory):
    """Byte-level BPE with a gap among the ids of its merges."""
    from tokenizers import Tokenizer

    saved = json.loads(families.byte_level().to_str())
    saved["model"]["vocab"] = {token: i + 77 * (i >= 300) for token, i in saved["model"]["vocab"].items()}
    families.wrap(directory, Tokenizer.from_str(json.dumps(saved)), eos_token="<|endoftext|>")


@pytest.mark.parametrize("make", [gaps, merged_gaps])
def test_a_vocabulary_with_gaps_goes_all_the_way(make, tmp_path, command, monkeypatch):
    make(tmp_path / "tokens")
    theirs, rows = auto(tmp_path / "tokens"), [TEXT[900 * number :][:800] for number in range(9)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    data = prepare([tmp_path / "a.jsonl"], tmp_path / "data", tmp_path / "tokens")
    assert data.vocab_size == max(theirs.get_vocab().values()) + 1 > len(theirs)
    shape = ["--n_layer=1", "--n_head=1", "--n_embd=4", "--block_size=16", "--batch_size=2", "--max_iters=2"]
    flags = ["--init_from=scratch", "--dataset=data", "--gradient_accumulation_steps=1", "--device=cpu", *shape]
    assert command("train", *flags)[0] == 0
    code, _, error = command("export", "--out_dir=out", "--to=exported")
    assert code == 0, error
    assert [their_ids(auto("exported"), row) for row in rows] == [their_ids(theirs, row) for row in rows]
    code, out, error = command("sample", "--out_dir=out", "--num_samples=1", "--max_new_tokens=40", "--start=the")
    assert code == 0, error  # of 40 ids half are in no vocabulary


def test_a_text_of_which_nothing_is_in_the_vocabulary_is_refused(tmp_path):
    gaps(tmp_path / "tokens")
    (tmp_path / "a.txt").write_text("東京 は 日本 " * 90)
    with pytest.raises(UsageError, match=r"each token of the text is \[UNK\]"):
        prepare([tmp_path / "a.txt"], tmp_path / "data", tmp_path / "tokens")
    assert not (tmp_path / "data").exists()


def remarks_on(directory, rows, tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    data = prepare([tmp_path / "a.jsonl"], tmp_path / "data", directory)
    return data, [line for line in data.meta["read"] if line.startswith("warning: ")]


def words_that_end(directory):
    """Words, with one token for the unknown and for the end."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    backend = Tokenizer(models.WordLevel({"<e>": 0, "river": 1, "garden": 2}, unk_token="<e>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    families.wrap(directory, backend, eos_token="<e>", unk_token="<e>")


@pytest.mark.parametrize(("word", "count"), [("river", 0), ("東京", 3)])
def test_the_end_of_documents_is_not_unknown(word, count, tmp_path, monkeypatch):
    monkeypatch.setattr("finetune.data.lossy.SLICE", 4)
    words_that_end(tmp_path / "tokens")
    rows = ["garden river"] * 9 + [f"garden {word}"] * 3
    data, warnings = remarks_on(tmp_path / "tokens", rows, tmp_path)
    total = sum(their_ids(auto(tmp_path / "tokens"), row).count(0) for row in rows)
    assert total == count and len(warnings) == bool(count)
    assert not count or warnings[0].startswith("warning: 3 of 36 tokens (8.3%) are <e>")


def test_a_document_of_unknown_words_alone_is_refused_if_they_end_it_too(tmp_path):
    words_that_end(tmp_path / "tokens")
    with pytest.raises(UsageError, match="each token of the text is <e>"):
        remarks_on(tmp_path / "tokens", ["東京 日本"] * 9, tmp_path)


def test_bytes_have_nothing_unknown(tmp_path):
    from tokenizers import pre_tokenizers

    backend = families.bpe(pre_tokenizers.ByteLevel(use_regex=False), ["<|endoftext|>"], unk_token="<|endoftext|>")
    families.wrap(tmp_path / "tokens", backend, eos_token="<|endoftext|>", unk_token="<|endoftext|>")
    assert remarks_on(tmp_path / "tokens", ["<|endoftext|> ends, 東京", "naïve"] * 5, tmp_path)[1] == []


def test_no_loss_is_said_of_the_name_of_a_token_that_stays_text(tmp_path):
    from tokenizers import AddedToken, pre_tokenizers

    end = AddedToken("<|endoftext|>", lstrip=True, special=True)
    steps = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    families.wrap(tmp_path / "tokens", families.bpe(steps, [end]), eos_token=end)
    data, warnings = remarks_on(tmp_path / "tokens", ["the river <|endoftext|> ends it"] * 9, tmp_path)
    [document, *_] = documents_of_bin(data, "train", data.tokenizer)
    assert document.text == "the river <|endoftext|> ends it" and warnings == []


def test_spaces_that_decoding_moves_are_no_loss(directories, tmp_path):
    assert remarks_on(directories["word_piece"], ["the king , said ."] * 9, tmp_path)[1] == []


def test_a_text_that_is_no_token_names_the_tokenizer(command):
    from tokenizers import Tokenizer, models

    theirs = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    Path("ab").mkdir()
    theirs.save("ab/tokenizer.json")
    Path("a.jsonl").write_text("".join(json.dumps({"text": f"дождь {i}"}) + "\n" for i in range(30)))
    for policy in ("split", "drop"):
        code, _, error = command("prepare", "a.jsonl", "--tokenizer=ab", "--out_dir=d", f"--overflow={policy}")
        wanted = "train.bin would be empty: the tokenizer BPE of 3 ids has no token for its text; give another, such as"
        assert code == 2 and error == f"{wanted} --tokenizer=gpt2\n"
