"""What is wrong with a corpus, and the corpus without it.

    facts = examine({"train": documents, "val": documents}, tokenizer)
    print(report(facts))

A document is a str, or, where it is long, several Pieces. Each is read once. Memory holds hashes of them (see
similar.py), the whole of one document when it is cleaned, and never the corpus."""

import shlex
from array import array
from collections import Counter
from typing import NamedTuple

import numpy as np

from finetune.common import files
from finetune.data import documents as data_documents
from finetune.data.documents import Chunk
from finetune.runs.thresholds import FEW_TOKENS, MODELS
from finetune.tools.doctor import near_duplicates
from finetune.tools.doctor.encoding_faults import repair

BLOCK_SIZE = 1024  # GPT-2's positions
TITLES = {"gpt2": "GPT-2 small (124M)", "gpt2-medium": "GPT-2 medium (355M)", "gpt2-large": "GPT-2 large (774M)"}
BYTES_PER_TOKEN = 4  # of English with GPT-2's BPE, roughly, for a text that nobody tokenized
LONG = 1_000_000  # words from which on a document is compared by its digest alone
EXAMPLES, EXCERPT = 3, 60
# kind: what the report calls it, and which --fix mends it
KINDS = {
    "empty": ("documents without a word", "dedup"),
    "exact_duplicates": ("documents that repeat an earlier one", "dedup"),
    "near_duplicates": ("documents that nearly repeat an earlier one", "dedup"),
    "leaks": ("documents of train that val has too, or nearly", "leaks"),
    "passages": (f"passages of {near_duplicates.PASSAGE} words and more of val in train", None),
    "mojibake": ("lines of UTF-8 read as something else, like Ã©", "encoding"),
    "nul": ("lines with NUL characters", "encoding"),
    "control": ("lines with other control characters", "encoding"),
    "bom": ("lines with a byte order mark", "encoding"),
    "crlf": ("lines that end in CR or CR LF", "encoding"),
    "lost": ("lines with U+FFFD, where characters were lost", None),
}
FIXES = ("dedup", "leaks", "encoding")


def examine(splits, tokenizer=None):
    """The facts about a corpus, as a dict for JSON: the size of each split, and each kind of fault with its count and
    some examples.

    `splits` are {"train": documents, "val": documents}, or train alone. Documents are numbered from 1. Lengths are in
    tokens when there is a `tokenizer`, or the Pieces tell their tokens, else in characters."""
    facts = {"splits": {}, "findings": {kind: {"count": 0, "examples": []} for kind in KINDS}, "limits": []}
    passages = near_duplicates.Passages()
    with _Judge() as judge:
        for split in _val_first(splits):
            facts["splits"][split] = _examine_split(facts, split, splits[split], tokenizer, judge, passages)
            if judge.skipped(split):
                facts["limits"].append(
                    f"near duplicates among the first {near_duplicates.MAX_DOCUMENTS:,} documents of {split}"
                )
    if passages.skipped:
        facts["limits"].append(f"passages of the first {near_duplicates.MAX_PASSAGE_WORDS:,} words of val")
    facts["findings"]["passages"]["count"], facts["findings"]["passages"]["words"] = passages.count()
    facts["one_text"] = all(split["documents"] <= 1 for split in facts["splits"].values())
    facts["size"] = _size(facts["splits"]["train"], getattr(tokenizer, "kind", "bpe"))
    return facts


def _examine_split(facts, split, documents, tokenizer, judge, passages):
    """Add what is found in a split to `facts`; return its size."""
    lengths, sizes, document = array("Q"), Counter(), _Document()
    for piece in documents:
        piece = piece if isinstance(piece, Chunk) else Chunk(piece, ends=True)
        place = {"split": split, "document": len(lengths) + 1}
        text, faults = repair(piece.text)
        for kind, (count, line) in faults.items():
            _note(facts, kind, count, place, line)
        begins, hashes = document.words is None, document.add(text)
        if split == "val":
            passages.add(hashes, begins)
        else:
            document.look_for(passages, hashes, text)
        tokens = len(tokenizer.encode(piece.text)) if tokenizer and piece.tokens is None else piece.tokens
        document.length += len(piece.text) if tokens is None else tokens
        sizes.update(
            characters=len(piece.text), bytes=len(_utf8(piece.text)), tokens=tokens or 0, uncounted=tokens is None
        )
        if piece.ends:
            verdict = judge.verdict(split, place["document"], document)
            if verdict:
                _note(facts, verdict.pop("kind"), 1, place | verdict, text)
            for found, excerpt in document.passages if not verdict else ():
                _note(facts, "passages", 0, place | {"like": f"val {found.document}"}, excerpt)
                passages.mark(found)
            lengths.append(document.length)
            document = _Document()
    return _sizes(lengths, sizes)


class Cleaned(NamedTuple):
    """A document after cleaning. `faults` are {kind: lines} mended in it; `removed` says why it goes, as {"kind",
    "like"}, or is None."""

    split: str
    number: int
    text: str
    faults: dict
    removed: dict | None


def clean(splits, fix):
    """Yield every document as Cleaned, those of val first. `fix` are some of FIXES:

    dedup removes what repeats an earlier document of its split, exactly or nearly, or is empty; leaks removes from
    train what val has; encoding mends what `repair` can. Documents are compared as they are after the repair, also when
    it is not asked for."""
    with _Judge(fix) as judge:
        for split in _val_first(splits):
            number, parts = 1, []
            for piece in splits[split]:
                parts.append(piece.text if isinstance(piece, Chunk) else piece)
                if isinstance(piece, Chunk) and not piece.ends:
                    continue
                document, mended, faults = _Document(), [], Counter()
                for part in parts:
                    text, found = repair(part)
                    document.add(text)
                    mended.append(text)
                    faults.update({kind: count for kind, (count, _) in found.items() if KINDS[kind][1] == "encoding"})
                removed = judge.verdict(split, number, document)
                encoding = "encoding" in fix
                yield Cleaned(
                    split, number, "".join(mended if encoding else parts), dict(faults) if encoding else {}, removed
                )
                number, parts = number + 1, []


def report(facts):
    """The facts on one screen, with what to do about them. `facts["names"]`, if there, are the arguments that name the
    corpus."""
    found = {kind: finding for kind, finding in facts["findings"].items() if finding["count"]}
    lines = [*_table(facts), ""]
    if facts["one_text"]:
        lines.append("one text, so there are no documents to compare")
    for kind, finding in found.items():
        lines.append(
            f"{finding['count']:>8,} {KINDS[kind][0]}"
            + (f" ({finding['words']:,} words)" if "words" in finding else "")
        )
        first = finding["examples"][0]
        place = f"{first['split']} {first['document']}" + (f" as {first['like']}" if "like" in first else "")
        lines.append(f"{'':9}{place}: {first['text']!r}")
    if not found:
        lines.append("nothing wrong: no duplicates, nothing of val in train, no faults of encoding")
    lines += [f"searched only: {limit}" for limit in facts["limits"]]

    size = facts["size"]
    tokens = f"{'about ' if size['estimated'] else ''}{size['tokens']:,} tokens to train on"
    few = f"; fewer than {FEW_TOKENS:,} may overfit" if size["may_overfit"] else ""
    lines += ["", f"{tokens}{few}. Recommended: {size['model']}, {size['recipe']}"]
    fixes = [fix for fix in FIXES if any(KINDS[kind][1] == fix for kind in found)]
    if fixes:
        lines.append(
            f"to mend it: python -m finetune.doctor {shlex.join(facts.get('names', ['DIR']))} --fix={','.join(fixes)}"
            " --out_dir=data/clean"
        )
    if left := [KINDS[kind][0] for kind in found if not KINDS[kind][1]]:
        lines.append(f"left to you, as --fix does not mend them: {', '.join(left)}")
    return "\n".join(lines)


def _table(facts):
    names = [name for name in ("train", "val") if name in facts["splits"]]
    splits = [facts["splits"][name] for name in names]
    unit = "characters" if any(split["tokens"] is None for split in splits) else "tokens"
    rows = [("", *names), *((key, *(f"{split[key]:,}" for split in splits)) for key in ("documents", "characters"))]
    if unit == "tokens":
        rows += [("tokens", *(f"{split['tokens']:,}" for split in splits))]
        rows += [("tokens a byte", *(f"{split['tokens_per_byte']:.3f}" for split in splits))]
    if not facts["one_text"]:
        quantiles = {"p50": f"{unit}: half up to", "p90": "90% up to", "p99": "99% up to", "max": "longest"}
        rows += [(words, *(f"{split['lengths'][key]:,}" for split in splits)) for key, words in quantiles.items()]
    lines = [f"{label:24}" + "".join(f"{value:>14}" for value in values) for label, *values in rows]
    if unit == "tokens" and not facts["one_text"]:
        lost = " ".join(f"{split['truncation']['tokens']:>13.1%}" for split in splits)
        lines.append(f"{f'lost if cut at {BLOCK_SIZE:,}':24} {lost}   (of the tokens; packing loses none)")
    return lines


class _Document:
    """What is gathered of a document while its pieces are read."""

    def __init__(self):
        self.digest, self.hashes, self.words, self.length = near_duplicates.digest(), [], None, 0
        self.tail, self.passages = np.zeros(0, np.uint32), []

    def add(self, text):
        """Take in a piece; return the hashes of its words."""
        self.digest.update(_utf8(text))
        hashes = near_duplicates.words(text)
        self.words = (self.words or 0) + len(hashes)
        self.hashes = [*self.hashes, hashes] if self.words <= LONG else []
        return hashes

    def look_for(self, passages, hashes, text):
        """Note the passages that a piece shares; they may have begun in the piece before."""
        carried = np.concatenate([self.tail, hashes])
        for found in passages.find(carried):
            start = max(0, found.there - len(self.tail))
            self.passages.append((found, " ".join(near_duplicates.split(text)[start : start + 12])))
        self.tail = carried[1 - near_duplicates.PASSAGE :]

    def sketch(self):
        return near_duplicates.sketch(self.digest.digest(), np.concatenate(self.hashes) if self.hashes else None)


class _Judge:
    """Says of one document after the other whether it repeats another. What is to go is not compared with later
    ones."""

    def __init__(self, fix=FIXES):
        self.fix, self.seen = fix, {}

    def verdict(self, split, number, document):
        """{"kind", "like": "val 3"}, or None for a document that is new."""
        if split not in self.seen:
            self.seen[split] = near_duplicates.NearDuplicates()
        if not document.words:
            return {"kind": "empty"} if "dedup" in self.fix else None
        sketch = document.sketch()
        if "leaks" in self.fix and split == "train" and "val" in self.seen and (like := self.seen["val"].find(sketch)):
            return {"kind": "leaks", "like": f"val {like[1]}"}
        if "dedup" in self.fix and (like := self.seen[split].find(sketch)):
            return {"kind": f"{like[0]}_duplicates", "like": f"{split} {like[1]}"}
        self.seen[split].add(sketch, number)
        return None

    def skipped(self, split):
        return self.seen[split].skipped if split in self.seen else 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for seen in self.seen.values():
            seen.file.close()


def _val_first(splits):
    """val before train, which is compared with it; and a document that both have is to be taken from train, because a
    smaller val would tell less, and another val could not be compared with runs before."""
    return sorted(splits, key=["val", "train"].index)


def _note(facts, kind, count, place, text):
    finding = facts["findings"][kind]
    finding["count"] += count
    if len(finding["examples"]) < EXAMPLES:
        finding["examples"].append(place | {"text": _excerpt(text)})


def _excerpt(text):
    text = " ".join(text[: 4 * EXCERPT].split())
    return text if len(text) <= EXCERPT else text[: EXCERPT - 1] + "…"


def _sizes(lengths, sizes):
    lengths, tokens = (
        np.frombuffer(lengths, np.uint64).astype(np.int64),
        (None if sizes["uncounted"] else sizes["tokens"]),
    )
    quantiles = np.quantile(lengths, [0.5, 0.9, 0.99, 1], method="inverted_cdf").tolist() if len(lengths) else [0] * 4
    facts = {"documents": len(lengths), "characters": sizes["characters"], "bytes": sizes["bytes"], "tokens": tokens}
    facts["lengths"] = {
        "unit": "characters" if tokens is None else "tokens",
        **dict(zip(("p50", "p90", "p99", "max"), quantiles)),
    }
    if tokens is not None:
        lost = np.maximum(lengths - BLOCK_SIZE, 0)
        facts["tokens_per_byte"] = tokens / max(1, sizes["bytes"])
        facts["truncation"] = {
            "at": BLOCK_SIZE,
            "documents": int((lost > 0).sum()) / max(1, len(lost)),
            "tokens": int(lost.sum()) / max(1, tokens),
        }
    return facts


def _size(train, kind):
    estimated = train["tokens"] is None
    tokens = train["bytes"] // BYTES_PER_TOKEN if estimated else train["tokens"]
    model, recipe = next((TITLES[model], recipe) for limit, model, recipe in MODELS if tokens < limit)
    if kind == "char":
        model, recipe = (
            "a small GPT from scratch, as pretrained ones have no characters",
            "recipes/shakespeare_char.yaml",
        )
    return {
        "tokens": tokens,
        "estimated": estimated,
        "may_overfit": tokens < FEW_TOKENS,
        "model": model,
        "recipe": recipe,
    }


def _utf8(text):
    return text.encode("utf-8", "surrogatepass")


def examine_dataset(dataset):
    """What the doctor finds in a prepared directory; its meta.json says it too from then on."""
    facts = examine(
        {split: data_documents.documents_of_bin(dataset, split, dataset.tokenizer) for split in ("train", "val")},
        dataset.tokenizer,
    )
    dataset.meta["doctor"] = facts
    with files.replacing(dataset.directory / "meta.json") as path:
        files.write_json(path, dataset.meta, ensure_ascii=False)
    return {**facts, "names": [str(dataset.directory)]}
