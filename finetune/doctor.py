"""What is wrong with a text or a prepared directory, and the text without it.

python -m finetune.doctor data/mine
"""

import contextlib
import difflib
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from finetune.common.errors import UsageError
from finetune.common.files import temporary_directory
from finetune.config.cli import parse, run
from finetune.config.options import option
from finetune.data.tables import chosen_columns, problems_of_columns

USAGE = """usage: python -m finetune.doctor DIR|SOURCE... [--fix=dedup,leaks,encoding --out_dir=DIR] [--key=value ...]

Looks for duplicates, for what train and val share and for faults of encoding, and says which model the corpus is large
enough for. DIR is what finetune.prepare wrote; SOURCE is whatever it reads. What is wrong does not change the exit
code."""


@dataclass
class Options:
    sources: list = option([], "a prepared directory, or whatever prepare reads")
    val: str = option(
        "",
        "what validates what is trained on the sources, several with commas between them; a prepared directory has"
        " its own",
    )
    text_column: str | None = option(
        None, "the column of a table that holds the text [text, or the only one that holds any]", derived=True
    )
    prompt_column: str | None = option(None, "the column of what is asked [prompt]", derived=True)
    completion_column: str | None = option(None, "the column of the answer [completion]", derived=True)
    messages_column: str | None = option(
        None, "the column of conversations, lists of {role, content} [messages]", derived=True
    )
    tokenizer: str = option(
        "",
        "of text: gpt2 or a model directory, to count tokens with; gpt2 where it can be found. A prepared directory has"
        " its own",
    )
    fix: str = option("", "what to mend, some of dedup,leaks,encoding: writes cleaned documents to out_dir")
    out_dir: str = option("", "directory for the cleaned documents, a new one or without such files")

    def problems(self):
        if not self.sources:
            yield (
                "SOURCE",
                (
                    "nothing to examine; name a prepared directory, a UTF-8 text file, or python_docs, which needs no"
                    " download"
                ),
            )
        if self.fix:
            from finetune.tools.doctor.quality import FIXES

            for name in self.fixes():
                if name not in FIXES:
                    nearest = difflib.get_close_matches(name, FIXES, 1)
                    yield (
                        "fix",
                        f"{name!r} is none of {', '.join(FIXES)}."
                        + (f" Did you mean {nearest[0]!r}?" if nearest else ""),
                    )
            if not self.out_dir:
                yield "out_dir", "--fix needs --out_dir=DIR, where the cleaned documents go"
        elif self.out_dir:
            yield "out_dir", "has no effect without --fix=dedup,leaks,encoding"
        yield from problems_of_columns(self)

    def fixes(self):
        return self.fix.split(",") if self.fix else []


def main(argv):
    options, _ = parse(Options, argv, USAGE)
    from finetune.tools.doctor import quality

    splits, tokenizer = _open(options)
    corpus = splits()
    outputs = _outputs(options.out_dir, corpus) if options.fix else None
    facts = quality.examine(_watched(corpus), tokenizer)
    reading = ("val", "text_column", "prompt_column", "completion_column", "messages_column")
    facts["names"] = [
        *options.sources,
        *(f"--{name}={getattr(options, name)}" for name in reading if getattr(options, name)),
    ]
    print(quality.report(facts))
    if options.fix:
        print("\n" + _write(quality.clean(_watched(splits()), options.fixes()), outputs))


def _open(options):
    """(a function that gives the splits anew, the tokenizer for what nobody counted or None)"""
    from finetune.data import dataset as datasets
    from finetune.data import documents as data_documents
    from finetune.data import sources as found
    from finetune.data.prepare import find_tokenizer

    directories = [name for name in options.sources if datasets.is_prepared(name)]
    if not directories:
        try:
            tokenizer = find_tokenizer(options.tokenizer or "gpt2")
        except UsageError:
            if options.tokenizer:
                raise
            tokenizer = None  # the size is then estimated from the bytes
        columns = chosen_columns(options)
        sources = {"train": found.find(options.sources, columns)} | (
            {"val": found.find(options.val.split(","), columns)} if options.val else {}
        )
        return lambda: {
            split: data_documents.documents_of_sources(texts) for split, texts in sources.items()
        }, tokenizer
    if len(options.sources) > 1 or options.val or chosen_columns(options):
        raise UsageError(f"{directories[0]}: a prepared directory has its own train and val, and is examined by itself")
    dataset = datasets.load(directories[0])
    if dataset.tokenizer and options.tokenizer:
        raise UsageError(f"--tokenizer: has no effect, because {directories[0]} says which tokenizer it was made with")
    tokenizer = dataset.tokenizer or find_tokenizer(
        options.tokenizer or "gpt2"
    )  # nanoGPT's bins are GPT-2's unless a meta.pkl says otherwise
    for split in ("train", "val"):
        datasets.check_ids(
            dataset,
            split,
            datasets.scan(dataset, split),
            tokenizer.vocab_size,
            f"the tokenizer ({tokenizer.describe()['name']})",
        )
    return lambda: {
        split: data_documents.documents_of_bin(dataset, split, tokenizer) for split in ("train", "val")
    }, tokenizer


def _watched(splits):
    from tqdm import tqdm

    return {
        split: tqdm(documents, desc=split, unit=" documents", disable=None, leave=False)
        for split, documents in splits.items()
    }


def _outputs(out_dir, splits):
    """The files to write: one for the cleaned documents of each split, one for those left out. Raises UsageError where
    one is there."""
    names = {split: f"{split}.jsonl" for split in splits} if "val" in splits else {"train": "clean.jsonl"}
    outputs = {split: Path(out_dir) / name for split, name in {**names, "removed": "removed.jsonl"}.items()}
    for path in outputs.values():
        if path.exists():
            raise UsageError(f"{path}: is there already; name another --out_dir")
    return outputs


def _write(documents, outputs):
    """Write Cleaned documents, every file or none; return what was done, in words."""
    from finetune.tools.doctor.quality import KINDS

    written, changed = Counter(dict.fromkeys(outputs, 0)), Counter()
    out_dir = outputs["removed"].parent
    with temporary_directory(out_dir) as work:
        with contextlib.ExitStack() as stack:
            # backslashreplace: half a surrogate pair, which UTF-8 has not, becomes an escape that JSON has
            opened = {
                name: open(work / path.name, "w", encoding="utf-8", errors="backslashreplace")
                for name, path in outputs.items()
            }
            files = {name: stack.enter_context(file) for name, file in opened.items()}
            for document in documents:
                name, row = document.split, {}
                if document.removed:
                    name, row = "removed", {"split": document.split, "document": document.number, **document.removed}
                    changed[document.split, document.removed["kind"]] += 1
                else:
                    changed.update({(document.split, kind): lines for kind, lines in document.faults.items()})
                files[name].write(json.dumps({**row, "text": document.text}, ensure_ascii=False) + "\n")
                written[name] += 1
        for name, path in outputs.items():
            if written[name] or name != "removed":
                (work / path.name).rename(path)
    verbs = {kind: "mended" if mends == "encoding" else "removed" for kind, (_, mends) in KINDS.items()}
    lines = [f"{verbs[kind]} {count:>8,} {KINDS[kind][0]} ({split})" for (split, kind), count in changed.items()] or [
        "nothing to mend"
    ]
    lines += [
        f"wrote   {written[name]:>8,} documents to {path}"
        for name, path in outputs.items()
        if written[name] or name != "removed"
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    run(main)
