"""A byte-level tokenizer made on the spot, and the folder of real data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

CHATML = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# What other templates than ChatML write.
MORE = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<think>", "</think>")


def byte_tokenizer(
    *,
    bos: bool = False,
    eos: bool = False,
    merges: tuple[tuple[str, str], ...] = (),
    more: tuple[str, ...] = (),
) -> Any:
    """One token a byte.

    Args:
        bos: Whether it puts <s> in front by itself, as Llama's does.
        eos: Whether it puts </s> behind, as one with `add_eos_token` does.
        merges: Of bytes to longer tokens.
        more: Further special tokens.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    specials = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(specials + symbols)}
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=list(merges)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    if bos or eos:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{'<s>' if bos else ''} $A {'</s>' if eos else ''}".strip(),
            special_tokens=[("<s>", 0), ("</s>", 1)],
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>", *more],
    )


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLHF_RAY_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def make_tokenizer() -> Callable[..., Any]:
    return byte_tokenizer


@pytest.fixture
def chat_tokenizer() -> Any:
    tokenizer = byte_tokenizer(bos=True, more=MORE)
    tokenizer.chat_template = CHATML
    return tokenizer
