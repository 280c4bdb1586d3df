"""The prose of README and docs: short sentences, one spelling of a term; for whom a page is, and what is next."""

import re
import statistics
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# lists of facts, in the form of their kind
LISTS = {"docs/CHANGELOG.md", "docs/CONTRIBUTING.md", "docs/configuration-reference.md", "docs/log.md"}
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in [ROOT / "README.md", ROOT / "recipes/README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    if "benchmarks" not in path.parts
}
WORDS = 14  # in a sentence, on average
LONGEST = 45
LINES = 200  # of a page
SPELLINGS = {  # what is not written: what is
    r"data sets?": "dataset",
    r"fine-tun\w+": "finetune",
    r"tokenis\w+": "tokenizer",
    r"behavior": "behaviour",
    r"colors?": "colour",
    r"micro[ b]?batch\w*": "micro-batch",
    r"hyper-parameters?": "hyperparameter",
    r"Huggingface|hugging face": "Hugging Face",
    r"Tensorboard": "TensorBoard",
    r"early-stopping": "early stopping",
    r"check-points?": "checkpoint",
    r"read-?me": "README",
}
# what had to be read twice, before it was said in the field's words
TWICE = (
    "numbers that are none",
    "is no number",
    "in words of",
    "speaks with",
    "model speaks",
    "nobody has looked",
    "asked for its numbers",
    "left to you",
    "waits? for an answer",
    "ran away",
    "is told by",
    "as far as it goes",
    "for whoever",
    "taken up again",
    "the house",
)


def sentences(page):
    """The sentences outside of code, tables, headings and folded lists; a code span or a link is a word."""
    text = re.sub(r"```.*?```|<details>.*?</details>|<!--.*?-->|^ {4}.*$", "", page, flags=re.S | re.M)
    text = re.sub(r"^\|.*$", "", text, flags=re.M)
    text = re.sub(r"`[^`]*`(\s*(->|,|and|or)\s*`[^`]*`)*", "code", re.sub(r"\]\([^)]*\)", "]", text))
    for paragraph in re.split(r"\n\s*\n|\n\s*[-*] |\n\d+\. ", text):
        if not paragraph.lstrip().startswith(("#", "More: ", "Next: ")):
            yield from (
                " ".join(part.split()) for part in re.split(r"(?<=[.!?:;])\)?\**\s+", paragraph) if part.strip()
            )


@pytest.mark.parametrize("name", sorted(set(PAGES) - LISTS))
def test_sentences_are_short(name):
    found = list(sentences(PAGES[name]))
    lengths = [len(sentence.split()) for sentence in found if len(sentence.split()) > 2]
    assert statistics.mean(lengths) <= WORDS
    assert not [sentence for sentence in found if len(sentence.split()) > LONGEST]


@pytest.mark.parametrize("name", PAGES)
def test_words_are_those_of_the_field(name):
    text = re.sub(r"`[^`\n]*`|```.*?```|\]\([^)]*\)", "", PAGES[name], flags=re.S)
    for wrong, right in SPELLINGS.items():
        found = re.search(rf"(?<![\w/.-]){wrong}(?![\w/])", text)
        assert not found, f"{name}: {found[0]}: write {right}"
    for phrase in TWICE:
        assert not re.search(phrase, text), f"{name}: {phrase}"


@pytest.mark.parametrize("name", sorted(name for name in set(PAGES) - LISTS if name.startswith("docs/")))
def test_a_page_says_for_whom_and_what_next(name):
    lines = PAGES[name].rstrip().splitlines()
    assert lines[2].startswith("For ") and lines[-1].startswith("Next: ")
    assert len(lines) <= LINES


def test_the_readme_begins_with_what_to_do():
    above = PAGES["README.md"].partition("## What is where")[0].splitlines()
    assert len(above) <= 150
