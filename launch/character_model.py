"""A tiny model over single characters, untrained and made on the spot: nothing is downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PAD, END = "<pad>", "<end>"


def write_model(
    folder: Path,
    characters: str,
    *,
    seed: int,
    chat_template: str | None = None,
    num_embeddings: int = 0,
) -> None:
    """Write a Llama of 0.2 M parameters and its tokenizer.

    Args:
        folder: Where both go.
        characters: The vocabulary beside padding and the end.
        seed: Of its weights.
        chat_template: Of its tokenizer.
        num_embeddings: At least as many as there are tokens; 0 for as many.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = character_tokenizer(characters, chat_template=chat_template)
    config = LlamaConfig(
        vocab_size=num_embeddings or len(tokenizer),
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


def character_tokenizer(
    characters: str, *, chat_template: str | None = None
) -> PreTrainedTokenizerBase:
    """One token a character; any other is padding."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = dict.fromkeys([PAD, END, *characters])
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=PAD))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, chat_template=chat_template
    )
