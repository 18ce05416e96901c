"""The model that both sides train, random and of 3.35 M parameters, and its tokenizers.

How long answers become is the model's own: its end token has the same probability wherever an
answer is, or none at all. Neither side is told of lengths, and neither pays for being told.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers import models as tokenizer_models
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

SHAPE: dict[str, Any] = {
    "vocab_size": 1744,
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
}
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
PAD, BEGIN, END, UNKNOWN = range(len(SPECIAL))
TOKENIZER = "tokenizer"
# Of the residual stream's first channel, in which no layer writes: what the head finds there is
# nearly the same for all contexts, as the other channels are small beside it.
CONSTANT = 2.0
# By so many nats less likely than any other: never drawn.
NEVER = 30.0


def save_model(
    folder: Path, tokenizer: PreTrainedTokenizerFast, *, end_probability: float = 0.0
) -> Path:
    """A language model and its tokenizer, in a folder below; returns the model's folder.

    Args:
        folder: Where they go.
        tokenizer: With the special tokens of this module.
        end_probability: Of the end token, at each token of an answer: 1 / the mean length.
    """
    torch.manual_seed(0)
    ids = {"pad_token_id": PAD, "bos_token_id": BEGIN, "eos_token_id": END}
    model = Qwen2ForCausalLM(Qwen2Config(**SHAPE, **ids)).eval()
    _set_end(model, end_probability)
    model.save_pretrained(folder)
    # Beside the model's configuration, transformers would take the family's own class.
    tokenizer.save_pretrained(folder / TOKENIZER)
    return folder


@torch.no_grad()
def _set_end(model: Qwen2ForCausalLM, probability: float) -> None:
    """Make special tokens impossible, but for the end token, which gets its probability.

    Raises:
        ValueError: It did not.
    """
    embeddings = model.get_input_embeddings().weight
    embeddings[:, 0] = CONSTANT
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight[0] = 0.0
        layer.mlp.down_proj.weight[0] = 0.0
    contexts_BT = torch.randint(len(SPECIAL), SHAPE["vocab_size"], (16, 64))
    channel = float(model.model(contexts_BT).last_hidden_state[..., 0].mean())
    embeddings[: len(SPECIAL), 0] -= NEVER / channel
    if not probability:
        return
    logits_BTV = model(contexts_BT).logits
    others_BT = logits_BTV[..., len(SPECIAL) :].logsumexp(-1)
    wanted_BT = others_BT + math.log(probability / (1.0 - probability))
    embeddings[END, 0] += float((wanted_BT - logits_BTV[..., END]).mean()) / channel
    reached = float(model(contexts_BT).logits.softmax(-1)[..., END].mean())
    if abs(reached / probability - 1.0) > 0.05:
        raise ValueError(
            f"the end token must have probability {probability:.4g}, got {reached:.4g}"
        )


def save_classifier(folder: Path, base: Path) -> Path:
    """The same layers with a new scalar head, for rewards and values; returns the folder."""
    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    model.save_pretrained(folder)
    shutil.copytree(base / TOKENIZER, folder / TOKENIZER)
    return folder


def word_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, of the words `w4` to `w1743`: a text has as many tokens as words."""
    words = [f"w{number}" for number in range(len(SPECIAL), SHAPE["vocab_size"])]
    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *words])}
    backend = Tokenizer(tokenizer_models.WordLevel(vocabulary, unk_token=SPECIAL[UNKNOWN]))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return _wrapped(backend)


def text_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Byte pairs of these texts, as many as the model has embeddings."""
    backend = Tokenizer(tokenizer_models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SHAPE["vocab_size"],
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return _wrapped(backend)


def _wrapped(backend: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=SPECIAL[PAD],
        bos_token=SPECIAL[BEGIN],
        eos_token=SPECIAL[END],
        unk_token=SPECIAL[UNKNOWN],
    )
