"""The prose of README, docs, --help and messages: short sentences, one spelling of a term; for whom a page is, and what
is next."""

import ast
import importlib
import re
import statistics
from pathlib import Path

import pytest

from finetune.config.recipe import Recipe
from finetune.config.verbs import VERBS

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
    "shall",
    "for ever",
    "by heart",
    "gravest",
    "goes on with",
    "(written|comes back|decided) otherwise",
    "is no single",
    "stands so",
    "in the place of",
    "at all events",
    "of its kind",
    "as it is meant to",
)
SHORT_MESSAGE = 9  # words of a sentence of a message, on average


def sentences(page):
    """The sentences outside of code, tables, headings and folded lists; a code span or a link is a word."""
    text = re.sub(r"```.*?```|<details>.*?</details>|<!--.*?-->|^ {4}.*$", "", page, flags=re.S | re.M)
    text = re.sub(r"^\|.*$", "", text, flags=re.M)
    text = re.sub(r"`[^`]*`(\s*(->|,|and|or)\s*`[^`]*`)*", "code", re.sub(r"\]\([^)]*\)", "]", text))
    for paragraph in re.split(r"\n\s*\n|\n\s*[-*] |\n\d+\. ", text):
        if not paragraph.lstrip().startswith(("#", "More: ", "Next: ")):
            yield from (
                " ".join(part.split()) for part in re.split(r"(?<=[.!?:;])\)?\**\s+|\s->\s", paragraph) if part.strip()
            )


@pytest.mark.parametrize("name", sorted(set(PAGES) - LISTS))
def test_sentences_are_short(name):
    found = list(sentences(PAGES[name]))
    lengths = [len(sentence.split()) for sentence in found if len(sentence.split()) > 2]
    assert statistics.mean(lengths) <= WORDS
    assert not [sentence for sentence in found if len(sentence.split()) > LONGEST]


def wrong_words(text):
    """What is spelled in another way, or had to be read twice."""
    for wrong, right in SPELLINGS.items():
        if found := re.search(rf"(?<![\w/.-]){wrong}(?![\w/])", text):
            yield f"{found[0]}: write {right}"
    for phrase in TWICE:
        if found := re.search(rf"\b{phrase}\b", text):
            yield found[0]


@pytest.mark.parametrize("name", PAGES)
def test_words_are_those_of_the_field(name):
    text = re.sub(r"`[^`\n]*`|```.*?```|\]\([^)]*\)", "", PAGES[name], flags=re.S)
    assert not list(wrong_words(text))
    if name not in LISTS:
        commands = PAGES[name].partition("## What is where")[0]
        assert not re.search(rf"(?<!-m )`finetune\.({'|'.join(VERBS)})`", commands), "write `finetune VERB`"


def spoken(node):
    """The text of a literal, with X for a value in it; "" of another node."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "X" for part in node.values)
    return ""


def texts_in(node):
    """The literals of four words and more below a node, without docstrings."""
    if text := spoken(node):
        if len(text.split()) >= 4 and not re.search(r"[{}]{2}|\$|</|def |import ", text):
            yield node.lineno, text
        return
    body = list(ast.iter_child_nodes(node))
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
        body.remove(node.body[0])
    for child in body:
        yield from texts_in(child)


@pytest.fixture(scope="module")
def messages():
    """[(place, text)] of all that the code says."""
    return [
        (f"{path.relative_to(ROOT)}:{line}", text)
        for path in sorted((ROOT / "finetune").rglob("*.py"))
        for line, text in texts_in(ast.parse(path.read_text(encoding="utf-8")))
    ]


def lengths(texts):
    """Words of each sentence; a part between semicolons is one, and so is what stands after a colon."""
    parts = (part for text in texts for part in re.split(r"[.!?:;](?:\s+|$)|\n", text))
    return [len(part.split()) for part in parts if len(part.split()) > 1]


def test_messages_are_short_and_in_the_words_of_the_field(messages):
    assert len(messages) > 1000
    found = [f"{place}: {wrong}" for place, text in messages for wrong in wrong_words(text)]
    assert not found
    assert statistics.mean(lengths(text for _, text in messages)) <= SHORT_MESSAGE
    assert not [(place, text) for place, text in messages if max(lengths([text]), default=0) > LONGEST]


@pytest.mark.parametrize("pattern", ["recipes/**/*.yaml", "skypilot.yaml", "finetune/**/*.j2", "notebooks/*.ipynb"])
def test_recipes_and_templates_are_in_the_words_of_the_field(pattern):
    paths = sorted(ROOT.glob(pattern))
    assert paths
    for path in paths:
        text = path.read_text(encoding="utf-8")
        comments = (
            re.findall(r"# (.*)", text) if path.suffix == ".yaml" else re.findall(r">([^<>{}]+)<|\"([^\"]*)\"", text)
        )
        words = "\n".join(part if isinstance(part, str) else "".join(part) for part in comments)
        assert not list(wrong_words(words)), path.name


@pytest.mark.parametrize("verb", VERBS)
def test_help_is_short_and_in_the_words_of_the_field(verb):
    module = importlib.import_module(f"finetune.{verb}")
    fields = {**module.Options.__dataclass_fields__, **(Recipe.__dataclass_fields__ if verb == "train" else {})}
    helps = {name: field.metadata["help"] for name, field in fields.items() if "help" in field.metadata}
    assert helps
    for name, text in {**helps, "usage": module.USAGE}.items():
        assert not list(wrong_words(text)), name
        assert name == "usage" or text.endswith("...") or not text.endswith("."), f"{name}: a phrase, not a sentence"
    prose = module.USAGE.partition("\n\n")[2]
    assert prose and statistics.mean(lengths([" ".join(prose.split())])) <= WORDS
    assert max(lengths(helps.values())) <= 30


@pytest.mark.parametrize("name", sorted(name for name in set(PAGES) - LISTS if name.startswith("docs/")))
def test_a_page_says_for_whom_and_what_next(name):
    lines = PAGES[name].rstrip().splitlines()
    assert lines[2].startswith("For ") and lines[-1].startswith("Next: ")
    assert len(lines) <= LINES


def test_the_readme_begins_with_what_to_do():
    above = PAGES["README.md"].partition("## What is where")[0].splitlines()
    assert len(above) <= 150
