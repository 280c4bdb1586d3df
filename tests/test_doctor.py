"""The doctor finds every planted fault, counts it exactly, mends it, and has nothing to say of a clean corpus."""

import itertools
import json
import random
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view

from finetune.common.errors import UsageError
from finetune.data import bin_writer
from finetune.data import dataset as datasets
from finetune.data import tokenizer as tokenizers
from finetune.data.documents import Chunk
from finetune.tools.doctor import batches, cleaning, near_duplicates, quality
from finetune.tools.doctor.bin_reader import documents_of_bin
from finetune.tools.doctor.characters import characters_of
from finetune.tools.doctor.digests import Digests
from finetune.tools.doctor.near_duplicates import Words, make_sketches
from finetune.tools.doctor.report import page, report
from finetune.tools.doctor.words import split_words, word_hashes

CLEAN = dict.fromkeys(quality.KINDS, 0)


def texts(count, rng, words=100):
    """Documents of random words in a few lines; no two have much in common."""
    dictionary = ["".join(rng.choice("abcdefghijklmnoprstuvwz") for _ in range(rng.randint(2, 9))) for _ in range(3000)]
    lines = lambda: "\n".join(" ".join(rng.choices(dictionary, k=words // 5)).capitalize() + "." for _ in range(5))  # noqa: E731
    return [lines() for _ in range(count)]


def changed(text, rng, words=3):
    """The text with some words, next to each other, exchanged."""
    found = text.split(" ")
    at = rng.randrange(len(found) - words)
    return " ".join([*found[:at], *(f"other{n}" for n in range(words)), *found[at + words :]])


def planted():
    """(corpus with faults, what the doctor must find, the corpus without them)"""
    rng = random.Random(0)
    sound = texts(270, rng)
    train, val = sound[:240], sound[240:]
    faulty = list(train)
    for document, wrong in enumerate(["café", "naïve", "it’s", "“so”", "Zürich — here", "5 €", "déjà vu"]):
        faulty[document] += f"\nThey said {wrong} and went away"
        train[document] = faulty[document]
        faulty[document] = faulty[document].encode().decode("cp1252", "replace").replace("\ufffd", "\x9d")
    for document in (20, 21, 22):
        first, rest = train[document].split("\n", 1)
        faulty[document] = f"{first[:5]}\0{first[5:]}\n{rest}"
    faulty[30] = faulty[30][:50] + "\ufeff" + faulty[30][50:]
    faulty[31] = faulty[31].replace("\n", "\r\n")
    faulty[32] = "\x1b[1m" + faulty[32]
    train[32] = "[1m" + train[32]
    exact = [train[n] for n in range(50, 60)]
    near = [changed(train[n], rng) for n in range(60, 70)]
    leaks = [*val[:3], changed(val[3], rng), changed(val[4], rng)]
    faulty += [*exact, *near, *leaks, "", " \n"]
    counts = {
        "empty": 2,
        "exact_duplicates": 10,
        "near_duplicates": 10,
        "leaks": 5,
        "mojibake": 7,
        "nul": 3,
        "bom": 1,
        "crlf": 4,
        "control": 1,
    }
    return {"train": faulty, "val": val}, CLEAN | counts, {"train": train, "val": val}


def chunked(splits):
    """The splits with each text as a Chunk of its own."""
    return {
        split: (each if isinstance(each, Chunk) else Chunk(each, is_last=True) for each in documents)
        for split, documents in splits.items()
    }


def examine(splits, *options, **named):
    return quality.examine(chunked(splits), *options, **named)


def counts(splits, tokenizer=None):
    facts = examine(splits, tokenizer)
    assert json.loads(json.dumps(facts)) == facts
    assert len(report(facts).splitlines()) <= 40
    return {kind: finding["count"] for kind, finding in facts["findings"].items()}


def test_planted_faults_are_counted_exactly():
    corpus, expected, _ = planted()
    assert counts(corpus) == expected


def test_a_clean_corpus_raises_nothing():
    _, _, clean = planted()
    assert counts(clean) == CLEAN
    assert "nothing wrong" in report(examine(clean))


def test_cleaning_restores_the_corpus_from_before():
    corpus, _, clean = planted()
    kept = {"train": [], "val": []}
    for document in cleaning.clean(chunked(corpus), quality.FIXES):
        if not document.removed:
            kept[document.split].append(document.text)
    assert kept == clean


@pytest.mark.parametrize(
    "fix", [fixes for size in (1, 2, 3) for fixes in itertools.combinations(quality.FIXES, size)], ids=",".join
)
def test_each_fix_mends_its_own_faults_and_no_others(fix):
    corpus, expected, _ = planted()
    kept = {"train": [], "val": []}
    for document in cleaning.clean(chunked(corpus), fix):
        if not document.removed:
            kept[document.split].append(document.text)
    assert counts(kept) == {kind: 0 if quality.KINDS[kind][1] in fix else count for kind, count in expected.items()}


def jaccard(one, other):
    one, other = (
        {tuple(words[i : i + 5]) for i in range(len(words) - 4)}
        for words in (one.lower().split(), other.lower().split())
    )
    return len(one & other) / len(one | other)


def test_near_duplicates_are_those_of_a_search_over_all_pairs():
    rng = random.Random(1)
    corpus = texts(40, rng)
    corpus += [
        changed(text, rng, words) for text in corpus[:30] for words in (1, 4, 5, 6, 7, 8, 9, 12)
    ]  # on both sides of 0.8
    rng.shuffle(corpus)
    kept, expected = [], 0
    for text in corpus:
        if any(jaccard(text, other) >= 0.8 for other in kept):
            expected += 1
        else:
            kept.append(text)
    assert 50 < expected < 200
    assert counts({"train": corpus}) == CLEAN | {"near_duplicates": expected}


@pytest.mark.parametrize("similarity", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("size", [12, 300, 5000])
def test_signatures_agree_as_often_as_the_sets_are_similar(size, similarity):
    rng = np.random.default_rng(size)
    agreements, similarities = [], []
    for _ in range(200_000 // size if size > 12 else 4000):
        common = round(2 * size * similarity / (1 + similarity))
        values = rng.integers(0, 2**32, 2 * size - common, dtype=np.uint32)
        one, other = np.unique(values[:size]), np.unique(values[size - common :])
        agreements.append(np.mean(near_duplicates.minhash(one) == near_duplicates.minhash(other)))
        similarities.append(len(np.intersect1d(one, other)) / len(np.union1d(one, other)))
    noise = np.sqrt(similarity * (1 - similarity) / (near_duplicates.BANDS * near_duplicates.ROWS))
    assert abs(np.mean(agreements) - np.mean(similarities)) < 4 * noise / np.sqrt(len(agreements))
    assert np.std(np.subtract(agreements, similarities)) < 1.3 * noise  # as many values as they count for


def test_shingles_of_each_document_are_sorted_and_distinct():
    rng = np.random.default_rng(0)
    for words_known in (3, 50, 1 << 32):
        sizes = rng.permutation([0, 0, 1, 2, 19, 19, 20, 21, 23, 300, 1000, 1023, 1028, 1029, 5000])
        ends = np.append(0, sizes.cumsum())
        hashes = rng.integers(0, words_known, ends[-1], dtype=np.uint64).astype(np.uint32)
        sketches = make_sketches([b""] * len(sizes), Words.of(hashes), ends)
        for i, size in enumerate(sizes):
            words = hashes[ends[i] : ends[i + 1]]
            runs = sliding_window_view(words, 5 if size >= 20 else size) if size else []
            expected = {int(near_duplicates.combine(list(run[:, None]))[0]) & 0xFFFFFFFF for run in runs}
            assert sketches.shingles_of(i).tolist() == sorted(expected)


def test_signatures_take_constant_memory():
    shingles = np.arange(2_000_000, dtype=np.uint32)
    tracemalloc.start()
    try:
        near_duplicates.minhash(shingles)
        assert tracemalloc.get_traced_memory()[1] < 2 << 20
    finally:
        tracemalloc.stop()


def test_a_passage_that_many_questions_share_makes_no_duplicates():
    """Also as conversations in one Chunk, whose spans are learned."""
    rng = random.Random(3)
    passage, *answers = texts(13, rng)
    short = ["Yes.", "No.", "At noon."]
    rows = [(f"{passage}\nWhat is {i}?", answer) for i, answer in enumerate([*answers, *short, "Yes."])]
    repeated = [(rows[0][0].upper(), changed(rows[0][1], rng)), (rows[12][0], "yes.")]
    near = (rows[1][0], changed(rows[1][1], rng, words=30))  # another answer to the same question
    chunks = [
        chunk
        for question, answer in [*rows, *repeated, near]
        for chunk in (Chunk(question, is_target=False), Chunk(answer, is_last=True, eot_after=True))
    ]
    whole = [
        Chunk(f"{one.text}: {other.text}", True, spans=((len(one.text) + 2, len(one.text) + 2 + len(other.text)),))
        for one, other in zip(chunks[::2], chunks[1::2])
    ]
    assert counts({"train": chunks}) == counts({"train": whole}) == CLEAN | {"near_duplicates": 2}
    long = [chunk._replace(text=chunk.text + " word" * batches.BATCH_CHARACTERS) for chunk in chunks[:4]]
    assert counts({"train": [*long, *long[:2]]}) == CLEAN | {"exact_duplicates": 1}


def test_a_fix_keeps_conversations_that_share_the_message_of_the_system(command, bpe_directory):
    system = {"role": "system", "content": " ".join(f"Rule {i} of the bank is rule {i % 7}." for i in range(60))}
    rows = [
        [system, {"role": "user", "content": f"What is {i}?"}, {"role": "assistant", "content": f"It is {i}."}]
        for i in [*range(30), 5]
    ]
    Path("a.jsonl").write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    code, out, error = command(
        "doctor", "a.jsonl", f"--tokenizer={bpe_directory('rules of a bank')}", "--fix=dedup", "--out_dir=clean"
    )
    kept = [json.loads(line)["messages"] for line in Path("clean/clean.jsonl").read_text().splitlines()]
    assert code == 0 and kept == rows[:30], out + error


def test_documents_of_a_template_are_not_duplicates():
    rng = random.Random(2)
    colours, things = (
        ["red", "green", "blue", "black", "white"],
        ["shirt", "lamp", "table", "bottle", "chair", "bag", "clock", "bowl"],
    )
    products = {
        f"This {colour} {thing} of {material} is item {rng.randrange(10**5)} in our shop"
        for colour in colours
        for thing in things
        for material in ("wood", "steel", "wool", "glass", "stone")
    }
    answers = [
        f"What is the capital of {country}? It is {city}."
        for country, city in [("France", "Paris"), ("Italy", "Rome"), ("Spain", "Madrid")]
    ]
    sums = [f"{a} + {b} = {a + b}" for a in range(10) for b in range(10)]
    assert len(products) == 200
    assert (
        counts(
            {
                "train": (
                    sorted(products)
                    + answers
                    + sums
                    + ["C", "C#", "C++", "東京都に行きました。", "東京都へ行きました。"]
                )
            }
        )
        == CLEAN
    )


def test_other_languages_are_not_mojibake():
    sound = [
        "À bientôt, dit l’élève : « Ça va ? » — « CAFÉ » à 5 €, Â, NÃO, ÊTRE, où êtes-vous… œuvre",
        "„Spaß“ und »Größe« kosten 3 € – Äpfel, Öl, Übermut, GROẞ, Straße… ‚so‘",
        "¿Qué? ¡Sí! São Paulo, não, avó, ação, «à»",
        "Ísland, Þór, Ærø, Škoda, Łódź, Dvořák, İstanbul, Ελλάδα, Россия «привет»",
        "Smile \U0001f600 \U0001f468\u200d\U0001f469\u200d\U0001f467 ❤️ 東京 ภาษาไทย العربية עברית 3×4 ±5° ½ ©",
    ]
    assert counts({"train": sound}) == CLEAN


def test_a_passage_of_val_inside_a_longer_document_of_train():
    rng = random.Random(3)
    train, val = texts(20, rng, 400), texts(5, rng, 400)
    for n, (size, at) in enumerate(
        [(50, 0), (50, 133), (97, 17), (49, 100), (30, 7)]
    ):  # words; the last two are too few
        passage, words = val[n].split()[at : at + size], train[n].split()
        train[n] = " ".join([*words[:111], *passage, *words[111:]])
    facts = examine({"train": train, "val": val})
    assert facts["findings"]["passages"]["count"] == 3
    assert facts["findings"]["passages"]["words"] == 50 + 50 + 97
    begins = " ".join(val[0].split()[:12])
    assert facts["findings"]["passages"]["examples"][0] == {
        "split": "train",
        "document": 1,
        "like": "val 1",
        "text": begins if len(begins) <= 60 else begins[:59] + "…",
    }
    assert sum(finding["count"] for finding in facts["findings"].values()) == 3


def test_pieces_of_a_document_are_examined_as_the_whole():
    rng = random.Random(4)
    (train,), (val,) = texts(1, rng, 20_000), texts(1, rng, 5000)
    words = train.split(" ")
    train = " ".join([*words[:500], *val.split(" ")[1000:1200], *words[500:]])
    starts = [n for n, char in enumerate(train) if char == " "][::60]  # so that the passage lies in four of them
    cut = [Chunk(train[a:b], is_last=b is None) for a, b in itertools.pairwise([0, *starts, None])]
    whole, pieces = examine({"train": [train], "val": [val]}), examine({"train": cut, "val": [val]})
    assert len(cut) > 100 and whole["findings"]["passages"]["words"] == 200
    for facts in (whole, pieces):
        assert facts["one_text"] and "one text" in report(facts)
        assert {kind: finding["count"] for kind, finding in facts["findings"].items()} == CLEAN | {"passages": 1}
    assert pieces["splits"] == whole["splits"] and pieces["findings"]["passages"]["words"] == 200


def test_a_text_that_repeats_itself_is_searched_quickly():
    facts = examine({"train": ["0 " * 100_000 + texts(1, random.Random(7))[0]], "val": ["0 " * 10_000]})
    assert facts["findings"]["passages"]["words"] == 10_000


@pytest.mark.parametrize(
    "splits",
    [{"train": []}, {"train": [""], "val": []}, {"train": [], "val": [""]}, {"train": [" \ud800"], "val": ["\n"]}],
)
def test_next_to_nothing_can_be_examined(splits):
    for tokenizer in (None, tokenizers.CharTokenizer(" \n\ud800")):
        empty = sum(not text.strip() for documents in splits.values() for text in documents)
        assert counts(splits, tokenizer) == CLEAN | {"empty": empty}


def test_lengths_and_sizes():
    facts = examine({"train": [Chunk("x" * n, is_last=True, tokens=n) for n in range(1, 2049)]})["splits"]["train"]
    assert facts["lengths"] == {"unit": "tokens", "p50": 1024, "p90": 1844, "p99": 2028, "max": 2048}
    assert facts["truncation"] == {"at": 1024, "documents": 0.5, "tokens": sum(range(1, 1025)) / sum(range(1, 2049))}
    assert facts["tokens_per_byte"] == 1


@pytest.mark.parametrize(
    "tokens, recipe, few",
    [(99_999, "small", True), (999_999, "small", False), (10**6, "medium", False), (10**7, "large", False)],
)
def test_the_recipe_is_that_of_the_size(tokens, recipe, few):
    facts = examine({"train": [Chunk("text", is_last=True, tokens=tokens)]})
    path = f"recipes/{recipe}.yaml"
    assert (Path(__file__).parents[1] / path).is_file() and path in report(facts)
    assert ("may overfit" in report(facts)) == few


def prepared(splits, directory, tokenizer):
    """A prepared directory in which end-of-text ends each document."""
    directory.mkdir()
    meta = {
        "format": datasets.FORMAT,
        "tokenizer": tokenizer.describe(),
        "vocab_size": tokenizer.vocab_size,
        "splits": {},
    }
    for split, corpus in splits.items():
        writer = bin_writer.BinWriter(directory / f"{split}.bin")
        for text in corpus:
            writer.add([(Chunk(text, is_last=True), np.append(tokenizer.encode(text), np.uint16(tokenizer.eot)))])
        meta["splits"][split] = writer.close()
    tokenizer.save(directory)
    (directory / "meta.json").write_text(json.dumps(meta))


@pytest.mark.parametrize("chunk_tokens", [100, 1 << 18])
def test_a_prepared_directory_has_the_faults_of_its_source(chunk_tokens, bpe_directory, tmp_path):
    corpus, expected, _ = planted()
    tokenizer = tokenizers.from_directory(bpe_directory("\n".join(corpus["val"])))
    prepared(corpus, tmp_path / "data", tokenizer)
    dataset = datasets.load(tmp_path / "data")
    facts = examine({split: documents_of_bin(dataset, split, tokenizer, chunk_tokens) for split in ("val", "train")})
    source = examine(corpus, tokenizer)
    assert facts["splits"] == source["splits"]
    assert {kind: finding["count"] for kind, finding in facts["findings"].items()} == expected
    if chunk_tokens > 100:  # the example of a leak is the document's first line or its last piece's
        assert facts == source


def test_fix_writes_the_clean_corpus_and_says_what_it_removed(command, bpe_directory, tmp_path):
    corpus, _, clean = planted()
    prepared(corpus, tmp_path / "d", tokenizers.from_directory(bpe_directory("\n".join(corpus["val"]))))
    code, out, error = command("doctor", "d", "--fix=dedup,leaks,encoding", "--out_dir=clean")
    assert code == 0, error
    for split in ("train", "val"):
        assert [json.loads(line)["text"] for line in Path(f"clean/{split}.jsonl").read_text().splitlines()] == clean[
            split
        ]
    removed = [json.loads(line) for line in Path("clean/removed.jsonl").read_text().splitlines()]
    assert [row["document"] for row in removed] == list(range(241, 268))
    assert removed[0] == {
        "split": "train",
        "document": 241,
        "kind": "exact_duplicates",
        "like": "train 51",
        "text": clean["train"][50],
    }
    assert sorted(path.name for path in Path("clean").iterdir()) == ["removed.jsonl", "train.jsonl", "val.jsonl"]
    assert "removed       10 documents that repeat an earlier one (train)" in out
    assert "to fix it: finetune doctor d --fix=dedup,leaks,encoding" in out
    code, _, error = command("doctor", "d", "--fix=dedup", "--out_dir=clean")
    assert code == 2 and "clean/train.jsonl: is there already" in error


def test_text_files_are_documents_and_val_can_be_another_file(command):
    rng = random.Random(5)
    train, val = texts(3, rng), texts(1, rng)
    for name, text in zip(["a", "b", "c", "d", "v"], [*train, val[0], val[0]]):
        Path(f"{name}.txt").write_text(text)
    code, out, _ = command("doctor", "a.txt", "b.txt", "c.txt", "d.txt", "--val=v.txt", "--fix=leaks", "--out_dir=x")
    assert code == 0 and "1 documents of train that val has" in out and "train 4 as val 1" in out
    assert [json.loads(line)["text"] for line in Path("x/train.jsonl").read_text().splitlines()] == train
    code, out, _ = command("doctor", "a.txt", "a.txt", "--fix=dedup", "--out_dir=y")
    assert code == 0 and [path.name for path in sorted(Path("y").iterdir())] == ["clean.jsonl", "removed.jsonl"]


def test_a_failed_fix_leaves_nothing(command, monkeypatch):
    Path("a.txt").write_text("some text")
    monkeypatch.setattr(cleaning, "clean", lambda *_: iter(lambda: (_ for _ in ()).throw(UsageError("stopped")), None))
    code, _, error = command("doctor", "a.txt", "--fix=dedup", "--out_dir=out")
    assert code == 2 and "stopped" in error and not list(Path("out").iterdir())


def test_more_documents_than_the_search_takes_are_said():
    assert examine({"train": texts(10, random.Random(6))}, max_documents=10)["limits"] == []
    facts = examine({"train": texts(11, random.Random(6))}, max_documents=10)
    assert facts["limits"] == ["near duplicates among the first 10 documents of train"]
    assert facts["limits"][0] in report(facts)


def test_other_columns_and_several_sources_to_validate_on(command):
    rows = [
        {"question": f"How much is {i} and {i}, if it is not too much to ask?", "answer": f"It is {i + i}, as always."}
        for i in range(12)
    ]
    for name, part in (("train", rows[:8] + rows[3:4]), ("one", rows[8:10]), ("two", [*rows[10:], rows[0]])):
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    columns = ["--prompt_column=question", "--completion_column=answer"]
    code, out, error = command("doctor", "train.jsonl", "--val=one.jsonl,two.jsonl", *columns)
    assert code == 0, error
    assert "1 documents that repeat an earlier one" in out and "1 documents of train that val has too" in out
    assert all(flag in out for flag in ["--val=one.jsonl,two.jsonl", *columns])  # in the command that fixes it
    code, _, error = command("doctor", "train.jsonl", columns[0])
    assert code == 2 and "--prompt_column and --completion_column go together" in error
    code, _, error = command("doctor", "train.jsonl", "--text_column=question", *columns)
    assert code == 2 and "name the columns of one of them" in error


@pytest.mark.parametrize("characters, chunks", [(300, 4096), (3000, 4096), (1 << 20, 1), (1 << 20, 7)])
def test_the_size_of_batches_changes_nothing(characters, chunks, monkeypatch):
    corpus, _, clean = planted()
    corpus["train"][100] = " ".join([corpus["train"][100], *corpus["val"][7].split()[:60]])  # a passage of val
    splits = lambda: {split: halves(documents, random.Random(9)) for split, documents in corpus.items()}  # noqa: E731
    facts = quality.examine(splits())
    assert facts["findings"]["passages"]["count"] == 1
    monkeypatch.setattr(batches, "BATCH_CHARACTERS", characters)
    monkeypatch.setattr(batches, "BATCH_CHUNKS", chunks)
    found = quality.examine(splits())
    for kind, finding in facts["findings"].items():
        assert found["findings"][kind]["count"] == finding["count"]
        places = [
            [{key: one[key] for key in one.keys() - {"text"}} for one in each["examples"]]
            for each in (finding, found["findings"][kind])
        ]
        assert places[0] == places[1]
    assert found["splits"] == facts["splits"]
    kept = [document.text for document in cleaning.clean(splits(), quality.FIXES) if not document.removed]
    assert kept == [*clean["val"], *clean["train"][:100], corpus["train"][100], *clean["train"][101:]]


def halves(documents, rng):
    """Each document in two chunks, cut before white space."""
    for text in documents:
        spaces = [n for n, char in enumerate(text) if char == " "] or [0]
        place = rng.choice(spaces)
        yield Chunk(text[:place])
        yield Chunk(text[place:], is_last=True)


def test_a_hash_is_that_of_the_word_whatever_its_case_and_its_neighbours():
    rng = random.Random(9)
    words = [
        "a",
        "ab",
        "naïve",
        "ÉTÉ",
        "été",
        "東",
        "京",
        "ไ",
        "x" * 70_000,
        "\U0001f600",
        "Straße",
        "ΑΒ",
        "αβ",
        "don't",
        ".",
    ]
    gaps = [" ", "\n", "\u3000", "\t ", "\u00a0"]
    texts = ["".join(rng.choice(words) + rng.choice(gaps) for _ in range(rng.randrange(9))) for _ in range(60)]
    characters = characters_of(texts)
    hashes, starts = word_hashes(characters)
    ends = np.searchsorted(starts, characters.ends)
    each = [word.lower() for text in texts for word in split_words(text)]
    assert len(hashes) == len(each) and ends.tolist() == np.cumsum([len(split_words(text)) for text in texts]).tolist()
    alone = {word: word_hashes(characters_of([word]))[0].tolist() for word in each}
    assert [[hash_] for hash_ in hashes.tolist()] == [alone[word] for word in each]
    assert len({hash_ for (hash_,) in alone.values()}) == len(alone)


def test_many_digests_are_found_by_their_numbers():
    rng = np.random.default_rng(0)
    digests, every = Digests(recent=10), [rng.bytes(16) for _ in range(1000)]
    digests.find([])
    for first in range(0, 900, 7):
        numbers = range(first + 1, min(first + 8, 901))
        digests.recent.update(zip(every[first : first + 7], numbers))
        assert digests.find(every).tolist() == [n if n <= numbers[-1] else 0 for n in range(1, 1001)]
    assert len(digests.runs) < 8
    half = every[0][:8] + every[1][8:]
    assert digests.find([half, half[8:] + half[:8]]).tolist() == [0, 0]


def test_tokens_of_a_large_source_are_estimated(bpe_directory, monkeypatch):
    corpus = texts(200, random.Random(10))
    tokenizer = tokenizers.from_directory(bpe_directory("\n".join(corpus[:20])))
    exact = examine({"train": corpus}, tokenizer)
    assert not exact["size"]["estimated"] and "about" not in report(exact)
    monkeypatch.setattr(quality, "COUNTED", 5000)
    monkeypatch.setattr(batches, "BATCH_CHARACTERS", 2000)
    facts = examine({"train": corpus}, tokenizer)
    assert 0.95 < facts["size"]["tokens"] / exact["size"]["tokens"] < 1.05
    assert 0.9 < facts["splits"]["train"]["lengths"]["p90"] / exact["splits"]["train"]["lengths"]["p90"] < 1.1
    assert f"about {facts['size']['tokens']:,} tokens to train on" in report(facts)
    assert "tokens, estimated" in report(facts)


def test_instruction_data_have_their_recipe_and_the_number_of_learned_tokens():
    learned = [Chunk("Q", is_target=False, tokens=30), Chunk("A", is_last=True, tokens=10)]
    facts = quality.examine({"train": learned * 100, "val": learned})
    assert facts["size"]["learned_tokens"] == 1000 and facts["size"]["tokens"] == 4000
    assert "4,000 tokens to train on, 1,000 of them learned" in report(facts)
    assert report(facts).count("recipes/instruction.yaml") == 1
    spans = Chunk("QQQA", is_last=True, tokens=40, spans=((3, 4),))
    assert quality.examine({"train": [spans] * 100})["size"]["learned_tokens"] == 1000
    assert "learned" not in report(examine({"train": [Chunk("text", is_last=True, tokens=10)]}))


def test_the_page_begins_with_the_first_documents():
    question, answer = Chunk("User:\nWhy?\x1b\n\nAssistant:\n", is_target=False), Chunk("Because. \ud800", is_last=True)
    long = [Chunk("word " * 50) for _ in range(9)] + [Chunk("end", is_last=True)]
    facts = quality.examine({"train": [question, answer, *long, Chunk("third", True), Chunk("fourth", True)]})
    assert len(facts["sample"]) == 3 and facts["sample"][0] == [[question.text, False], [answer.text, True]]
    text = "".join(text for text, _ in facts["sample"][1])
    assert text.startswith("word word") and len(text) <= 401 and facts["sample"][2] == [["third", True]]
    lines = page(facts).splitlines()
    assert lines[:6] == [
        "document 1 (> is learned):",
        "  | User:",
        "  | Why?\\x1b",
        "  | ",
        "  | Assistant:",
        "  > Because. \\ud800",
    ]
    assert page(facts).endswith(report(facts))
