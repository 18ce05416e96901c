"""A task made from nothing, with an answer that can be checked: sort the digits of a number.

`sort 52913 =` is answered by `12359`. With it come a tokenizer of single characters and a model
small enough to train on a laptop, so that the whole system can be shown without a download.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NUM_DIGITS = 6
PAD, END = "<pad>", "<end>"


def make_rows(num_rows: int, *, seed: int) -> list[dict[str, str]]:
    """Distinct prompts with their answers: `prompt`, `completion`, and `answer` for a verifier."""
    generator = random.Random(seed)
    seen: set[str] = set()
    rows: list[dict[str, str]] = []
    while len(rows) < num_rows:
        digits = "".join(generator.choices("123456789", k=NUM_DIGITS))
        if digits in seen:
            continue
        seen.add(digits)
        answer = "".join(sorted(digits))
        rows.append({"prompt": f"sort {digits} =", "completion": answer, "answer": answer})
    return rows


def write_task(folder: Path, *, num_sft: int, num_train: int, num_test: int, seed: int) -> None:
    """Write `sft.jsonl`, `train.jsonl` and `test.jsonl`; no prompt is in two of them."""
    rows = make_rows(num_sft + num_train + num_test, seed=seed)
    folder.mkdir(parents=True, exist_ok=True)
    parts = {
        "sft": rows[:num_sft],
        "train": rows[num_sft : num_sft + num_train],
        "test": rows[num_sft + num_train :],
    }
    for name, part in parts.items():
        lines = "".join(json.dumps(row) + "\n" for row in part)
        (folder / f"{name}.jsonl").write_text(lines)


def write_model(folder: Path, *, seed: int) -> None:
    """Write an untrained model of 0.2 M parameters and its tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = _character_tokenizer()
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(seed)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _character_tokenizer() -> PreTrainedTokenizerBase:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [PAD, END, *"0123456789 =sort"]
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys(words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=PAD))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=END)
