"""Warning signs in the curves of a run."""

import math


def warning_signs(evaluations, vocab_size, pretrained):
    """The guide's warning signs in a run's evaluations ({"step", "train_loss", "val_loss"}, oldest first), as {name:
    line}."""
    found = {}
    first, last = evaluations[0], evaluations[-1]
    best = min(evaluations, key=lambda e: e["val_loss"])
    since = [e for e in evaluations if e["step"] > best["step"]]
    uniform = math.log(vocab_size)
    if first["step"] == 0 and first["val_loss"] > (0.9 if pretrained else 1.2) * uniform:
        found["start"] = (
            f"step 0: val loss {first['val_loss']:.2f}, and guessing among {vocab_size:,} ids would give"
            f" {uniform:.2f}: "
            + (
                "these are probably ids of another tokenizer than the model's"
                if pretrained
                else "the initial weights are far too large"
            )
        )
    if first["step"] == 0 and pretrained and vocab_size > 10_000 and first["val_loss"] < 1.5:
        found["known"] = (
            f"step 0: val loss {first['val_loss']:.2f} is low for a text the model has not seen; it may have been"
            " trained on it"
        )
    if len(since) >= 3 and last["train_loss"] < best["train_loss"]:
        found["overfitting"] = (
            f"overfitting: val loss {best['val_loss']:.4f} at step {best['step']} -> {last['val_loss']:.4f}, train loss"
            f" {best['train_loss']:.4f} -> {last['train_loss']:.4f}; best/ keeps step {best['step']}, more data or"
            " fewer epochs would help"
        )
    elif len(evaluations) >= 6:
        before, lately = (min(e["val_loss"] for e in part) for part in (evaluations[:-5], evaluations[-5:]))
        if before * 0.999 < lately <= last["val_loss"] < before * 1.01:
            found["plateau"] = (
                f"plateau: best val loss {before:.4f} until step {evaluations[-6]['step']}, {lately:.4f} in the 5"
                " evaluations since; more updates will bring little"
            )
    if last["val_loss"] - last["train_loss"] > 0.3 and first["val_loss"] - first["train_loss"] < 0.15:
        found["gap"] = (
            f"gap: val loss is {last['val_loss'] - last['train_loss']:.2f} above train loss,"
            f" {first['val_loss'] - first['train_loss']:.2f} at the start; the text is being learned by heart"
        )
    return found
