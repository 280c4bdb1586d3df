"""From your text to your GPT-2: prepare, train, sample. As a library: `from finetune import GPT`."""

__version__ = "0.1.0"
__all__ = ["GPT", "GPTConfig", "__version__"]


def __getattr__(name: str) -> object:  # imports torch only when GPT is used, so that --help is fast
    if name in ("GPT", "GPTConfig"):
        from finetune import gpt

        return getattr(gpt, name)
    raise AttributeError(f"module 'finetune' has no attribute {name!r}")
