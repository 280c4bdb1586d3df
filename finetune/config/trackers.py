"""The names of experiment trackers, as a recipe gives them."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from importlib.util import find_spec

# those that accelerate knows; each is also the name of its package, to import and to install
TRACKERS = ("tensorboard", "wandb", "trackio", "comet_ml", "aim", "mlflow", "clearml", "dvclive", "swanlab")


def chosen_trackers(log_with: str, wandb_log: bool) -> list[str]:
    """The trackers of a run, in the order given; `all` is every one that is installed."""
    names = [name.strip().lower() for name in log_with.split(",") if name.strip()]
    if "all" in names:
        names = [name for name in TRACKERS if find_spec(name)]
    return list(dict.fromkeys([*names, *(["wandb"] if wandb_log else [])]))


def problems_of_trackers(log_with: str) -> Iterator[str]:
    """A message for each name that is unknown, and of each tracker that is not installed."""
    for name in chosen_trackers(log_with, wandb_log=False):
        if name not in TRACKERS:
            close = difflib.get_close_matches(name, TRACKERS, 1)
            hint = f". Did you mean {close[0]!r}?" if close else f"; known are {', '.join(TRACKERS)}, and all"
            yield f"{name!r} is no tracker{hint}"
        elif find_spec(name) is None:
            yield f"{name} is not installed: pip install {name}"
