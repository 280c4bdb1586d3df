"""A corpus prepared in parts: the same bins whatever the tasks, without duplicates, resumed after a kill, with the ids
of `prepare`; and folders that datatrove alone wrote."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from finetune.corpus.plan import Plan
from finetune.data import dataset as datasets
from finetune.data.tables import ReadOptions

pytest.importorskip("datatrove")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
DOCUMENTS, PLANTED = 240, 24
HERE = "--executor=local", "--num_proc=1", "--doctor=false"


def texts():
    """Documents of unlike words, and exact or nearly equal copies of some of them."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyzäöü", k=rng.randint(2, 9))) for _ in range(900)]
    found = [" ".join(rng.choices(words, k=rng.randint(8, 80))).capitalize() + "." for _ in range(DOCUMENTS)]
    found[3] = "Line\nends, <|endoftext|> spelled out, 😀 and 日本語のテキスト。"
    found[4] = "Short 1"
    found[5] = "Short 2"  # no duplicate of the one before
    copies = rng.sample(found[6:], PLANTED)
    copies[0] = copies[0].upper() + "  "
    return found, [*found, *copies]


@pytest.fixture
def source(bpe_directory):
    """src/, five files of three formats, and a tokenizer in bpe/."""
    import pyarrow
    import pyarrow.parquet

    first, every = texts()
    Path("src").mkdir()
    parts = [every[start : start + 60] for start in range(0, len(every), 60)]
    for number, part in enumerate(parts):
        if number == 1:
            pyarrow.parquet.write_table(pyarrow.table({"text": part}), f"src/{number}.parquet")
        elif number == 2:
            Path(f"src/{number}.csv").write_text("text\n" + "".join(f'"{text}"\n' for text in part), encoding="utf-8")
        else:
            lines = (json.dumps({"text": text, "n": n}) + "\n" for n, text in enumerate(part))
            Path(f"src/{number}.jsonl").write_text("".join(lines))
    bpe_directory(" ".join(first))
    return first


def bins(place):
    return [Path(place, f"{split}.bin").read_bytes() for split in ("train", "val")]


def documents_of(place):
    """The ids of each document."""
    found = []
    for split in ("train", "val"):
        dataset = datasets.load(place)
        found += [ids.tolist() for ids in np.split(dataset.open_bin(split), dataset.document_ends(split)[:-1])]
    return found


@pytest.mark.heavy
def test_bins_do_not_depend_on_the_tasks(source, command):
    for tasks in (1, 3):
        code, out, error = command(
            "prepare", "src", f"--tasks={tasks}", f"--out_dir=d{tasks}", "--tokenizer=bpe", *HERE
        )
        assert code == 0, error
    assert (
        f"{PLANTED} documents left out, duplicates of others; --duplicates=keep keeps them" in out
        and "src/1.parquet: 60 rows" in out
    )
    assert bins("d1") == bins("d3")
    assert Path("d1/meta.json").read_bytes() == Path("d3/meta.json").read_bytes()
    assert not Path("d1/.corpus").exists()
    # the ids that `prepare` gives the same documents, each once, and the facts that it writes
    command("prepare", "src", "--out_dir=ours", "--tokenizer=bpe", "--doctor=false")
    ours, theirs = documents_of("ours"), documents_of("d1")
    unique = {tuple(ids) for ids in ours}
    assert len(theirs) == DOCUMENTS and {tuple(ids) for ids in theirs} <= unique
    facts, known = (json.loads(Path(place, "meta.json").read_text()) for place in ("d1", "ours"))
    assert facts.keys() == known.keys() and facts["splits"]["train"].keys() == known["splits"]["train"].keys()
    texts = [datasets.load("d1").tokenizer.decode(ids[:-1]) for ids in theirs]
    assert sorted(texts) == sorted(source)
    assert sum(split["characters"] for split in facts["splits"].values()) == sum(map(len, texts))


def test_duplicates_stay_if_asked(source, command):
    code, out, error = command(
        "prepare", "src", "--duplicates=keep", "--tasks=2", "--out_dir=d", "--tokenizer=bpe", *HERE
    )
    assert code == 0 and "left out" not in out, error
    command("prepare", "src", "--out_dir=ours", "--tokenizer=bpe", "--doctor=false")
    assert sorted(documents_of("d")) == sorted(documents_of("ours"))
    # a copy goes where its original goes
    val = datasets.load("d")
    split = [np.split(val.open_bin(name), val.document_ends(name)[:-1]) for name in ("train", "val")]
    assert not {ids.tobytes() for ids in split[0]} & {ids.tobytes() for ids in split[1]}


@pytest.mark.heavy
def test_a_killed_preparation_goes_on(source, command):
    flags = "prepare", "src", "--tasks=3", "--out_dir=d", "--tokenizer=bpe", *HERE
    assert command(*flags[:3], "--out_dir=whole", *flags[4:])[0] == 0
    for task in ("signatures/completions/00000", "pairs/completions/00003"):
        run = subprocess.Popen([sys.executable, "-m", "finetune", *flags], stderr=subprocess.DEVNULL)
        done = Path("d/.corpus/logs", task)
        while run.poll() is None and not done.exists():
            time.sleep(0.01)
        run.send_signal(signal.SIGKILL)
        run.wait()
        assert done.exists() and not Path("d/meta.json").exists()
        first = Path("d/.corpus/logs/signatures/completions/00000").stat().st_mtime_ns
    code, _, error = command("prepare", "src", "--tasks=3", "--seed=1", "--out_dir=d", "--tokenizer=bpe", *HERE)
    assert code == 2 and "is half prepared with other seed; give the same to go on, or --overwrite=true" in error
    assert Path("d/.corpus/logs/signatures/completions/00000").stat().st_mtime_ns == first
    assert command(*flags)[0] == 0
    assert bins("d") == bins("whole")


def test_a_changed_source_and_a_bad_row_are_refused(source, command):
    with open("src/3.jsonl", "a") as file:
        file.write('{"text": 5, "n": 1}\n')
    for flags in ([], ["--duplicates=keep"]):
        code, _, error = command("prepare", "src", "--tasks=2", "--out_dir=d", "--tokenizer=bpe", *HERE, *flags)
        assert code == 2 and len(error.splitlines()) == 1 and error.startswith("src/3.jsonl: "), error
        assert not Path("d").exists()


def test_a_full_disk_is_told(source, command):
    """A limit on files stands for the disk. The second time the error cannot even be written down."""
    import resource
    import shutil

    flags = "prepare", "src", "--tasks=1", "--out_dir=d", "--tokenizer=bpe", *HERE
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for _ in range(2):
        resource.setrlimit(resource.RLIMIT_FSIZE, (15_000, before[1]))
        try:
            code, _, error = command(*flags)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert code == 1 and "File too large" in error and "the same command goes on" in error, error
        shutil.rmtree("d/.corpus/logs/signatures/failures", ignore_errors=True)
        Path("d/.corpus/logs/signatures/failures").touch()


REFUSED = {
    "--tasks=3": "tasks: goes with --executor=local, slurm or ray",
    "--duplicates=keep": "duplicates: goes with --executor",
    "--executor=slurm": "slurm: goes with --executor=slurm",
    "--executor=local --keep_split=d": "keep_split: cannot go with --executor",
    "--executor=local --dry_run=true": "dry_run: cannot go with --executor",
    "--executor=local --tokenizer=char": "char is made from all of the text at once",
    "--executor=local --val_fraction=1e-9": "val.bin would be empty: of 240 documents none goes to val",
    "--executor=slurm --slurm=time=1:00:00": "slurm: names no partition",
    "--executor=slurm --slurm=cpu": "slurm: 'cpu' is no KEY=VALUE",
    "--executor=slurm --slurm=partition=a,time=1,mem_per_cpu_gb=x": "slurm: mem_per_cpu_gb=x is not a whole number",
}


@pytest.mark.parametrize("flags", REFUSED)
def test_contradictions_are_refused(source, command, flags):
    given = ["--tokenizer=bpe"] * ("tokenizer" not in flags)
    code, _, error = command("prepare", "src", "--out_dir=d", "--num_proc=1", *given, *flags.split())
    assert code == 2 and len(error.splitlines()) == 1 and REFUSED[flags] in error, error
    assert not Path("d").exists()


def test_sources_that_are_no_corpus_are_refused(source, command):
    Path("one.txt").write_text("A text.\n")
    for name, message in {
        "one.txt": "one.txt: is one running text; finetune prepare without --executor splits it",
        "python_docs": "python_docs: is not read in parts",
        "memory://nothing": "memory://nothing: cannot be listed",
        "nowhere://x": "nowhere://x: ",
    }.items():
        code, _, error = command("prepare", name, "--out_dir=d", "--tokenizer=bpe", *HERE)
        assert code == 2 and len(error.splitlines()) == 1 and message in error, error
    for flags in (["one.txt", "--val=two.txt"], ["both"]):
        Path("two.txt").write_text("Another one.\n")
        Path("both").mkdir(exist_ok=True)
        for split in ("train", "val"):
            Path(f"both/{split}.txt").write_text("A text.\n")
        code, _, error = command("prepare", *flags, "--out_dir=d", "--tokenizer=bpe", *HERE)
        assert code == 2 and "is one running text" in error, error
    code, _, error = command("prepare", "s3://a/b.jsonl", "--out_dir=d", "--tokenizer=bpe")
    assert code == 2 and "s3://a/b.jsonl is read with --executor=local, slurm or ray" in error


def test_files_of_another_file_system(source, command):
    import fsspec

    system = fsspec.filesystem("memory")
    for path in Path("src").iterdir():
        with system.open(f"/bucket/data/train-{path.name}", "wb") as file:
            file.write(path.read_bytes())
    with system.open("/bucket/data/test-0.jsonl", "wb") as file:
        file.write(b'{"text": "not to be trained on"}\n')
    flags = "--tokenizer=bpe", *HERE
    code, out, error = command("prepare", "memory://bucket/data", "--tasks=3", "--out_dir=far", *flags)
    assert code == 0 and "memory:///bucket/data/train-1.parquet: 60 rows" in out.replace("memory://b", "memory:///b"), (
        error
    )
    command("prepare", "src", "--tasks=1", "--out_dir=near", *flags)
    assert "memory://bucket/data: 1 files left out" in out
    assert bins("far") == bins("near")
    system.rm("/bucket", recursive=True)


def test_a_data_set_of_the_hub(source, command, monkeypatch):
    """Its files are those that `datasets` finds; here it finds them elsewhere."""
    from types import SimpleNamespace

    import fsspec

    def load_dataset_builder(path, name, revision):
        assert (path, name, revision) == ("me/texts", "en", "v1")
        return SimpleNamespace(
            config=SimpleNamespace(data_files={"train": [f"memory://hub/{n}.jsonl" for n in (0, 3)]})
        )

    for number in (0, 3):
        with fsspec.filesystem("memory").open(f"/hub/{number}.jsonl", "wb") as file:
            file.write(Path(f"src/{number}.jsonl").read_bytes())
    monkeypatch.setattr("datasets.load_dataset_builder", load_dataset_builder)
    monkeypatch.setattr("finetune.data.sources.reach", lambda url: None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    flags = "me/texts:en", "--revision=v1", "--out_dir=d", "--tokenizer=bpe", "--duplicates=keep", *HERE
    code, out, error = command("prepare", *flags)
    assert code == 0 and "2 files, 120 documents" in out, error
    code, _, error = command("prepare", *flags, "--split=dev", "--overwrite=true")
    assert code == 2 and "me/texts:en: has no files of split dev; there are train" in error


def test_validation_sources(source, command):
    Path("val.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in (source[9], "New text of val.")))
    code, out, error = command("prepare", "src", "--val=val.jsonl", "--out_dir=d", "--tokenizer=bpe", *HERE)
    assert code == 0, error
    found = datasets.load("d")
    assert found.meta["split_by"] == "sources" and [each["name"] for each in found.meta["val_sources"]] == ["val.jsonl"]
    assert found.tokenizer.decode(found.open_bin("val")[:-1]) == "New text of val."  # the other one is in train


def test_conversations_keep_their_masks(bpe_directory, command):
    rows = [{"prompt": f"Question {n}?", "completion": f"Answer {n}."} for n in range(40)]
    for number in range(2):
        lines = [json.dumps(row) + "\n" for row in rows[number * 20 : number * 20 + 20]]
        Path("src").mkdir(exist_ok=True)
        Path(f"src/{number}.jsonl").write_text("".join(lines))
    bpe_directory("Question? Answer.")
    flags = "--duplicates=keep", "--tasks=2", "--tokenizer=bpe", *HERE
    assert command("prepare", "src", "--out_dir=d", *flags)[0] == 0
    assert command("prepare", "src", "--out_dir=ours", "--tokenizer=bpe", "--doctor=false")[0] == 0
    found = {}
    for place in ("d", "ours"):
        found[place] = set()
        for split in ("train", "val"):
            dataset = datasets.load(place)
            ends = dataset.document_ends(split)[:-1]
            masks = np.split(np.fromfile(dataset.mask(split), np.uint8), ends)
            ids = np.split(dataset.open_bin(split), ends)
            found[place] |= {(one.tobytes(), mask.tobytes()) for one, mask in zip(ids, masks)}
    assert found["d"] == found["ours"]


def test_answers_to_one_passage_are_no_duplicates(bpe_directory, command):
    passage = " ".join(f"word{n}" for n in range(200))
    rows = [{"prompt": f"{passage} What is {n}?", "completion": f"It is the number {n}."} for n in range(40)]
    Path("a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, *rows[:3]]))
    bpe_directory(passage)
    code, out, error = command("prepare", "a.jsonl", "--out_dir=d", "--tokenizer=bpe", *HERE)
    assert code == 0 and "3 documents left out" in out, error


def test_jobs_of_slurm_have_the_arguments(source):
    from finetune.corpus import executors
    from finetune.corpus.stages import stages

    plan = Plan([], ReadOptions(), "", tasks=64)
    given = "partition=cpu,time=24:00:00,mem_per_cpu_gb=4,account=me"
    made = executors.slurm(stages(plan, Path("work").absolute()), Path("logs").absolute(), 8, given)
    chain = []
    while made:
        chain.append(made)
        made = made.depends
    assert [each.job_name for each in chain[::-1]] == [
        f"finetune-{name}" for name in ("signatures", "pairs", "clusters", "tokens", "merge")
    ]
    tokens = chain[1]
    assert (tokens.tasks, tokens.workers, tokens.partition, tokens.time, tokens.mem_per_cpu_gb) == (
        64, 8, "cpu", "24:00:00", 4
    )  # fmt: skip
    assert tokens.get_sbatch_args()["account"] == "me" and chain[0].tasks == 1


def test_a_folder_of_datatrove_trains_to_the_same_losses(source, command):
    from datatrove.data import Document
    from datatrove.pipeline.tokens import DocumentTokenizer

    words = [text.replace("<|endoftext|>", "") for text in source]
    step = DocumentTokenizer(
        "ds", str(Path("bpe/tokenizer.json").absolute()), eos_token="<|endoftext|>", shuffle_documents=False
    )
    step.run((Document(text, str(number)) for number, text in enumerate(words)), 0, 1)
    Path("t.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in words))
    assert command("prepare", "t.jsonl", "--out_dir=ours", "--tokenizer=bpe", "--doctor=false")[0] == 0
    shape = "--init_from=scratch", "--n_layer=1", "--n_head=1", "--n_embd=16", "--block_size=16", "--batch_size=4"
    losses = []
    for place in ("ds", "ours"):
        code, _, error = command("train", *shape, "--max_iters=3", f"--dataset={place}", f"--out_dir=out-{place}")
        assert code == 0, error
        events = map(json.loads, Path(f"out-{place}/metrics.jsonl").read_text().splitlines())
        losses.append([event["loss"] for event in events if "loss" in event])
    assert losses[0] == losses[1] and losses[0]


@pytest.mark.slow
def test_ray_makes_the_same_bins(source):
    pytest.importorskip("ray")
    for executor in ("local", "ray"):
        flags = [f"--executor={executor}", "--tasks=2", "--num_proc=2", f"--out_dir={executor}", "--tokenizer=bpe"]
        subprocess.run([sys.executable, "-m", "finetune", "prepare", "src", *flags, "--doctor=false"], check=True)
    assert bins("local") == bins("ray")


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_a_killed_process_of_the_pool_ends_the_command_and_all_is_resumed(source):
    import psutil

    flags = "prepare", "src", "--executor=local", "--tasks=2", "--num_proc=2", "--out_dir=d", "--tokenizer=bpe"
    run = subprocess.Popen([sys.executable, "-m", "finetune", *flags], stderr=subprocess.PIPE, text=True)
    while not (
        workers := [child for child in psutil.Process(run.pid).children() if "spawn_main" in " ".join(child.cmdline())]
    ):
        time.sleep(0.05)
    workers[0].kill()
    error = run.communicate(timeout=120)[1]
    assert run.returncode == 1 and "a process was killed; the same command goes on" in error
    assert subprocess.run([sys.executable, "-m", "finetune", *flags]).returncode == 0


SBATCH = """#!{python}
# stands in for SLURM: runs each task of an array at once, one after the other
import os, re, subprocess, sys
path = sys.argv[-1]
script = open(path).read()
found = re.search(r"--array=0-(\\d+)", script)
for task in range(int(found[1]) + 1):
    exports = dict(SLURM_ARRAY_TASK_ID=str(task), SLURM_JOB_ID="7", SLURM_NODELIST="here", RUN_OFFSET="0")
    if "merge_stats" not in script:
        subprocess.run(["bash", path], env={{**os.environ, **exports}}, stdout=subprocess.DEVNULL, check=True)
print("Submitted batch job 7")
"""
SRUN = '#!/bin/bash\nwhile [[ $1 == -* || $1 == 1 ]]; do shift; done\nexec "$@"\n'


@pytest.mark.slow
def test_jobs_of_slurm_make_the_same_bins(source, monkeypatch):
    """No cluster has run them: the programs of SLURM are stood in for."""
    Path("bin").mkdir()
    texts = {"sbatch": SBATCH.format(python=sys.executable), "srun": SRUN, "scontrol": "#!/bin/bash\necho here\n"}
    for name, text in texts.items():
        Path("bin", name).write_text(text)
        Path("bin", name).chmod(0o755)
    path = os.pathsep.join([str(Path("bin").absolute()), str(Path(sys.executable).parent), os.environ["PATH"]])
    monkeypatch.setenv("PATH", path)
    slurm = ["--executor=slurm", "--slurm=partition=cpu,time=1:00:00"]
    told = []
    for executor, out_dir in ((["--executor=local", "--num_proc=1"], "local"), (slurm, "slurm"), (slurm, "slurm")):
        flags = [*executor, "--tasks=2", f"--out_dir={out_dir}", "--tokenizer=bpe", "--doctor=false"]
        command = [sys.executable, "-m", "finetune", "prepare", "src", *flags]
        told.append(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert bins("local") == bins("slurm")
    assert told[1].startswith("submitted; when the jobs have ended, the same command says")
    assert told[2] == told[0].replace("local/", "slurm/")
