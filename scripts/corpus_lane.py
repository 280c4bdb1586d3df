"""What `bench.py corpus` measures: a corpus with planted duplicates through the local executor and through Ray, killed
twice each, and once more in twice as many parts without a kill. The bins must be equal."""

import hashlib
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

FILES, SHARE = 32, 0.05  # of the corpus; of its documents that are copies
SIZES = (300, 10_000)  # characters of a document
WAIT = 0.05  # seconds between two looks at what is done


def write_corpus(directory, size, pieces):
    """jsonl files of about `size` bytes together; every document is new, and then copies of some are put among them.
    Returns (number of documents, number of copies)."""
    rng, text, place, written = random.Random(1), "", 0, 0
    documents, copies, kept = 0, 0, []
    directory.mkdir()
    files = [open(directory / f"{number:03d}.jsonl", "w", encoding="utf-8") for number in range(FILES)]
    while written < size:
        length = int(np.exp(rng.uniform(*np.log(SIZES))))
        if place + length > len(text):
            text, place = next(pieces), 0
        lines = [json.dumps({"text": f"{documents:x} {text[place : place + length]}"}) + "\n"]
        documents, place = documents + 1, place + length
        kept = [*kept[-2000:], lines[0]] if rng.random() < 0.2 else kept
        if kept and rng.random() < SHARE:
            lines.append(rng.choice(kept))
            copies += 1
        for line in lines:
            files[rng.randrange(FILES)].write(line)
            written += len(line)
    for file in files:
        file.close()
    return documents, copies


def prepare(source, out_dir, flags, kills=()):
    """Run the command, killed by SIGKILL as soon as each of the `kills` is a file there, and again until it ends.
    Returns the seconds of all runs."""
    command = [sys.executable, "-m", "finetune", "prepare", source, f"--out_dir={out_dir}", "--doctor=false", *flags]
    began = time.perf_counter()
    for done in map((Path(out_dir) / ".corpus" / "logs").joinpath, kills):
        run = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while run.poll() is None and not done.exists():
            time.sleep(WAIT)
        if run.poll() is not None:
            sys.exit(f"it ended before it could be killed at {done}")
        run.kill()
        run.wait()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


def facts_of(out_dir):
    """sha256 sums of the bins, numbers of documents and tokens, and how many documents are there twice."""
    from finetune.data.dataset import load

    dataset, seen, twice = load(out_dir), set(), 0
    for split in ("train", "val"):
        ids, first = dataset.open_bin(split), 0
        for end in dataset.document_ends(split).tolist():
            digest = hashlib.blake2b(ids[first:end].tobytes(), digest_size=16).digest()
            twice, first = twice + (digest in seen), end
            seen.add(digest)
    splits = dataset.meta["splits"]
    sums = [splits[split]["sha256"] for split in ("train", "val")]
    return {"sha256": sums, "documents": len(seen), "twice": twice, "tokens": sum(s["tokens"] for s in splits.values())}


def measure(work, size, pieces):
    """(rows, results, setting)."""
    source = work / "source"
    documents, copies = write_corpus(source, size, pieces)
    size = sum(path.stat().st_size for path in source.iterdir())
    kills = ["signatures/completions/00001", "tokens/completions/00001"]
    os.environ.setdefault("RAY_raylet_start_wait_time_s", "300")
    runs = {
        "local, 4 tasks, 2 at once": (["--executor=local", "--tasks=4", "--num_proc=2"], kills),
        "Ray, 4 tasks, 2 workers": (["--executor=ray", "--tasks=4", "--num_proc=2"], kills),
        "local, 8 tasks, 2 at once": (["--executor=local", "--tasks=8", "--num_proc=2"], []),
    }
    rows, results = [], {}
    for number, (name, (flags, kills)) in enumerate(runs.items()):
        out_dir = work / f"data{number}"
        before = os.times()
        seconds = prepare(str(source), str(out_dir), flags, kills)
        cpu = sum(os.times()[2:4]) - sum(before[2:4])  # of processes that were not killed, and not of Ray's
        results[name] = facts_of(out_dir) | {"seconds": seconds, "cpu": cpu, "kills": len(kills), "bytes": size}
        rows.append(
            {
                "executor": name,
                "kills": len(kills),
                "seconds": f"{seconds:,.0f}",
                "MB/s": f"{size / 1e6 / seconds:.2f}",
                "CPU seconds": "" if kills else f"{cpu:,.0f}",
                "documents": f"{results[name]['documents']:,}",
                "duplicates left": results[name]["twice"],
                "train.bin": results[name]["sha256"][0][:12],
            }
        )
        print(rows[-1], flush=True)
    first = next(iter(results.values()))
    for name, found in results.items():
        if found["sha256"] != first["sha256"] or found["documents"] != documents or found["twice"]:
            sys.exit(f"{name}: other bins, or not the {documents:,} documents: {found}")
    setting = (
        f"{size / 1e6:,.0f} MB in {FILES} jsonl files: {documents:,} documents and {copies:,} planted copies of some;"
        " GPT-2's BPE; seconds are of the whole command, and with kills of all its runs, the killed ones included; CPU"
        " seconds are of the run without kills, the start of its processes included"
    )
    return rows, results, setting
