"""The directory that `prepare` writes: held by one process at a time, and never somebody else's."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

from finetune.common import files
from finetune.common.errors import UsageError
from finetune.common.formatting import shown
from finetune.common.lock import lock
from finetune.data import chat, nanogpt_meta
from finetune.data import dataset as datasets
from finetune.data.run_notes import check_unused, runs_on
from finetune.data.tokenizer import CharTokenizer, Tokenizer, with_template

MOST_SHOWN = 2000  # characters of a line about what was read
# of a prepared directory, besides meta.json
FILES = """
    train.bin val.bin train_mask.bin val_mask.bin train_documents.bin val_documents.bin
    meta.pkl tokenizer.json tokenizer_config.json special_tokens_map.json added_tokens.json chat_template.jinja
    vocab.txt
""".split()


@contextlib.contextmanager
def held(out_dir: str | Path, overwrite: bool) -> Generator[None]:
    """Hold `out_dir` for one preparation. Raises UsageError if another process holds it, if it is a model, or if it
    holds such files that `prepare` did not write and `overwrite` is not given."""
    out_dir = Path(out_dir)
    if (out_dir / "config.json").is_file():
        raise UsageError(f"out_dir {out_dir}: is the directory of a model; choose another --out_dir for the data")
    found = [name for name in ("meta.json", *FILES) if os.path.lexists(out_dir / name)]
    is_ours = "splits" in files.read_json_object(out_dir / "meta.json") or next(runs_on(out_dir), None)
    if found and not overwrite and not is_ours:
        problem = f"holds {', '.join(found[:3])}, which finetune did not write"
        raise UsageError(f"out_dir {out_dir}: {problem}; choose another --out_dir, or replace with --overwrite=true")
    with lock(out_dir):
        try:
            yield
        finally:
            (out_dir / ".lock").unlink(missing_ok=True)


def publish(work: Path, out_dir: Path, facts: dict[str, Any], tokenizer: Tokenizer, overwrite: bool) -> None:
    """Move the bins in `work`, with the tokenizer and a meta.json that has the `facts`, to `out_dir`. Raises UsageError
    if a run was trained on other data there, unless `overwrite` is given."""
    meta: dict[str, Any] = {
        "format": datasets.FORMAT,
        "tokenizer": tokenizer.describe(),
        "vocab_size": tokenizer.vocab_size,
        "dtype": tokenizer.dtype.name,
        **facts,
        "read": [shown(line, MOST_SHOWN) for line in facts["read"]],
    }
    check_unused(out_dir, meta, overwrite)
    if isinstance(tokenizer, CharTokenizer):
        (work / "meta.pkl").write_bytes(nanogpt_meta.write(tokenizer.chars))
    else:
        if any("targets" in split for split in meta["splits"].values()):  # later prompts are rendered as the data was
            if tokenizer.chat_template is None:
                tokenizer = with_template(tokenizer, chat.TEMPLATE)
            meta["chat_template"] = tokenizer.chat_template
        tokenizer.save(work)
    for name in FILES:
        if (work / name).exists():
            os.replace(work / name, out_dir / name)
        else:  # of an earlier preparation with another tokenizer
            (out_dir / name).unlink(missing_ok=True)
    # meta.json comes last: new bins beside an old meta.json are refused by their sha256
    with files.replacing(out_dir / "meta.json") as path:
        files.write_json(path, meta, ensure_ascii=False)
