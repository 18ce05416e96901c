"""Random models from configurations, each with a tokenizer of as many words as it has tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from benchmarks.gpu_check.scale import Scale, Shape

# Below the folder of a model.
TOKENIZER = "tokenizer"
SPECIALS = ("<pad>", "<s>", "</s>", "<unk>")


def device_of(scale: Scale) -> torch.device:
    """The first card that the process sees, or the CPU."""
    return torch.device("cuda", 0) if scale.on_gpu else torch.device("cpu")


def make_model(
    folder: Path, shape: Shape, *, device: torch.device, dtype: torch.dtype, **settings: Any
) -> Path:
    """Write a model of a shape, `settings` laid over it; one that is there stays as it is."""
    if (folder / "config.json").is_file():
        return folder
    torch.manual_seed(0)
    config = AutoConfig.for_model(shape.family, **{**shape.settings, **settings})
    with device:
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    # In a folder of its own: beside the configuration, transformers would take the family's class.
    _tokenizer(config.vocab_size).save_pretrained(folder / TOKENIZER)
    model.save_pretrained(folder)
    return folder


def _tokenizer(num_tokens: int) -> PreTrainedTokenizerFast:
    words = (f"w{number}" for number in range(len(SPECIALS), num_tokens))
    vocabulary = {word: number for number, word in enumerate((*SPECIALS, *words))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    )


def random_ids(generator: np.random.Generator, shape: Shape, num_tokens: int) -> Any:
    """int32 [T], without special tokens."""
    return generator.integers(
        len(SPECIALS), shape.settings["vocab_size"], size=num_tokens, dtype=np.int32
    )


def write_prompts(file: Path, shape: Shape, *, num_prompts: int, num_tokens: int) -> Path:
    """Prompts of words, the shortest a third as long as `num_tokens`."""
    generator = np.random.default_rng(0)
    lengths = generator.integers(max(2, num_tokens // 3), num_tokens + 1, size=num_prompts)
    rows = (
        {"prompt": " ".join(f"w{token}" for token in random_ids(generator, shape, length))}
        for length in lengths
    )
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file
