"""Loading tokenizer files with transformers, whatever kind they are of."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.common.errors import first_line
from finetune.common.files import read_json_object, write_json
from finetune.data import bpe_files

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CLASSES = {"vocab.txt": "BertTokenizer", "merges.txt": "GPT2Tokenizer"}  # for files without a tokenizer_class


def load(directory: Path, files: dict[str, bytes]) -> PreTrainedTokenizerFast:
    """The tokenizer of a model directory, whose `files` were read. Raises ValueError if transformers cannot load it."""
    from transformers import AutoTokenizer
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with tempfile.TemporaryDirectory() as work:
            bpe_files.write_files(work, files)
            write_json(Path(work) / "tokenizer_config.json", _safe_config(files), ensure_ascii=False)
            model = read_json_object(directory / "config.json")  # the class may depend on it
            model = {name: model[name] for name in ("model_type", "tokenizer_class") if name in model}
            write_json(Path(work) / "config.json", model)
            auto: Any = AutoTokenizer.from_pretrained(work, local_files_only=True)
    except Exception as error:  # it raises all kinds
        raise ValueError(f"transformers cannot load it ({first_line(error)})") from None
    finally:
        logging.set_verbosity(verbosity)
    if not auto.is_fast or not auto.backend_tokenizer.get_vocab_size(with_added_tokens=False):
        raise ValueError(f"its class {type(auto).__name__} gives no vocabulary of the tokenizers library")
    return auto


def _safe_config(files: dict[str, bytes]) -> dict[str, Any]:
    """tokenizer_config.json with a class where the files beside it need one."""
    config = bpe_files.read_object(files, "tokenizer_config.json")
    by_file = next((name for file, name in CLASSES.items() if file in files), None)
    if "tokenizer.json" not in files and by_file:
        config.setdefault("tokenizer_class", by_file)
    return config
