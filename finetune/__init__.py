"""From your text to your GPT-2: prepare, train, sample.

    from finetune import prepare, train

    prepare("my.txt", out_dir="data/mine")
    run = train("recipes/small.yaml", dataset="data/mine", out_dir="out-mine", epochs=3)
    run.sample("Once upon a time")

`help(finetune.train)` lists its keywords, which are the flags of the command.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from finetune.api import evaluate, export, plan, prepare, sample
    from finetune.common.errors import Failure, UsageError
    from finetune.gpt import GPTConfig
    from finetune.publishing.model import GPT
    from finetune.run import Run, train
    from finetune.training.callbacks import Callback

_program = sys.orig_argv[sys.orig_argv.index("-m") + 1 :] if sys.argv[:1] == ["-m"] and "-m" in sys.orig_argv else []
if _program and _program[0].partition(".")[0] == "finetune":
    # python -m finetune.VERB: until its modules are imported Ctrl-C ends it without their tracebacks
    import signal

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)

__version__ = "0.1.0"
__all__ = [
    "GPT", "Callback", "Failure", "GPTConfig", "Run", "UsageError", "__version__", "evaluate", "export", "plan",
    "prepare", "sample", "train",
]  # fmt: skip
# where the names come from; imported when they are used, so that `import finetune` and --help are fast
HOMES = {
    "GPT": "publishing.model",
    "GPTConfig": "gpt",
    "Run": "run",
    "train": "run",
    "Callback": "training.callbacks",
    "UsageError": "common.errors",
    "Failure": "common.errors",
}


class _Package(ModuleType):
    """`finetune.train` is the function, also after the module of that name was imported: `finetune train` and
    `from finetune.train import main` find the module, and the import system may not put it in the function's place."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in __all__ and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'finetune' has no attribute {name!r}")
    return getattr(importlib.import_module(f"finetune.{HOMES.get(name, 'api')}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__} - {"HOMES", "ModuleType", "TYPE_CHECKING", "importlib", "sys"})
