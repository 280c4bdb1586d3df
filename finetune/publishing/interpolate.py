"""Between the base and the finetuned weights: (1 - a) base + a finetuned often predicts better than either, and forgets
less.

Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022.
"""

import numpy as np
import torch

from finetune.common.errors import UsageError
from finetune.data import arrow_cache
from finetune.data import dataset as datasets
from finetune.data.batches import Blocks, Mixture
from finetune.gpt import GPT, convert, pretrained, size
from finetune.runs.model_card import without_folders

SWEEP = [a / 10 for a in range(11)]


def interpolate(choice, config, state, facts, events, say=print):
    """`(weights, mixture)`: what the choice makes of finetuned weights of a run with those facts and events.

    `choice` is "auto", which keeps the a of SWEEP with the lowest loss on the run's whole validation split, so never a
    worse one than a = 1; or the a itself. `mixture` is {"weight", "base", "chosen", "losses": [(a, loss), ...]}. Raises
    UsageError where the base or the data is not there any more."""
    base = base_of("interpolate", config, facts)
    network = GPT.from_state(config, {name: tensor.clone() for name, tensor in state.items()}).eval()
    measure = _validation(config, network, events)
    wanted = SWEEP if choice == "auto" else sorted({0.0, float(choice), 1.0})
    losses = []
    for a in wanted:
        network.load_state_dict(convert.with_padding(_mixed(base, state, a), config))
        losses.append((a, measure()))
        say(f"interpolate {a:.2f}: val loss {losses[-1][1]:.4f}")
    weight = min(reversed(losses), key=lambda measured: measured[1])[0] if choice == "auto" else float(choice)
    reached, alone = dict(losses)[weight], losses[-1][1]
    say(f"keeping {weight:g} of the finetuned weights: val loss {reached:.4f}, without interpolation {alone:.4f}")
    mixture = {
        "weight": weight,
        "base": facts.get("base_model") or without_folders(facts["init_from"]),
        "chosen": choice == "auto",
        "losses": losses,
    }
    return _mixed(base, state, weight), mixture


def _mixed(base, state, a):
    return {name: torch.lerp(base[name], state[name], a) for name in state}


def base_of(what, config, facts):
    """The weights that the run with those facts began with. Raises UsageError, which says `what` wanted them, where
    they are not there."""
    source = facts.get("init_from")
    if source in (None, "scratch"):
        raise UsageError(
            f"{what}: the run began from {source or 'nobody knows what'}, so there is no base to go back to"
        )
    base_config, base = pretrained.load(source)
    base["wpe.weight"] = base["wpe.weight"][: config.block_size]
    wanted = size.shapes(config)
    if (
        base_config.activation_function != config.activation_function
        or {name: tuple(base[name].shape) for name in base} != wanted
    ):
        raise UsageError(f"{what}: {source} is no longer the model that this run began with; its shape is another")
    return base


def _validation(config, network, events):
    """A function that gives the loss of the network on the whole validation split of the run."""
    from finetune.config.recipe import Recipe
    from finetune.evaluation.split_loss import split_loss
    from finetune.runtime import device

    started = [event for event in events if event["event"] in ("start", "resume") and "data" in event]
    if not started:
        raise UsageError("interpolate: metrics.jsonl of this run does not say which data it was validated on")
    identity, parts = started[-1]["identity"], []
    for number, directory in enumerate(directories := started[-1]["data"]["directories"], 1):
        dataset = datasets.load(directory)
        contents = datasets.scan(dataset, "val")
        if contents.sha256 != identity[datasets.identity_key("val.bin", number, len(directories))]:
            raise UsageError(
                f"interpolate: {dataset.bin('val')} is not the file that this run was validated on (its sha256 differs)"
            )
        opened = arrow_cache.open_cache(
            dataset, "val", identity["block_size"], contents, identity.get("isolate_documents", False)
        )
        parts.append(Blocks.from_arrow(opened, contents.tokens))
    blocks = parts[0] if len(parts) == 1 else Mixture(parts)
    computer = device.start(Recipe(dtype="float32", compile="false"))
    network.to(computer.torch_device)
    return lambda: split_loss(computer, network, blocks, np.arange(blocks.num_rows))
