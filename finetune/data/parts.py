"""A preparation shared out among machines: each tokenizes its part of the text, and joined they are what one machine
would have written.

    write([2, 4], ["corpus.jsonl"], "data/mine")     # on the second of four machines
    join("data/mine")                                # where the four parts are

Every machine surveys the whole text, so that all agree on its alphabet, its documents and which of these validate.
"""

import json
import re
import shutil
from pathlib import Path

from finetune.cli import UsageError
from finetune.data import bins
from finetune.data import tokenizer as tokenizers
from finetune.data.prepare import planned, publish, tokenize, workplace

NAME = re.compile(r"part_([0-9]+)_of_([0-9]+)")


def write(
    part,
    names,
    out_dir,
    tokenizer="gpt2",
    val_fraction=0.1,
    val=(),
    seed=1337,
    num_proc=0,
    max_tokens=1024,
    overflow="split",
    **reading,
):
    """Tokenize one part, `(number, count)` with numbers from 1, into a directory of its own in `out_dir`; return that
    directory and the description that it holds. All else is as in `prepare.prepare`. Raises UsageError."""
    number, count = part
    plan = planned(names, tokenizer, val_fraction, val, seed, max_tokens, overflow, **reading)
    first, end = plan.characters * (number - 1) // count, plan.characters * number // count
    plan.stream, plan.characters = _part(plan.stream, first, end, anywhere=plan.meta["split_by"] == "text"), end - first
    directory = Path(out_dir) / f"part_{number}_of_{count}"
    with workplace(out_dir) as work:
        (work / "part").mkdir()  # for others to read, which `work` is not
        tokenize(plan, work / "part", num_proc, whole=False)
        if plan.tokenizer.kind != "char":  # whose characters stand in its description
            plan.tokenizer.save(work / "part")
        (work / "part" / "part.json").write_text(
            json.dumps(plan.meta, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        if directory.exists():
            shutil.rmtree(directory)
        (work / "part").rename(directory)
    return directory, plan.meta


def join(out_dir):
    """Make the parts in `out_dir` one prepared directory, return its Dataset, and remove them. Raises UsageError, with
    all parts as they were, where one is missing, damaged, or made from another text or in another way than the
    first."""
    parts = _found(Path(out_dir))
    described = [_described(part) for part in parts]
    for part, meta in zip(parts, described):
        if different := [name for name in {**described[0], **meta} if _alike(described[0], name) != _alike(meta, name)]:
            raise UsageError(
                f"{part}: is no part of the same as {parts[0].name}, its {different[0]} differ; prepare them alike"
            )
    meta = described[0]
    tokenizer = tokenizers.from_description(meta["tokenizer"], parts[0])
    with workplace(out_dir) as work:
        splits = {}
        for split in ("train", "val"):
            with bins.Writer(work / f"{split}.bin", meta["end_of_text"]) as writer:
                for part, facts in zip(parts, described):
                    writer.append(part / f"{split}.bin", facts["splits"][split])
                splits[split] = writer.close()
        meta["splits"] = splits
        for name in meta.get("overflow", {}).keys() - {"max_tokens"}:
            meta["overflow"][name] = sum(each["overflow"][name] for each in described)
        publish(work, out_dir, meta, tokenizer)
    for part in parts:
        shutil.rmtree(part)
    return bins.load(out_dir)


def _part(stream, first, end, anywhere):
    """What begins between two characters of a stream. Documents are in one part whole, and a running text, which is a
    single one, may be parted `anywhere` between its pieces."""
    done, begins, mine = 0, True, False
    for split, piece in stream:
        if begins:
            if done >= end:
                return
            mine = done >= first
        if mine:
            yield split, piece
        done += len(piece.text)
        begins = anywhere or piece.ends


def _found(out_dir):
    """The directories of all parts, in their order."""
    there = {
        tuple(map(int, name.groups())): path
        for path in sorted(out_dir.glob("part_*_of_*"))
        if (name := NAME.fullmatch(path.name))
    }
    counts = sorted({count for _, count in there})
    if not counts:
        raise UsageError(
            f"{out_dir}: no parts there; python -m finetune.prepare SOURCE... --out_dir={out_dir} --part=1/2 makes the"
            " first of two"
        )
    if len(counts) > 1:
        raise UsageError(
            f"{out_dir}: holds parts of {' and of '.join(map(str, counts))}; remove those that are not meant"
        )
    if missing := [str(number) for number in range(1, counts[0] + 1) if (number, counts[0]) not in there]:
        raise UsageError(
            f"{out_dir}: of {counts[0]} parts {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing"
        )
    return [there[number, counts[0]] for number in range(1, counts[0] + 1)]


def _described(part):
    path = part / "part.json"
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
        wanted = {"tokens", "characters", "bytes", "targets", "stops", "sha256", "documents_sha256"}
        if meta["format"] == bins.FORMAT and all(wanted <= meta["splits"][split].keys() for split in ("train", "val")):
            return meta
        problem = "is of another version"
    except OSError as error:
        problem = f"cannot be read: {error.strerror}"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        problem = f"describes no part ({error!r})"
    raise UsageError(f"{path}: {problem}; prepare this part again")


def _alike(meta, name):
    """What all parts must have in common of an entry."""
    if name == "splits":
        return None
    return (meta[name].keys(), meta[name]["max_tokens"]) if name == "overflow" and name in meta else meta.get(name)
