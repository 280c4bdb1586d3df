"""One measured process of scripts/bench.py: a tool does a job as its users would have it done, and one line of JSON
tells how that went.

    python scripts/contenders.py JOB.json

A job names the tool, what it is to do and the shape; the directory `work` holds bins, weights in each tool's form, and
`rows`, the blocks that every tool reads in the same order."""

import json
import os
import resource
import runpy
import shutil
import sys
import tempfile
import time
from pathlib import Path


def main(path):
    job = json.loads(Path(path).read_text())
    with open(os.devnull, "w") as quiet:
        out, sys.stdout = sys.stdout, quiet
        result = globals()[f"{job['tool']}_{job['what']}"](job)
        sys.stdout = out
    print(json.dumps(result))


def unwritten(setup, state, logger, name, facts, published=lambda: None):
    """`publish_model` without a file, for lanes that time updates alone."""
    published()


# training: which updates were told of (the first is 0), their losses, when each was done (seconds since the process was
# started), and peak memory in MB: on a GPU from the first update to the last, on a CPU of the whole process
def finetune_train(job, hooks=None):
    from finetune.config import recipe
    from finetune.config.cli import parse
    from finetune.runs.events import read_metrics
    from finetune.training import session, validation
    from finetune.training import trainer as trainers

    _without_datasets()
    if not job["saves"]:
        validation.publish_model = unwritten
        trainers.save_state = lambda *args, **more: None
        session.plot_loss = lambda out_dir: None
    out_dir = Path(job["work"], "out")
    flags = {
        "init_from": job["weights"],
        "dataset": f"{job['work']}/data",
        "out_dir": out_dir,
        "overwrite": True,
        **job["shape"],
    }
    flags |= {
        "learning_rate": 3e-5,
        "decay_lr": False,
        "warmup_iters": 0,
        "eval_iters": 1,
        "eval_interval": 10**9,
        "log_interval": job["log_interval"],
        "device": job["device"],
        **job["options"],
    }
    recipe, _ = parse(
        recipe.Recipe,
        [f"--{name}={str(value).lower() if isinstance(value, bool) else value}" for name, value in flags.items()],
        "",
    )
    peak, update = Peak(job), trainers.update

    def watched(*args):
        outcome = update(*args)
        peak.look()
        return outcome

    trainers.update = watched
    trainers.train(recipe, hooks=hooks)
    updates = [event for event in read_metrics(out_dir / "metrics.jsonl") if event["event"] == "iter"]
    return _training(job, peak, [(event["iter"], event["loss"], event["time"]) for event in updates])


def finetune_saves(job):
    """The seconds of an update, those that each save holds the loop for, and by how much it slows updates down. The
    last save does not count: the run waits for it."""
    import statistics

    from finetune.training import trainer as trainers
    from finetune.training.state import Hooks

    update, save_state = trainers.update, trainers.save_state
    updates, saves = [], []  # (seconds, number of the save that is written meanwhile or None), seconds held

    def timed_update(setup, *args):
        writing, held, began = bool(setup.saves.begun), setup.saves.seconds_held, time.perf_counter()
        result = update(setup, *args)
        if saves:
            saves[-1] += setup.saves.seconds_held - held
        updates.append((time.perf_counter() - began, len(saves) - 1 if writing and saves else None))
        return result

    def timed_save(*args, must_succeed):
        began = time.perf_counter()
        save_state(*args, must_succeed=must_succeed)
        if not must_succeed:
            saves.append(time.perf_counter() - began)

    trainers.update, trainers.save_state = timed_update, timed_save
    at_once = Hooks(notify=lambda moment: False) if job["at_once"] else Hooks()
    result = finetune_train(job, at_once)
    usual = statistics.median(seconds for seconds, number in updates[2:] if number is None)
    slowed = [sum(seconds - usual for seconds, at in updates if at == number) for number in range(len(saves))]
    return {**result, "update": usual, "held": saves, "slowed": slowed}


def trainer_train(job):
    import numpy as np
    import torch
    from transformers import GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

    shape, options = job["shape"], job["options"]
    dropout = options.get("dropout", 0.1)  # GPT-2's own configuration, which run_clm keeps
    model = GPT2LMHeadModel.from_pretrained(job["weights"], resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout)
    if rank := options.get("lora_rank"):
        from peft import LoraConfig, get_peft_model

        targets = ["c_attn", "c_proj", "c_fc"]
        model = get_peft_model(
            model,
            LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets, fan_in_fan_out=True, task_type="CAUSAL_LM"),
        )
    ids, T = np.memmap(f"{job['work']}/data/train.bin", dtype=np.uint16, mode="r"), shape["block_size"]
    rows = json.loads(Path(job["work"], "rows.json").read_text())

    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return len(rows)

        def __getitem__(self, i):
            block = torch.from_numpy(ids[rows[i] * T : rows[i] * T + T].astype(np.int64))
            labels = block.clone()
            labels[0] = -100  # nothing predicts it, but Trainer would count it among the tokens it divides by
            return {"input_ids": block, "attention_mask": torch.ones_like(block), "labels": labels}

    losses, stamps, peak = [], [], Peak(job)

    class Watch(TrainerCallback):
        def on_step_end(self, *args, **more):
            stamps.append(time.time())
            peak.look()

        def on_log(self, args, state, control, logs=None, **more):
            if "loss" in logs:
                losses.append(logs["loss"])

    class InOrder(Trainer):
        def _get_train_sampler(self, *args, **more):
            return torch.utils.data.SequentialSampler(self.train_dataset)

    class Flattened(Rows):
        """All blocks of an update in one row, told apart by their positions: TRL's padding-free packing."""

        def __len__(self):
            return shape["max_iters"]

        def __getitem__(self, i):
            mine = rows[i * shape["batch_size"] : (i + 1) * shape["batch_size"]]
            packed = {name: torch.from_numpy(columns[name][mine].astype(np.int64)).flatten() for name in columns.files}
            labels = packed["input_ids"].masked_fill(packed["targets"] == 0, -100)
            return {"input_ids": packed["input_ids"], "position_ids": packed["position_ids"], "labels": labels}

    flattened = options.get("flattened", False)
    columns = np.load(Path(job["work"], "packed.npz")) if flattened else None
    arguments = TrainingArguments(
        f"{job['work']}/trainer",
        max_steps=shape["max_iters"],
        per_device_train_batch_size=1 if flattened else shape["batch_size"],
        gradient_accumulation_steps=shape["gradient_accumulation_steps"],
        learning_rate=3e-5,
        lr_scheduler_type="constant",
        weight_decay=0.1,
        adam_beta2=0.95,
        max_grad_norm=1.0,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        bf16=options.get("dtype") == "bfloat16",
        torch_compile=options.get("compile", False),
        use_cpu=job["device"] == "cpu",
    )
    InOrder(model, arguments, train_dataset=Flattened() if flattened else Rows(), callbacks=[Watch()]).train()
    return _training(job, peak, list(zip(range(len(losses)), losses, stamps)))


# what a plan says, and the whole command
def finetune_plan(job):
    from finetune.config.cli import parse
    from finetune.plan import Options
    from finetune.tools.plan import estimate, timing

    options, origins = parse(Options, job["argv"], "")
    plan = timing.timed(estimate.plan(options.as_recipe(), origins), time.perf_counter() - (time.time() - job["began"]))
    parts = plan.seconds()
    return {
        "seconds": sum(parts.values()),
        "peak_gb": plan.peak_bytes() / 1e9,
        "parts": parts,
        "timing": vars(plan.timing),
    }


def finetune_run(job):
    from finetune.config.cli import parse
    from finetune.config.recipe import Recipe
    from finetune.training import trainer as trainers

    recipe, _ = parse(Recipe, job["argv"], "")
    trainers.train(recipe)
    return {"seconds": time.time() - job["began"], "peak_gb": Peak.resident() * 2**20 / 1e9}


# from nothing but a text and a model on disk to the first update
def finetune_start(job):
    from finetune.common.machine import collect_rarely

    collect_rarely()  # as every command does first
    flags = {"dataset": f"{job['work']}/text.txt", "save_interval": 10**9}
    Path(job["work"], "start").mkdir(exist_ok=True)
    os.chdir(tempfile.mkdtemp(dir=Path(job["work"], "start")))  # nothing is prepared yet
    result = finetune_train({**job, "options": flags})
    shutil.rmtree(Path(job["work"], "out"))  # the next round has no run to overwrite
    return result


def run_clm_start(job):
    """What transformers' example script does on the way: its imports, `load_dataset`, tokenizing and grouping by `map`,
    Trainer."""
    from itertools import chain

    import datasets
    import evaluate  # noqa: F401  the script imports it for its metric
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        Trainer,
        TrainerCallback,
        TrainingArguments,
        default_data_collator,
    )

    T = job["shape"]["block_size"]
    with tempfile.TemporaryDirectory(dir=job["work"]) as cache:
        raw = datasets.load_dataset(
            "text", data_files={"train": f"{job['work']}/text.txt"}, keep_linebreaks=True, cache_dir=cache
        )
        tokenizer = AutoTokenizer.from_pretrained(job["weights"])
        model = AutoModelForCausalLM.from_pretrained(job["weights"])

        def group(rows):
            joined = {name: list(chain(*lists)) for name, lists in rows.items()}
            length = len(joined["input_ids"]) // T * T
            blocks = {name: [values[i : i + T] for i in range(0, length, T)] for name, values in joined.items()}
            return blocks | {"labels": [list(block) for block in blocks["input_ids"]]}

        tokenized = raw.map(lambda rows: tokenizer(rows["text"]), batched=True, remove_columns=["text"])
        train, updates = tokenized.map(group, batched=True)["train"], []

        class Watch(TrainerCallback):
            def on_log(self, args, state, control, logs=None, **more):
                if "loss" in logs:
                    updates.append((len(updates), logs["loss"], time.time()))

        arguments = TrainingArguments(
            f"{job['work']}/run_clm",
            max_steps=job["shape"]["max_iters"],
            per_device_train_batch_size=1,
            learning_rate=3e-5,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        )
        trainer = Trainer(
            model,
            arguments,
            train_dataset=train,
            processing_class=tokenizer,
            data_collator=default_data_collator,
            callbacks=[Watch()],
        )
        trainer.train()
    return _training(job, Peak(job), updates)


def nanogpt_train(job):
    """nanoGPT's own train.py, told by torch.randint which blocks to read. Before its first update it evaluates one
    batch of each split."""
    import builtins
    import re

    import torch

    rows, shape, updates, peak = json.loads(Path(job["work"], "rows.json").read_text()), job["shape"], [], Peak(job)
    starts, B = [row * shape["block_size"] for row in rows], shape["batch_size"]
    starts = iter(starts[:B] + [0] * (2 * B) + starts[B:] + [0] * B)  # it reads one batch ahead
    torch.randint = lambda high, size: torch.tensor([next(starts) for _ in range(size[0])])

    def told(*words, say=builtins.print, **more):
        if found := re.match(r"iter (\d+): loss ([\d.]+)", str(words[0]) if words else ""):
            updates.append((int(found[1]), float(found[2]), time.time()))
            peak.look()
        say(*words, **more)

    builtins.print = told
    flags = {
        "dataset": f"{job['work']}/data",
        "out_dir": f"{job['work']}/nanogpt",
        "init_from": "resume",
        "device": job["device"],
        "eval_interval": 10**9,
        "eval_iters": 1,
        "log_interval": job["log_interval"],
        "learning_rate": 3e-5,
        "decay_lr": False,
        "wandb_log": False,
        **shape,
        "max_iters": shape["max_iters"] - 1,
        **job["options"],
    }
    _run_nanogpt(job, "train.py", flags)
    return _training(job, peak, updates)


def nanogpt_setup(job):
    """The weights as a checkpoint that nanoGPT resumes at its first update."""
    import torch

    sys.path.insert(0, job["nanogpt"])
    from model import GPT, GPTConfig

    from finetune import GPT as Ours

    ours = Ours.from_pretrained(job["weights"])
    c = ours.config
    shape = {
        "n_layer": c.n_layer,
        "n_head": c.n_head,
        "n_embd": c.n_embd,
        "block_size": c.block_size,
        "bias": True,
        "vocab_size": c.vocab_size,
    }
    model = GPT(GPTConfig(**shape, dropout=0.0))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(ours.get_parameter(name.removeprefix("transformer."))[: parameter.size(0)])
    optimizer = model.configure_optimizers(0.1, 3e-5, (0.9, 0.95), job["device"])
    folder = Path(job["work"], "nanogpt")
    folder.mkdir(exist_ok=True)
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "model_args": shape,
        "iter_num": 0,
        "best_val_loss": 1e9,
    }
    torch.save({**state, "config": {"dataset": f"{job['work']}/data"}}, folder / "ckpt.pt")
    return {}


# sampling: seconds of each call, after one that does not count
def finetune_sample(job):
    import torch

    from finetune import GPT
    from finetune.runtime import device as devices

    device = torch.device(job["device"])
    if device.type == "cpu":
        devices.keep_heap()
        devices.use_all_cores()
    model = GPT.from_pretrained(job["weights"]).to(device, getattr(torch, job["dtype"])).eval()
    return _sampling(job, lambda idx, new, **how: model.generate(idx.to(device), new, **how))


def generate_sample(job):
    import torch
    from transformers import GPT2LMHeadModel

    device = torch.device(job["device"])
    model = GPT2LMHeadModel.from_pretrained(job["weights"], dtype=getattr(torch, job["dtype"])).to(device).eval()

    def write(idx, new, temperature, top_k):
        how = {"do_sample": True, "temperature": temperature, "top_k": top_k} if temperature else {"do_sample": False}
        mask = torch.ones_like(idx).to(device)
        return model.generate(
            idx.to(device),
            attention_mask=mask,
            max_new_tokens=new,
            min_new_tokens=new,
            pad_token_id=0,
            eos_token_id=None,
            **how,
        )

    return _sampling(job, write)


def _sampling(job, write):
    import torch

    idx = torch.full((job["batch"], 16), 11)
    greedy = write(idx[:1], 20, temperature=0, top_k=None).tolist() if job["dtype"] == "float32" else None
    seconds = []
    for _ in range(1 + job["calls"]):
        began = time.perf_counter()
        out = write(idx, job["tokens"], temperature=0.8, top_k=200)
        out.cpu()
        seconds.append(time.perf_counter() - began)
    assert out.shape == (job["batch"], 16 + job["tokens"])
    return {"seconds": seconds[1:], "greedy": greedy}


# loading: milliseconds of one batch
def finetune_load(job):
    import numpy as np

    from finetune.data import arrow_cache
    from finetune.data import dataset as data_dataset
    from finetune.data.batches import Blocks
    from finetune.data.sampler import BlockSampler

    shape = job["shape"]
    dataset = data_dataset.load(Path(job["work"], "data"))
    contents = data_dataset.scan(dataset, "train")
    blocks = Blocks.from_arrow(arrow_cache.open_cache(dataset, "train", shape["block_size"], contents), contents.tokens)
    order = BlockSampler(blocks.num_rows, shape["batch_size"], 1337)
    np.asarray(order.rows(0))
    return _loading(lambda i: blocks.batch(order.rows(i)))


def nanogpt_load(job):
    """get_batch as nanoGPT's train.py has it."""
    import numpy as np
    import torch

    text = Path(job["nanogpt"], "train.py").read_text()
    source = text[text.index("def get_batch") : text.index("# init these up here")]
    scope = {
        "np": np,
        "torch": torch,
        "os": os,
        "data_dir": f"{job['work']}/data",
        "device_type": "cpu",
        "device": "cpu",
    }
    scope |= {name: job["shape"][name] for name in ("block_size", "batch_size")}
    exec(source, scope)
    return _loading(lambda i: scope["get_batch"]("train"))


def trainer_load(job):
    """What run_clm's Trainer collates: three int64 columns of a `datasets` cache."""
    import numpy as np
    from datasets import Dataset
    from torch.utils.data import DataLoader
    from transformers import default_data_collator

    T = job["shape"]["block_size"]
    ids = np.fromfile(f"{job['work']}/data/train.bin", dtype=np.uint16)
    rows = ids[: len(ids) // T * T].reshape(-1, T)[:2000].astype(np.int64)
    dataset = Dataset.from_dict(
        {"input_ids": list(rows), "attention_mask": list(np.ones_like(rows)), "labels": list(rows)}
    )
    batches = iter(
        DataLoader(dataset, batch_size=job["shape"]["batch_size"], shuffle=True, collate_fn=default_data_collator)
    )
    return _loading(lambda i: next(batches), count=100)


def _loading(batch, count=300):
    import torch

    torch.set_num_threads(1)
    for i in range(20):
        batch(i)
    began = time.process_time()
    for i in range(20, 20 + count):
        batch(i)
    return {"milliseconds": (time.process_time() - began) / count * 1000}


def finetune_prepare(job):
    """A text to bins, the whole command from its imports on, in MB/s, and the peak of its memory."""
    from finetune.data.prepare import prepare

    dataset = prepare([job["text"]], Path(job["work"], "prepared"), "gpt2")
    return _preparing(job, sum(dataset.num_tokens(split) for split in ("train", "val")))


def tiktoken_prepare(job):
    """Only the encoding of the same text, in batches of a megabyte a piece, on as many threads as there are cores."""
    import tiktoken

    encoding, cores, tokens, job["began"] = tiktoken.get_encoding("gpt2"), len(os.sched_getaffinity(0)), 0, None
    seconds = 0.0
    with open(job["text"], encoding="utf-8") as file:
        while pieces := [piece for _ in range(16) if (piece := file.read(1 << 20))]:
            began = time.perf_counter()
            tokens += sum(map(len, encoding.encode_ordinary_batch(pieces, num_threads=cores)))
            seconds += time.perf_counter() - began
    return _preparing(job | {"began": time.time() - seconds}, tokens)


def _preparing(job, tokens):
    seconds = time.time() - job["began"]
    return {"mb_per_second": os.path.getsize(job["text"]) / 1e6 / seconds, "peak_mb": Peak.resident(), "tokens": tokens}


def finetune_doctor(job):
    """The examination of a prepared directory."""
    from finetune.data import dataset as datasets
    from finetune.tools.doctor import quality

    began, cpu = time.perf_counter(), time.process_time()
    dataset = datasets.load(job["dataset"])
    facts = quality.examine_dataset(dataset)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    size = sum(split["bytes"] for split in dataset.meta["splits"].values())
    findings = {kind: found["count"] for kind, found in facts["findings"].items()}
    figures = {"mb_per_second": size / 1e6 / seconds, "cpu_ns_per_byte": cpu / size * 1e9}
    return {**figures, "peak_mb": Peak.resident(), "findings": findings}


def finetune_convert(job):
    """train.bin to Arrow, in MB/s, and how much memory that took on top."""
    from finetune.data import arrow_cache
    from finetune.data import dataset as data_dataset

    dataset = data_dataset.load(Path(job["work"], "data"))
    contents = data_dataset.BinStats(tokens=os.path.getsize(dataset.bin("train")) // 2, sha256="0" * 64, largest=0)
    arrow_cache.cache_folders(dataset)  # imports
    before, began = Peak.resident(), time.perf_counter()
    arrow_cache.build_consecutive(
        dataset, "train", Path(job["work"], f"{contents.sha256}.arrow"), job["shape"]["block_size"]
    )
    seconds = time.perf_counter() - began
    return {"mb_per_second": contents.tokens * 2 / 1e6 / seconds, "grown_mb": Peak.resident() - before}


class Peak:
    """The most memory that training had at a time, in MB."""

    def __init__(self, job):
        self.on_gpu, self.looked, self.mb = job["device"] == "cuda", False, 0.0

    def look(self):
        """To be called after each update: counts from the end of the first one, when whatever came before is
        forgotten."""
        import torch

        if self.on_gpu and not self.looked:
            torch.cuda.reset_peak_memory_stats()
        elif self.on_gpu:
            self.mb = torch.cuda.max_memory_allocated() / 2**20
        self.looked = True

    @staticmethod
    def resident():
        """Peak resident size of this process. Not ru_maxrss, which begins with that of the process that started it."""
        status = Path("/proc/self/status")
        if status.exists():
            return next(
                int(line.split()[1]) / 1024 for line in status.read_text().splitlines() if line.startswith("VmHWM")
            )
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _training(job, peak, updates):
    iters, losses, stamps = zip(*updates)
    stamps = [stamp - job["began"] for stamp in stamps]
    return {"iters": iters, "losses": losses, "stamps": stamps, "peak_mb": peak.mb if peak.on_gpu else peak.resident()}


def _run_nanogpt(job, script, flags):
    os.chdir(job["nanogpt"])
    sys.path.insert(0, job["nanogpt"])
    sys.argv = [script, *(f"--{name}={value}" for name, value in flags.items())]
    runpy.run_path(script, run_name="__main__")


def _without_datasets():
    """Blocks straight from the bin where `datasets` is not installed."""
    from importlib.util import find_spec

    import numpy as np

    from finetune.data import arrow_cache
    from finetune.data.batches import Blocks

    if not find_spec("datasets"):
        arrow_cache.open_cache = lambda dataset, split, block_size, contents, isolated: (
            np.memmap(dataset.bin(split), dtype=np.uint16, mode="r"),
            block_size,
        )
        Blocks.from_arrow = classmethod(lambda cls, opened, tokens: cls.from_tokens(*opened))


if __name__ == "__main__":
    main(sys.argv[1])
