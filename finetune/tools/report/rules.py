"""One rule for each kind of problem: a function of a run that returns a Finding or None."""

from __future__ import annotations

import shutil
import statistics
from dataclasses import dataclass
from typing import Any

from finetune.common.commands import join
from finetune.common.formatting import duration, is_number
from finetune.runs import thresholds
from finetune.runs.warning_signs import warning_signs
from finetune.tools.report import remedies
from finetune.tools.report.record import MISSING, Record


@dataclass
class Finding:
    label: str  # a key of diagnosis.ISSUES
    evidence: list[str]  # lines with numbers
    advice: str
    command: str | None = None


def out_of_memory(run: Record) -> Finding | None:
    used = next((event["memory"] for event in reversed(run.session) if "memory" in event), 0)
    total, machine = run.started.get("memory") or 0, run.started.get("machine", "")  # a full GPU raises an error
    if run.failure and "out of memory" in run.failure["problem"]:
        evidence = [run.failure_line]
    elif run.killed and total and " on cuda" not in machine and used > thresholds.FULL_MEMORY * total:
        memory = f"{used / 1e9:.1f} of {total / 1e9:.1f} GB of memory in use"
        evidence = [f"it ended without an error after {run.done:,} updates, with {memory}"]
    else:
        return None
    tries = [event["done"].split(";")[0] for event in run.in_session("out_of_memory")]
    if tries:
        evidence.append(f"the run itself tried: {'; '.join(tries)}")
    more, advice, command = remedies.less_memory(run, tries)
    return Finding("out_of_memory", evidence + more, advice, command)


def missing_checkpoint(run: Record) -> Finding | None:
    if run.running:
        return None
    refused, failed, damaged = run.in_session("save_failed"), run.failure, run.damaged
    # a run that failed or was stopped before its first evaluation has no best/ yet
    if (failed and not refused) or (run.stop_signal and not run.evaluations):
        damaged = {name: problem for name, problem in damaged.items() if problem != MISSING}
    if not damaged and not (refused and failed):
        return None
    evidence = [event["problem"] for event in refused[-1:]]
    evidence += [f"{run.out_dir / name}: {problem}" for name, problem in damaged.items()]
    if failed:
        evidence.append(f"the run ended with: {run.failure_line}")
    killed = ", as after SIGKILL or a power cut" if run.killed else ""
    evidence.append(f"the last recorded update is {run.done:,} of {run.length:,}{killed}")
    command = remedies.resume(run)
    if refused:
        advice = f"free some disk space first: df -h {join([str(run.out_dir)])} shows it"
    elif run.states:
        advice = f"{run.states[0]} is complete"
        advice += ", and the next evaluation writes best/" if "best" in damaged else ""
    else:
        advice = "there is no state to resume from; save_interval says how often one is saved"
        command = remedies.restart(run)
    return Finding("missing_checkpoint", evidence, advice, command)


def interrupted(run: Record) -> Finding | None:
    if run.failure and run.failure.get("code") != 3:
        evidence = f"after {run.done:,} updates: {run.failure_line}"
    elif run.killed:
        causes = "no end, signal or error was recorded, as after SIGKILL, OOM or a power cut"
        evidence = f"after {run.done:,} of {run.length:,} updates: {causes}"
    else:
        return None
    return Finding("interrupted", [evidence], "resume from the last state", remedies.resume(run))


def gibberish(run: Record) -> Finding | None:
    signs, best, rate = _warning_signs(run), run.best, run.recipe.get("learning_rate")
    if "start" in signs and run.pretrained:
        advice = f"see whether {run.init_from} holds trained weights"
        # else training has compared the tokenizer of the data with the model's, and no command would change it
        if not run.data or not all(part.meta.get("tokenizer") for part in run.data):
            advice = f"prepare the text with the model's tokenizer, or {advice}"
        return Finding("gibberish", [signs["start"]], advice)
    evidence = []
    if run.failure and run.failure.get("code") == 3:
        evidence.append(run.failure_line)
    if best:
        last, rise = run.evaluations[-1], max(thresholds.DIVERGED_RISE, thresholds.RISE * best["val_loss"])
        if all(last[loss] > best[loss] + rise for loss in ("val_loss", "train_loss")):
            train_losses = f"train loss {best['train_loss']:.4f} -> {last['train_loss']:.4f}"
            evidence.append(f"val loss {_change(best, last)}, and {train_losses}: both rise")
    if not evidence:
        return None
    if rollbacks := run.in_session("rollback"):
        scale = rollbacks[-1]["lr_scale"]
        evidence.append(f"rolled back {len(rollbacks)} times, at last with learning rates times {scale:g}")
    evidence.append("learning_rate is not recorded" if rate is None else f"learning_rate was {rate:g}")
    advice = "a tenth of the learning rate"
    if best and best["step"]:
        advice += f"; until then best/ keeps step {best['step']}"
    return Finding("gibberish", evidence, advice, remedies.train_at_rate(run, (rate or 3e-5) / 10))


def not_learning(run: Record) -> Finding | None:
    if not run.evaluations:
        return None
    first, best, last = run.evaluations[0], run.best, run.evaluations[-1]
    if last["step"] - first["step"] < thresholds.ENOUGH_UPDATES:  # later updates have not been evaluated
        return None
    least_train = min(evaluation["train_loss"] for evaluation in run.evaluations)
    gained = max(first["val_loss"] - best["val_loss"], first["train_loss"] - least_train)
    least_gain, least_rate = thresholds.LEAST_GAIN, thresholds.LEAST_RATE
    if not run.pretrained:
        least_gain = thresholds.LEAST_SHARE_GAINED * first["val_loss"]
        least_rate = thresholds.LEAST_RATE_FROM_SCRATCH
    if gained >= least_gain:
        return None
    rate, tokens, signs = run.recipe.get("learning_rate") or 0.0, run.train_tokens, _warning_signs(run)
    evidence = [
        f"val loss {first['val_loss']:.4f} at step {first['step']} -> {best['val_loss']:.4f} at best, train loss"
        f" {first['train_loss']:.4f} -> {last['train_loss']:.4f}, after {last['step']:,} updates",
        f"learning_rate {rate:g}",
    ]
    if "known" in signs:
        evidence.append(signs["known"])
    if tokens is not None and tokens < thresholds.FEW_TOKENS:
        evidence.append(f"{tokens:,} tokens to train on; fewer than {thresholds.FEW_TOKENS:,} are few")
    command = remedies.train_at_rate(run, max(3 * rate, least_rate))
    return Finding("not_learning", evidence, "a higher learning rate", command)


def overfitting(run: Record) -> Finding | None:
    if not run.evaluations:
        return None
    signs, first, best, last = _warning_signs(run), run.evaluations[0], run.best, run.evaluations[-1]
    evidence = []
    if not run.ended_early or best["step"] == first["step"]:  # else patience has limited it already
        if "overfitting" in signs:
            evidence.append(signs["overfitting"].removeprefix("overfitting: "))
        elif "gap" in signs and last["val_loss"] > best["val_loss"] * (1 + thresholds.RISE):
            evidence.append(f"val loss {_change(best, last)}")
        if evidence and "gap" in signs:
            evidence.append(signs["gap"].removeprefix("gap: "))
    samples = run.evaluation.get("memorisation") or {}
    if samples.get("copied", 0) > thresholds.COPIED:
        copied = f"{samples['copied']:.0%} of the {samples['ngram']}-grams of samples are in the training data"
        evidence.append(f"{copied}, {samples['longest']} tokens in a row")
    if not evidence:
        return None
    if passes := run.passes(last["step"]):
        tokens = f"{run.train_tokens:,} tokens" if run.train_tokens else "the data"
        evidence.append(f"{last['step']:,} updates were {passes:.1f} passes over {tokens}")
    advice = f"best/ keeps step {best['step']}. More text helps most; with this text use fewer updates and dropout"
    second = run.evaluations[:2][-1]
    max_iters = max(1, best["step"] or second["step"] // 4)
    flags: dict[str, remedies.Flag] = {"lr_decay_iters": None, "max_iters": max_iters}
    if best["step"] == first["step"]:
        flags["eval_interval"] = max(1, max_iters // 10)
    dropout, patience = run.recipe.get("dropout") or 0.1, run.recipe.get("patience") or 5
    command = remedies.train_another(run, dropout=dropout, patience=patience, **flags)
    return Finding("overfitting", evidence, advice, command)


def slow(run: Record) -> Finding | None:
    seconds, speed, mfu = run.median("seconds"), run.median("tokens_per_second"), run.median("mfu")
    if seconds is None or speed is None or mfu is None or seconds * run.length < thresholds.SHORT_RUN:
        return None
    if len(run.in_session("iter")) < thresholds.ENOUGH_LINES:  # the first update also compiles and allocates
        return None
    machine, total = run.started.get("machine", ""), seconds * run.length
    pace = f"{speed:,.0f} tok/s, mfu {mfu:.1%}, {machine}"
    if changed := _slowed_down(run):
        evidence = [f"an update took {changed[0]:.2f}s at first and {changed[1]:.2f}s lately", pace]
        advice = "see whether another process used this computer: top or nvidia-smi show those of now"
        return Finding("slow", evidence, advice)
    whole = f"{run.length:,} updates at {duration(seconds)} each take {duration(total)}"
    if " on cuda" in machine:
        return _slow_on_gpu(run, [pace, whole]) if mfu < thresholds.LOW_MFU else None
    if total < thresholds.DAY:
        return None
    evidence = [whole, pace]
    if shutil.which("nvidia-smi") and run.recipe.get("device") != "cpu":
        check = "python -c 'import torch; print(torch.version.cuda)'"
        evidence.append(f"there is an NVIDIA driver, but PyTorch sees no CUDA: {check}")
    updates = max(1, int(thresholds.DAY / seconds))
    advice = f"a GPU; or {updates:,} updates, which take a day on this computer"
    return Finding("slow", evidence, advice, remedies.train_another(run, max_iters=updates, lr_decay_iters=None))


def _slow_on_gpu(run: Record, evidence: list[str]) -> Finding:
    if run.recipe.get("compile") == "false":
        cause, advice, key = "compile=false", "compile the model", "compile"
    elif run.recipe.get("dtype") == "float32":
        cause, advice, key = "dtype=float32", "a dtype with fast matrix products on this GPU", "dtype"
    else:
        tokens = (remedies.newest_size(run, "batch_size") or 1) * (run.recipe.get("block_size") or 1024)
        cause, key = f"{tokens:,} tokens in a micro-batch", "batch_size"
        advice = "larger micro-batches, with the same blocks in an update"
    return Finding("slow", [*evidence, cause], advice, remedies.resume(run, **{key: "auto"}))


def disappointing(run: Record) -> Finding | None:
    return _no_better_than_base(run) or _forgot(run) or _still_falling(run)


def _no_better_than_base(run: Record) -> Finding | None:
    measured = run.evaluation
    difference, baseline = (measured.get("difference") or {}).get("mean"), measured.get("baseline") or {}
    if difference is None or difference < 0 or measured.get("split") != "val":
        return None
    if baseline.get("name") != run.recipe.get("init_from"):
        return None
    evidence = f"on val, {measured['loss']:.4f} nats a token, {difference:+.4f} against {baseline['name']}"
    findings = _findings_of_doctor(run)
    return Finding("disappointing", [evidence, *findings], "look at the data first", remedies.examine_data(run))


def _forgot(run: Record) -> Finding | None:
    general = run.evaluation.get("general") or {}
    before, after = general.get("baseline_loss"), general.get("loss")
    if not is_number(before) or not is_number(after) or after - before <= thresholds.FORGOTTEN:
        return None
    evidence = f"on a general text, loss {before:.4f} before and {after:.4f} after training: the model forgot it"
    command = remedies.train_at_rate(run, (run.recipe.get("learning_rate") or 3e-5) / 3)
    return Finding("disappointing", [evidence], "a third of the learning rate", command)


def _still_falling(run: Record) -> Finding | None:
    """Whether the loss fell much in the last fifth of the run. If no evaluation lies where that begins, the fall since
    the evaluation before is scaled."""
    if not run.evaluations or not run.ended or run.ended_early or run.done < thresholds.ENOUGH_UPDATES:
        return None
    first, best = run.evaluations[0], run.best
    if best["step"] != run.evaluations[-1]["step"]:
        return None
    before = [first, *(event for event in run.evaluations if event["step"] <= 0.8 * best["step"])][-1]
    if before["step"] == first["step"]:  # no evaluation on the way
        return None
    gained, lately = first["val_loss"] - best["val_loss"], before["val_loss"] - best["val_loss"]
    in_last_fifth = 0.2 * best["step"] * lately / max(1, best["step"] - before["step"])
    if lately < thresholds.LEAST_GAIN or in_last_fifth < thresholds.STILL_FALLING * gained:
        return None
    share = min(1.0, lately / gained)
    evidence = f"val loss {_change(before, best)}, the end: still falling, {share:.0%} of all that was gained"
    flags: dict[str, remedies.Flag] = {"max_iters": 2 * run.length}
    if run.recipe.get("epochs") and run.length < run.recipe.get("max_iters", 0):
        flags = {"epochs": 2 * run.recipe["epochs"]}
        if 2 * run.length > run.recipe["max_iters"]:
            flags["max_iters"] = 2 * run.length
    command = remedies.resume(run, **flags, lr_decay_iters=None)
    return Finding("disappointing", [evidence, *_findings_of_doctor(run)], "resume, and train twice as long", command)


def _change(before: dict[str, Any], after: dict[str, Any]) -> str:
    return f"{before['val_loss']:.4f} at step {before['step']} -> {after['val_loss']:.4f} at step {after['step']}"


def _warning_signs(run: Record) -> dict[str, str]:
    if not run.evaluations:
        return {}
    passes = run.passes(run.evaluations[-1]["step"])
    return warning_signs(run.evaluations, run.vocab_size, run.pretrained, passes)


def _slowed_down(run: Record) -> tuple[float, float] | None:
    """Seconds of an update in the first and in the last quarter, if updates became much slower."""
    pace = run.in_session("iter", "out_of_memory", "batch_size")
    changes = [place for place, event in enumerate(pace) if event["event"] != "iter"]  # then an update takes longer
    seconds = [event["seconds"] for event in pace[changes[-1] + 1 if changes else 0 :] if "seconds" in event][1:]
    quarter = len(seconds) // 4
    if quarter < 3:
        return None
    early, late = statistics.median(seconds[:quarter]), statistics.median(seconds[-quarter:])
    return (early, late) if late > thresholds.SLOWER * early else None


def _findings_of_doctor(run: Record) -> list[str]:
    lines = []
    for part in run.data:
        if part.findings:
            counts = [f"{found['count']:,} {kind.replace('_', ' ')}" for kind, found in part.findings.items()]
            lines.append(f"the doctor found in {part.directory}: {', '.join(counts)}")
    return lines
