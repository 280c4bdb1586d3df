"""Small tokenizer directories of many kinds, trained on the help texts that come with Python."""

import json
import pydoc_data.topics
from functools import cache
from pathlib import Path

from tokenizers import (
    AddedToken,
    BertWordPieceTokenizer,
    ByteLevelBPETokenizer,
    Regex,
    SentencePieceBPETokenizer,
    SentencePieceUnigramTokenizer,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

TEXT = "".join(pydoc_data.topics.topics[name] for name in ("assert", "assignment", "strings", "with"))
GPT4 = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}{% generation %}"
    "{{ m['content'] + '<|im_end|>' }}{% endgeneration %}{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}"
    "{{ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def wrap(directory, backend, **options):
    """Save a backend as transformers saves it."""
    from transformers import PreTrainedTokenizerFast

    template = options.pop("chat_template", None)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **options)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(directory)


def bpe(steps, special, size=500, **options):
    backend = Tokenizer(models.BPE(**options))
    backend.pre_tokenizer, backend.decoder = steps, decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator([TEXT], trainer)
    return backend


def byte_level(special=("<|endoftext|>",), **options):
    tokenizer = ByteLevelBPETokenizer(**options)
    tokenizer.train_from_iterator([TEXT], vocab_size=500, special_tokens=list(special), show_progress=False)
    return tokenizer._tokenizer


def chatml(directory):
    from transformers import GPT2TokenizerFast

    byte_level().save(str(directory / "tokenizer.json"))
    tokenizer = GPT2TokenizerFast.from_pretrained(directory)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.add_tokens([AddedToken(name, special=True) for name in ("<|im_start|>", "<|im_end|>")])
    tokenizer.eos_token = "<|im_end|>"
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(directory)


def added_words(directory):
    backend = byte_level()
    words = [AddedToken("covid19"), AddedToken("<speaker1>", lstrip=True), AddedToken("Ünï", single_word=True)]
    backend.add_tokens(words)
    wrap(directory, backend, eos_token="<|endoftext|>")


def overlapping(directory):
    """Added tokens of which one begins, ends or holds another; some are looked for in normalized text, so later."""
    backend = byte_level()
    early = [AddedToken(name, normalized=False) for name in ("ab", "abcd", "<|x|>", "|><", "aa")]
    backend.add_tokens([*early, AddedToken("abc"), AddedToken("bc<|"), AddedToken("cd"), AddedToken(" a")])
    wrap(directory, backend, eos_token="<|endoftext|>")


def named_in_the_configuration_only(directory):
    """As transformers 4 kept tokens, beside tokenizer.json."""
    byte_level().save(str(directory / "tokenizer.json"))
    token = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
    decoder = {
        "500": {"content": "<|user|>", "special": True, **token},
        "501": {"content": "<b>", "special": False, **token},
    }
    config = {"tokenizer_class": "GPT2Tokenizer", "added_tokens_decoder": decoder, "eos_token": "<|endoftext|>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    (directory / "special_tokens_map.json").write_text(json.dumps({"bos_token": "<|start|>", "pad_token": "<|user|>"}))


def start_of_text(directory):
    wrap(directory, byte_level(), bos_token="<|startoftext|>", eos_token="<|endoftext|>", pad_token="<|pad|>")


def other_end(directory):
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    wrap(directory, byte_level(special), bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>")


def prefix_space(directory):
    wrap(directory, byte_level(add_prefix_space=True), eos_token="<|endoftext|>")


def lower_case(directory):
    wrap(directory, byte_level(lowercase=True), eos_token="<|endoftext|>")


def digits(directory):
    steps = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    wrap(directory, bpe(pre_tokenizers.Sequence(steps), ["<|endoftext|>"]), eos_token="<|endoftext|>")


def gpt4(directory):
    split = pre_tokenizers.Split(Regex(GPT4), "isolated")
    steps = [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    wrap(directory, bpe(pre_tokenizers.Sequence(steps), ["<|bos|>"], ignore_merges=True), bos_token="<|bos|>")


def sentencepiece_bpe(directory):
    tokenizer = SentencePieceBPETokenizer()
    tokenizer.train_from_iterator([TEXT], vocab_size=400, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    wrap(directory, tokenizer._tokenizer, eos_token="</s>", unk_token="<unk>")


def llama(directory):
    """SentencePiece as in Llama 2: no pre-tokenizer, a space before each text, bytes for unknown characters."""
    steps = pre_tokenizers.Metaspace()
    pieces = bpe(steps, ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))], 700)
    model = json.loads(pieces.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    backend = Tokenizer(models.BPE(model["vocab"], merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    wrap(directory, backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def unigram(directory):
    tokenizer = SentencePieceUnigramTokenizer()
    special = ["<unk>", "<s>", "</s>"]
    tokenizer.train_from_iterator(
        [TEXT], vocab_size=300, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    wrap(directory, tokenizer._tokenizer, eos_token="</s>", unk_token="<unk>")


@cache
def word_pieces():
    tokenizer = BertWordPieceTokenizer()
    tokenizer.train_from_iterator([TEXT], vocab_size=500, show_progress=False)
    return tokenizer


def word_piece(directory):
    wrap(directory, word_pieces()._tokenizer, unk_token="[UNK]", sep_token="[SEP]")


def bert(directory):
    word_pieces().save_model(str(directory))
    (directory / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))


def words(directory):
    backend = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.WordLevelTrainer(vocab_size=400, special_tokens=["[UNK]", "[EOS]"], show_progress=False)
    backend.train_from_iterator([TEXT + " [EOS] </s>"], trainer)
    wrap(directory, backend, unk_token="[UNK]", eos_token="[EOS]")


def letters(directory):
    names = ["[UNK]", "[EOS]", *sorted(set(TEXT))]
    backend = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("(?m:.)"), "isolated")
    wrap(directory, backend, unk_token="[UNK]", eos_token="[EOS]")


def large(directory):
    """More ids than 16 bits hold."""
    names = [*(f"w{i}" for i in range(70_000)), "[UNK]", "[EOS]"]
    backend = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    wrap(directory, backend, unk_token="[UNK]", eos_token="[EOS]")


# the family, the token that ends documents
FAMILIES = {
    chatml: "<|im_end|>",
    added_words: "<|endoftext|>",
    overlapping: "<|endoftext|>",
    named_in_the_configuration_only: "<|endoftext|>",
    start_of_text: "<|endoftext|>",
    other_end: "</s>",
    prefix_space: "<|endoftext|>",
    lower_case: "<|endoftext|>",
    digits: "<|endoftext|>",
    gpt4: "<|bos|>",
    sentencepiece_bpe: "</s>",
    llama: "</s>",
    unigram: "</s>",
    word_piece: "[SEP]",
    bert: "[SEP]",
    words: "[EOS]",
    letters: "[EOS]",
}


def write(family, directory):
    directory = Path(directory) / family.__name__
    directory.mkdir(exist_ok=True)
    family(directory)
    return directory
