"""From your text to your GPT-2: prepare, train, sample. `from finetune import GPT` is the library's face."""

__version__ = "0.1.0"
__all__ = ["GPT", "GPTConfig", "__version__"]


def __getattr__(name):  # torch is loaded when GPT is first asked for, so that --help need not wait for it
    if name in ("GPT", "GPTConfig"):
        from finetune import gpt

        return getattr(gpt, name)
    raise AttributeError(f"module 'finetune' has no attribute {name!r}")
