"""The loss of the same weights on the same 64 ragged documents, as finetune.eval, transformers and Trainer tell it.

    python scripts/honest_losses.py [--documents=64] [--out=docs/benchmarks]

A small GPT-2 with a vocabulary of its own is trained on Python's language reference, so nothing is downloaded. Then it
meets documents of very different lengths, most of which it has not seen whole. The table goes to docs/benchmarks/."""

import contextlib
import io
import json
import math
import os
import random
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from finetune.config.cli import parse, run
from finetune.config.options import option

ROOT = Path(__file__).parents[1]
BLOCK_SIZE = 128
ALONE = "transformers, one after the other, a sum in float64"


@dataclass
class Options:
    documents: int = option(64, "how many documents")
    max_iters: int = option(200, "updates of the model")
    seed: int = option(0, "of the documents")
    out: str = option(str(ROOT / "docs" / "benchmarks"), "directory for the table")


def main(argv):
    options, _ = parse(Options, argv, __doc__)
    out, back = Path(options.out).resolve(), os.getcwd()
    with tempfile.TemporaryDirectory() as work:
        os.chdir(work)
        try:
            texts = prepared(options)
            trained(options)
            rows = [*ours(), *theirs(texts), *trainers(texts)]
        finally:
            os.chdir(back)
    truth = {row["of"]: row for row in rows if row["tool"] == ALONE}
    rows = [shown(row, truth[row["of"]]) for row in rows]
    sys.path.insert(0, str(ROOT / "scripts"))
    from bench import write

    setting = (
        f"A GPT-2 of 4 layers, 128 wide, {options.max_iters} updates on Python's language reference;"
        f" {options.documents} documents of 1 to 126 tokens and an end-of-text each. The first token of a document is"
        " not predicted. Trainer with DataCollatorForLanguageModeling and pad = end-of-text, as usual for GPT-2: no"
        " end-of-text counts, sums are divided by labels that were not shifted yet, and means of batches averaged"
    )
    command = " ".join(["python scripts/honest_losses.py", *(arg for arg in argv if not arg.startswith("--out="))])
    write(
        {
            "what": "losses",
            "title": "The loss of the same weights",
            "setting": setting,
            "command": command,
            "rows": rows,
        },
        out,
    )


def prepared(options):
    """Write the documents as data/ with a vocabulary made for them; return their texts."""
    from tokenizers import ByteLevelBPETokenizer

    from finetune.data import sources
    from finetune.data.prepare import prepare

    reference = "".join(piece.text for piece in sources.find(["python_docs"])[0].chunks())
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator([reference], vocab_size=1000, special_tokens=["<|endoftext|>"], show_progress=False)
    Path("bpe").mkdir()
    tokenizer.save("bpe/tokenizer.json")
    rng, paragraphs = (
        random.Random(options.seed),
        [" ".join(text.split()) for text in reference.split("\n\n") if len(text.split()) > 3],
    )
    texts = []
    while len(texts) < options.documents:
        words = rng.choice(paragraphs).split()
        text = " ".join(
            words[: max(1, round(math.exp(rng.uniform(0, math.log(60)))))]
        )  # as many short ones as long ones
        if len(tokenizer.encode(text).ids) < BLOCK_SIZE - 1:
            texts.append(text)
    for name, documents in (("train", paragraphs), ("val", texts)):
        Path(f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    prepare(["train.jsonl"], "data", "bpe", val=["val.jsonl"])
    return texts


def trained(options):
    from finetune.config.recipe import Recipe
    from finetune.training.trainer import train

    train(
        Recipe(
            init_from="scratch",
            dataset="data",
            out_dir="out",
            n_layer=4,
            n_head=4,
            n_embd=128,
            block_size=BLOCK_SIZE,
            batch_size=16,
            gradient_accumulation_steps=1,
            max_iters=options.max_iters,
            learning_rate=2e-3,
            eval_interval=options.max_iters,
            log_interval=50,
        )
    )


def ours():
    """What the command finds: document by document, and all of them packed into blocks."""
    from finetune import eval

    for documents in (True, False):
        for batch_size in (1, 4, 64):
            with contextlib.redirect_stdout(io.StringIO()):
                eval.main(["--out_dir=out", f"--documents={str(documents).lower()}", f"--batch_size={batch_size}"])
            event = json.loads(Path("out/metrics.jsonl").read_text().splitlines()[-1])
            name = f"finetune.eval, {'--documents=true ' if documents else ''}--batch_size={batch_size}"
            yield row(
                name, "documents" if documents else "blocks", event["loss"], event["bits_per_byte"], event["targets"]
            )


def theirs(texts):
    """transformers with nothing around it: every document, or block, alone, and the sum in float64."""
    import numpy as np
    import torch

    model, tokenizer = loaded()
    documents = encoded(texts, tokenizer)
    packed = torch.cat(documents)
    assert packed.tolist() == np.fromfile("data/val.bin", dtype="<u2").tolist()
    blocks = [packed[first : first + BLOCK_SIZE + 1] for first in range(0, len(packed) - 1, BLOCK_SIZE)]
    for of, parts, unpredicted in (
        ("documents", documents, "".join(tokenizer.decode(ids[:1]) for ids in documents)),
        ("blocks", blocks, tokenizer.decode(packed[:1])),
    ):
        with torch.no_grad():
            found = [
                model(ids[None, :-1]).logits[0].double().log_softmax(-1).gather(-1, ids[1:, None]) for ids in parts
            ]
        nats, targets = -sum(logp.sum().item() for logp in found), sum(map(len, found))
        num_bytes = sum(len(text.encode()) for text in texts) - len(unpredicted.encode())
        yield row(ALONE, of, nats / targets, nats / math.log(2) / num_bytes, targets)


def trainers(texts):
    """What `Trainer.evaluate` reports."""
    import transformers
    from transformers import DataCollatorForLanguageModeling, Trainer, TrainingArguments

    transformers.logging.set_verbosity_error()
    model, tokenizer = loaded()
    tokenizer.pad_token = tokenizer.eos_token
    documents = [{"input_ids": ids.tolist()} for ids in encoded(texts, tokenizer)]
    for batch_size in (8, 1, 64):
        arguments = TrainingArguments(
            "trainer", per_device_eval_batch_size=batch_size, report_to=[], use_cpu=True, disable_tqdm=True
        )
        collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
        with contextlib.redirect_stdout(io.StringIO()):
            loss = Trainer(model, arguments, data_collator=collator, eval_dataset=documents).evaluate()["eval_loss"]
        yield row(f"Trainer.evaluate, per_device_eval_batch_size={batch_size}", "documents", loss, None, "")


def loaded():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained("out/best").eval(), AutoTokenizer.from_pretrained("out/best")


def encoded(texts, tokenizer):
    import torch

    return [torch.tensor([*tokenizer(text)["input_ids"], tokenizer.eos_token_id]) for text in texts]


def row(tool, of, loss, bits_per_byte, targets):
    return {"tool": tool, "of": of, "tokens": targets, "loss": loss, "bits per byte": bits_per_byte}


def shown(row, truth):
    bits_per_byte = row["bits per byte"] or row["loss"] / truth["loss"] * truth["bits per byte"]
    off = f"{row['loss'] - truth['loss']:+.6f}".replace("-0.000000", "+0.000000")
    figures = {
        "loss": f"{row['loss']:.6f}",
        "off by": off,
        "perplexity": f"{math.exp(row['loss']):.3f}",
        "bits per byte": f"{bits_per_byte:.6f}",
    }
    return {"tool": row["tool"], "of": row["of"], "tokens": row["tokens"], **figures}


if __name__ == "__main__":
    run(main)
