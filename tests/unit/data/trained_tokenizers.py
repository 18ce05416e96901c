"""Tokenizers as families build them, trained on this project's own pages."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

_LIBRARY = Path(__file__).parents[3] / "rlhf_ray"
# Some 60,000 characters of prose, tables and code.
TEXT = "\n".join(
    (_LIBRARY / folder / "README.md").read_text(encoding="utf-8")
    for folder in ("algorithms", "data", "learner", "models", "rewards")
)
# Of cl100k, Llama 3 and Qwen 2: it joins a full stop with the line's end behind it.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
OTHER_SCRIPT = "".join(chr(code) for code in range(0x4E00, 0x4E80))
FAMILIES = ("gpt2", "llama3", "llama2", "unigram")
MARKS = ["<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]


@functools.cache
def trained(family: str) -> Any:
    """A tokenizer of 3,000 tokens at most."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    alphabet: list[str] = []
    if family in ("gpt2", "llama3"):
        backend = Tokenizer(models.BPE())
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=family == "gpt2")
        split = pre_tokenizers.Split(Regex(LLAMA3), behavior="isolated")
        backend.pre_tokenizer = (
            byte_level if family == "gpt2" else pre_tokenizers.Sequence([split, byte_level])
        )
        backend.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    elif family == "llama2":  # no words: a text is merged as one
        backend = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
        backend.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
        backend.decoder = decoders.Metaspace()
    else:
        backend = Tokenizer(models.Unigram())
        backend.pre_tokenizer = pre_tokenizers.Metaspace()
        backend.decoder = decoders.Metaspace()
    settings: dict[str, Any] = {
        "vocab_size": 3_000,
        "special_tokens": MARKS,
        "initial_alphabet": alphabet,
        "show_progress": False,
    }
    if family == "unigram":
        trainer: Any = trainers.UnigramTrainer(unk_token="<unk>", **settings)
    else:
        trainer = trainers.BpeTrainer(max_token_length=24, **settings)
    # A text without words is trained on pieces with words' length: else tokens span lines.
    texts = TEXT.split() if family == "llama2" else TEXT.splitlines(keepends=True)
    backend.train_from_iterator([*texts, *sorted(set(TEXT)), *OTHER_SCRIPT], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=MARKS[3:],
    )
