"""Progress bars: a widget in a notebook, a line on a terminal, nothing elsewhere."""

from __future__ import annotations

import sys
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook, which shows bars although its output is no terminal."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return shell is not None and "IPKernelApp" in shell.config


def progress(*args: Any, disable: bool | None = None, **options: Any) -> tqdm:
    """A bar with the arguments of tqdm; `disable=True` hides it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # without ipywidgets the bar is a line of text
        from tqdm.auto import tqdm
    if disable is None and in_notebook():
        disable = False
    return tqdm(*args, disable=disable, **options)
