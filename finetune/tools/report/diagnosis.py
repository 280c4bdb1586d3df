"""What is wrong with a run: the guide's seven issues, and the end without a word, as rules over what the run left.

Each rule looks at a `Record` and returns a Finding or None. What a run says of itself while it goes on
(`guard.warnings`) is where the rules about losses begin. A finding has its evidence in numbers and the command that
would help; a healthy run has none."""

import shlex
import shutil
import statistics
from dataclasses import dataclass
from pathlib import Path

from finetune.common.formatting import duration
from finetune.config.recipe import LORA_RATE
from finetune.runs import warning_signs
from finetune.tools.report.record import MISSING

# label: what it is called, and the guide's number of it
ISSUES = {
    "out_of_memory": ("out of memory", 1),
    "missing_checkpoint": ("a checkpoint is missing", 6),
    "interrupted": ("the run did not end by itself", None),
    "gibberish": ("training went wrong, so the output is gibberish", 3),
    "not_learning": ("the loss does not fall", 2),
    "overfitting": ("the text is learned by heart", 5),
    "slow": ("training is slow", 4),
    "disappointing": ("less than could be had", 7),
}
ENOUGH_UPDATES = 20  # fewer are a try, from which nothing follows
STILL = {True: 0.02, False: 0.05}  # pretrained: nats; from scratch: share of the first loss. A smaller fall is none
RISE = 0.03  # of the best loss: both losses this far above it are no noise
STEEP = 0.1  # of all that was gained, in the last fifth of a run: it ended too early
FEW_TOKENS = 100_000  # to train on, below which the guide warns
LOW_MFU = 0.1  # on a GPU, where the guide calls 15% to 25% typical
PATIENT = 600  # seconds a run may take before anybody calls it slow
DAY = 86_400
NEARLY_ALL = 0.8  # of the memory
COPIED = 0.5  # of the n-grams of samples


@dataclass
class Finding:
    label: str  # one of ISSUES
    evidence: list  # lines with numbers
    advice: str
    command: str | None = None


def diagnose(run):
    """The Findings of a Record, the gravest first; [] for a healthy run."""
    rules = (
        _out_of_memory,
        _missing_checkpoint,
        _interrupted,
        _gibberish,
        _not_learning,
        _overfitting,
        _slow,
        _disappointing,
    )
    found = {finding.label: finding for rule in rules if (finding := rule(run))}
    if found.keys() & {"out_of_memory", "missing_checkpoint"}:  # which say why
        found.pop("interrupted", None)
    if len(found) > 1:  # whoever has another trouble need not be told to train on
        found.pop("disappointing", None)
    return list(found.values())


def screen(findings):
    """The findings as text, with all their evidence."""
    lines = []
    for finding in findings:
        title = ISSUES[finding.label][0]
        lines.append(f"{finding.label}: {title}")
        lines += [f"  {line}" for line in finding.evidence]
        lines.append(f"  -> {finding.advice}")
        lines += [f"     {finding.command}"] if finding.command else []
    return "\n".join(lines)


def brief(findings):
    """The gravest finding in two lines at most."""
    if not findings:
        return []
    first = findings[0]
    also = f" (also {', '.join(finding.label for finding in findings[1:])})" if len(findings) > 1 else ""
    lines = [f"diagnosis: {first.label}: {first.evidence[0]}{also}"]
    return lines + ([f"what would help: {first.command}"] if first.command else [])


def _out_of_memory(run):
    failed = run.failure
    evidence = []
    if failed and "out of memory" in failed["problem"]:
        evidence.append(failed["problem"].splitlines()[0])
    elif (used := _memory_at_the_end(run)) and _killed(run) and used[0] > NEARLY_ALL * used[1]:
        evidence.append(
            f"it ended without a word after {run.done:,} updates, with {used[0] / 1e9:.1f} of {used[1] / 1e9:.1f} GB of"
            " memory in use"
        )
    if not evidence:
        return None
    tries = [event["done"].split(";")[0] for event in run.session if event["event"] == "out_of_memory"]
    evidence += [f"tried by itself: {'; '.join(tries)}"] if tries else []
    more, advice, command = _less_memory(run, tries)
    return Finding("out_of_memory", evidence + more, advice, command)


def _less_memory(run, tries):
    """`(evidence, advice, command)` of the first step down that a run has not taken: those of `memory.what_would_fit`
    after those that change nothing that is learned."""
    recipe, parameters, sharded = run.recipe, run.parameters, "sharded" in run.started.get("machine", "")
    sizes = {name: _newest(run, name) for name in ("batch_size", "gradient_accumulation_steps")}
    batch, steps = sizes.values()
    chooses = "" if sharded else "; memory=auto would choose what fits"
    if batch and batch > 1:
        smaller = next(n for n in range(batch // 2, 0, -1) if batch % n == 0)
        flags = {"batch_size": smaller, "gradient_accumulation_steps": steps * batch // smaller}
        return [], f"smaller micro-batches, at the same blocks an update{chooses}", _go_on(run, **flags)
    if not recipe.get("gradient_checkpointing") and not any("gradient_checkpointing=true" in done for done in tries):
        return [], f"recompute activations instead of keeping them{chooses}", _go_on(run, gradient_checkpointing="true")
    reached = {name: size for name, size in sizes.items() if size != recipe.get(name)} | {
        "gradient_checkpointing": "true"
    }
    if not sharded and not recipe.get("lora_rank"):
        if recipe.get("optimizer_dtype", "float32") == "float32":
            told = (
                [f"AdamW's moments in float32 take {8 * parameters / 1e9:.2f} GB, in bfloat16 half of that"]
                if parameters
                else []
            )
            return (
                told,
                "moments in bfloat16; they are rounded, so this learns a little differently",
                _go_on(run, **reached, optimizer_dtype="bfloat16"),
            )
        if _pretrained(run):
            told = (
                [f"gradients and moments of all {parameters:,} parameters take {8 * parameters / 1e9:.2f} GB"]
                if parameters
                else []
            )
            rate = _tidy(max(recipe.get("learning_rate") or 0, LORA_RATE))
            return (
                told,
                "adapters instead of all weights",
                _again(run, **reached, lora_rank=16, learning_rate=rate, min_lr=None),
            )
    smaller = {"gpt2-xl": "gpt2-large", "gpt2-large": "gpt2-medium", "gpt2-medium": "gpt2"}.get(run.init_from)
    flags = {"init_from": smaller} if smaller else {"block_size": max(1, (recipe.get("block_size") or 1024) // 2)}
    return [], f"a smaller {'model' if smaller else 'block_size'}: one block of this does not fit", _again(run, **flags)


def _missing_checkpoint(run):
    if run.running:
        return None
    refused, failed = _last(run, "save_failed"), run.failure
    # a run that failed before its first evaluation ended has no best/, and another trouble than that
    damaged = {name: problem for name, problem in run.damaged.items() if problem != MISSING or refused or not failed}
    if not damaged and not (refused and failed):
        return None
    evidence = [refused["problem"]] if refused else []
    evidence += [f"{run.out_dir / name}: {problem}" for name, problem in damaged.items()]
    evidence += [f"the run ended with: {failed['problem'].splitlines()[0]}"] if failed else []
    killed = ", as after SIGKILL or a power cut" if _killed(run) else ""
    evidence.append(f"the last that was recorded is update {run.done:,} of {run.length:,}{killed}")
    if refused:
        return Finding(
            "missing_checkpoint",
            evidence,
            f"make room first: df -h {shlex.quote(str(run.out_dir))} shows it",
            _go_on(run),
        )
    if run.states:
        return Finding(
            "missing_checkpoint",
            evidence,
            f"{run.states[0]} is whole, and the next evaluation writes best/",
            _go_on(run),
        )
    return Finding(
        "missing_checkpoint",
        evidence,
        "there is no state to go on from; save_interval says how often one is kept",
        _start_anew(run),
    )


def _interrupted(run):
    failed = run.failure
    if failed and failed.get("code") != 3:
        return Finding(
            "interrupted",
            [f"after {run.done:,} updates: {failed['problem'].splitlines()[0]}"],
            "go on from the last state",
            _go_on(run),
        )
    if _killed(run):
        left = f"{run.done:,} of {run.length:,} updates"
        words = "no end, no signal and no error was recorded, as after SIGKILL, a lack of memory or a power cut"
        return Finding("interrupted", [f"after {left}: {words}"], "go on from the last state", _go_on(run))
    return None


def _gibberish(run):
    signs, best = _warnings(run), run.best
    rate = run.recipe.get("learning_rate")
    if "start" in signs and _pretrained(run):
        named = [source.get("name") for part in run.data for source in part.meta.get("sources", [])][:1] or ["SOURCE"]
        tokenizer = run.init_from if run.init_from and Path(run.init_from).is_dir() else "gpt2"
        command = shlex.join(
            ["python", "-m", "finetune.prepare", str(named[0]), f"--tokenizer={tokenizer}", "--out_dir=data/again"]
        )
        return Finding("gibberish", [signs["start"]], "prepare the text with the tokenizer of the model", command)
    evidence = []
    failed, tried = run.failure, [event for event in run.session if event["event"] == "rollback"]
    if failed and failed.get("code") == 3:
        evidence.append(failed["problem"].splitlines()[0])
    if best:
        last = run.evaluations[-1]
        rise = max(0.1, RISE * best["val_loss"])
        if last["val_loss"] > best["val_loss"] + rise and last["train_loss"] > best["train_loss"] + rise:
            evidence.append(
                f"val loss {best['val_loss']:.4f} at step {best['step']} -> {last['val_loss']:.4f} at step"
                f" {last['step']}, and train loss {best['train_loss']:.4f} -> {last['train_loss']:.4f}: both rise"
            )
    if not evidence:
        return None
    evidence += (
        [f"went back {len(tried)} times, at last with learning rates times {tried[-1]['lr_scale']:g}"] if tried else []
    )
    evidence.append(f"learning_rate was {rate:g}" if rate is not None else "learning_rate is not recorded")
    advice = "a tenth of the learning rate" + (
        f"; until then best/ keeps step {best['step']}" if best and best["step"] else ""
    )
    return Finding("gibberish", evidence, advice, _again(run, learning_rate=_tidy((rate or 3e-5) / 10), min_lr=None))


def _not_learning(run):
    first, best = _first_and_best(run)
    if not best or run.done - first["step"] < ENOUGH_UPDATES or _gibberish(run):
        return None
    gained, learned = (
        first["val_loss"] - best["val_loss"],
        first["train_loss"] - min(e["train_loss"] for e in run.evaluations),
    )
    still = STILL[True] if _pretrained(run) else STILL[False] * first["val_loss"]
    if max(gained, learned) >= still:
        return None
    rate, tokens = run.recipe.get("learning_rate") or 0.0, _tokens(run)
    evidence = [
        (
            f"val loss {first['val_loss']:.4f} at step {first['step']} -> {best['val_loss']:.4f} at best, train loss"
            f" {first['train_loss']:.4f} -> {run.evaluations[-1]['train_loss']:.4f}, after {run.done:,} updates"
        ),
        f"learning_rate {rate:g}",
    ]
    evidence += [line for name, line in _warnings(run).items() if name == "known"]
    evidence += (
        [f"{tokens:,} tokens to train on; fewer than {FEW_TOKENS:,} are few"]
        if tokens is not None and tokens < FEW_TOKENS
        else []
    )
    higher = max(3 * rate, 3e-5 if _pretrained(run) else 3e-4)
    return Finding(
        "not_learning", evidence, "a higher learning rate", _again(run, learning_rate=_tidy(higher), min_lr=None)
    )


def _overfitting(run):
    signs, (first, best) = _warnings(run), _first_and_best(run)
    if not best or _gibberish(run):
        return None
    last, evidence = run.evaluations[-1], []
    kept = run.ended_early and best["step"] > first["step"]  # patience has answered it already
    if "overfitting" in signs and not kept:
        evidence.append(signs["overfitting"].removeprefix("overfitting: "))
    elif "gap" in signs and not kept and last["val_loss"] > best["val_loss"] * (1 + RISE):
        evidence.append(
            f"val loss {best['val_loss']:.4f} at step {best['step']} -> {last['val_loss']:.4f} at step {last['step']}"
        )
    if evidence and "gap" in signs:
        evidence.append(signs["gap"].removeprefix("gap: "))
    copied = (run.newest("evaluation") or {}).get("memorisation") or {}
    if copied.get("copied", 0) > COPIED:
        evidence.append(
            f"{copied['copied']:.0%} of the {copied['ngram']}-grams of samples stand in the training data,"
            f" {copied['longest']} tokens in a row"
        )
    if not evidence:
        return None
    passes = _passes(run, last["step"])
    evidence += [f"{last['step']:,} updates were {passes:.1f} passes over {_tokens(run):,} tokens"] if passes else []
    advice = f"best/ keeps step {best['step']}. More text helps most; with this one, stop sooner and use dropout"
    flags = {
        "dropout": run.recipe.get("dropout") or 0.1,
        "patience": run.recipe.get("patience") or 5,
        "lr_decay_iters": None,
    }
    flags["max_iters"] = max(1, best["step"] or run.evaluations[min(1, len(run.evaluations) - 1)]["step"] // 4)
    if best["step"] == first["step"]:
        flags["eval_interval"] = max(1, flags["max_iters"] // 10)
    return Finding("overfitting", evidence, advice, _again(run, **flags))


def _slow(run):
    seconds, speed, mfu = run.seconds_an_update, run.median("tokens_per_second"), run.median("mfu")
    if None in (seconds, speed, mfu) or seconds * run.length < PATIENT:
        return None
    recipe, machine = run.recipe, run.started.get("machine", "")
    whole = f"{run.length:,} updates at {duration(seconds)} each take {duration(seconds * run.length)}"
    pace = f"{speed:,.0f} tok/s, mfu {mfu:.1%}, {machine}"
    if _slower(run):
        early, late = _slower(run)
        return Finding(
            "slow",
            [f"an update took {early:.2f}s at first and {late:.2f}s lately", pace],
            "something else has come to use this computer: look with top or nvidia-smi",
        )
    if " on cuda" in machine:
        if mfu >= LOW_MFU:
            return None
        if recipe.get("compile") == "false":
            return Finding(
                "slow", [pace, whole, "compile=false"], "let the network be compiled", _go_on(run, compile="auto")
            )
        if recipe.get("dtype") == "float32":
            return Finding(
                "slow",
                [pace, whole, "dtype=float32"],
                "products in the arithmetic that the card is fast at",
                _go_on(run, dtype="auto"),
            )
        batch = f"{(_newest(run, 'batch_size') or 1) * (recipe.get('block_size') or 1024):,} tokens a micro-batch"
        return Finding(
            "slow",
            [pace, whole, batch],
            "larger micro-batches, at the same blocks an update",
            _go_on(run, batch_size="auto"),
        )
    if seconds * run.length < DAY:
        return None
    evidence = [whole, pace]
    if shutil.which("nvidia-smi") and recipe.get("device") != "cpu":
        evidence.append(
            "there is an NVIDIA driver, but PyTorch sees no CUDA: python -c 'import torch; print(torch.version.cuda)'"
        )
    fits = max(1, int(DAY / seconds))
    return Finding(
        "slow",
        evidence,
        f"a GPU; or what a day on this CPU allows, {fits:,} updates",
        _again(run, max_iters=fits, lr_decay_iters=None),
    )


def _disappointing(run):
    first, best = _first_and_best(run)
    measured = run.newest("evaluation") or {}
    difference = (measured.get("difference") or {}).get("mean")
    with_its_base = (measured.get("baseline") or {}).get("name") == run.recipe.get("init_from") and measured.get(
        "split"
    ) == "val"
    if difference is not None and difference >= 0 and with_its_base:
        evidence = [
            f"on {measured.get('split')}, {measured['loss']:.4f} nats a token, {difference:+.4f} against"
            f" {measured['baseline']['name']}"
        ]
        return Finding("disappointing", evidence + _dirty(run), "look at the data first", _doctor(run))
    general = measured.get("general") or {}
    if general.get("loss", 0) - general.get("baseline_loss", 0) > 1.0:
        evidence = [
            f"on a general text, loss {general['baseline_loss']:.4f} before and {general['loss']:.4f} after: it forgot"
            " what it could do"
        ]
        rate = run.recipe.get("learning_rate") or 3e-5
        return Finding(
            "disappointing",
            evidence,
            "a third of the learning rate",
            _again(run, learning_rate=_tidy(rate / 3), min_lr=None),
        )
    if (
        not best
        or not run.ended
        or run.ended_early
        or run.done < ENOUGH_UPDATES
        or best["step"] != run.evaluations[-1]["step"]
    ):
        return None
    before = next((e for e in reversed(run.evaluations) if e["step"] <= 0.8 * best["step"]), first)
    if before["step"] == first["step"]:  # nothing was measured on the way
        return None
    gained, lately = first["val_loss"] - best["val_loss"], before["val_loss"] - best["val_loss"]
    per_update = lately / max(1, best["step"] - before["step"])  # evaluations need not lie where a fifth begins
    if lately < STILL[True] or per_update * 0.2 * best["step"] < STEEP * gained:
        return None
    evidence = [
        (
            f"val loss {before['val_loss']:.4f} at step {before['step']} -> {best['val_loss']:.4f} at the end, step"
            f" {best['step']}: still falling, {lately / gained:.0%} of all that was gained"
        ),
        *_dirty(run),
    ]
    key = "epochs" if run.recipe.get("epochs") and run.length < run.recipe.get("max_iters", 0) else "max_iters"
    flags = {key: 2 * run.recipe["epochs"] if key == "epochs" else 2 * run.length, "lr_decay_iters": None}
    return Finding("disappointing", evidence, "train on: twice as long, from where it is", _go_on(run, **flags))


def _warnings(run):
    """The signs that were said while the run went on, from where it is now."""
    return warning_signs.warning_signs(run.evaluations, run.vocab_size, _pretrained(run)) if run.evaluations else {}


def _pretrained(run):
    return run.init_from != "scratch"


def _first_and_best(run):
    return (run.evaluations[0], run.best) if run.evaluations else ({}, {})


def _last(run, kind):
    """The last event of a kind since the newest start."""
    return next((event for event in reversed(run.session) if event["event"] == kind), None)


def _killed(run):
    return (
        bool(run.started)
        and not run.running
        and not any(event["event"] in ("end", "stop", "failed") for event in run.session)
    )


def _memory_at_the_end(run):
    """`(used, there)` in bytes, where they were recorded."""
    used = next((event["memory"] for event in reversed(run.session) if "memory" in event), None)
    return (used, run.started["memory"]) if used and run.started.get("memory") else None


def _newest(run, name):
    """A size of the recipe as the run last had it: out of memory, it makes its micro-batches smaller by itself."""
    return next(
        (event[name] for event in reversed(run.session) if event["event"] in ("out_of_memory", "batch_size")),
        run.recipe.get(name),
    )


def _slower(run):
    """`(early, late)` seconds an update, where the last quarter took twice as long as the first."""
    seconds = [event["seconds"] for event in run.session if event["event"] == "iter" and "seconds" in event][1:]
    quarter = len(seconds) // 4
    if quarter < 3:
        return None
    early, late = statistics.median(seconds[:quarter]), statistics.median(seconds[-quarter:])
    return (early, late) if late > 2 * early else None


def _tokens(run):
    known = [part.split("train").get("tokens") for part in run.data]
    return sum(known) if known and None not in known else None


def _passes(run, updates):
    rows = run.started.get("identity", {}).get("rows per iteration (batch_size x gradient_accumulation_steps)")
    return (
        updates * rows * run.recipe["block_size"] / _tokens(run)
        if rows and run.recipe.get("block_size") and _tokens(run)
        else None
    )


def _dirty(run):
    """What the doctor found in the data."""
    lines = []
    for part in run.data:
        counts = ", ".join(f"{found['count']:,} {kind.replace('_', ' ')}" for kind, found in part.findings.items())
        lines += [f"the doctor found in {part.directory}: {counts}"] if counts else []
    return lines


def _doctor(run):
    directories = [part.directory for part in run.data if part.directory]
    return f"python -m finetune.doctor {shlex.quote(str(directories[0]))}" if directories else None


def _go_on(run, **flags):
    """The command that resumes a run, or starts it anew where it left no state."""
    return _train(run, init_from="resume", **flags) if run.states else _start_anew(run, **flags)


def _start_anew(run, **flags):
    return _train(run, overwrite="true", **flags)


def _again(run, **flags):
    """The command that trains another run like this one, beside it."""
    number = 2
    while Path(f"{run.out_dir}-{number}").exists():
        number += 1
    return _train(run, **flags, out_dir=f"{run.out_dir}-{number}")


def _train(run, **flags):
    """Flags that are None take back what the recipe says, and stand only where it says something."""
    flags = {
        name: "none" if value is None else value
        for name, value in flags.items()
        if value is not None or name in _set(run)
    }
    return " ".join(
        [
            "accelerate launch -m finetune.train",
            shlex.quote(str(run.out_dir / "recipe.yaml")),
            *(shlex.quote(f"--{name}={value}") for name, value in flags.items()),
        ]
    )


def _set(run):
    """The keys of the run's recipe that were not worked out."""
    import yaml

    try:
        recipe = yaml.safe_load((run.out_dir / "recipe.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return set()
    return {name for name, value in recipe.items() if value is not None} if isinstance(recipe, dict) else set()


def _tidy(value):
    return f"{value:.2g}"
