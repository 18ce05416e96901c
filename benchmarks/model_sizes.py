"""Sizes of published models, by their `config.json`, for programs and tests: no weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def _llama(hidden: int, width: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 128256,
        "hidden_size": hidden,
        "intermediate_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
    }


def _qwen(hidden: int, width: int, layers: int, heads: int, kv_heads: int) -> dict[str, Any]:
    small = hidden <= 2048
    return {
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        "vocab_size": 151936 if small else 152064,
        "hidden_size": hidden,
        "intermediate_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": small,
    }


# From the smallest to the largest of a family.
LLAMA: Mapping[str, dict[str, Any]] = {
    "meta-llama/Llama-3.1-8B-Instruct": _llama(4096, 14336, 32, 32),
    "meta-llama/Llama-3.3-70B-Instruct": _llama(8192, 28672, 80, 64),
}
QWEN: Mapping[str, dict[str, Any]] = {
    "Qwen/Qwen2.5-0.5B-Instruct": _qwen(896, 4864, 24, 14, 2),
    "Qwen/Qwen2.5-1.5B-Instruct": _qwen(1536, 8960, 28, 12, 2),
    "Qwen/Qwen2.5-3B-Instruct": _qwen(2048, 11008, 36, 16, 2),
    "Qwen/Qwen2.5-7B-Instruct": _qwen(3584, 18944, 28, 28, 4),
    "Qwen/Qwen2.5-14B-Instruct": _qwen(5120, 13824, 48, 40, 8),
    "Qwen/Qwen2.5-32B-Instruct": _qwen(5120, 27648, 64, 40, 8),
    "Qwen/Qwen2.5-72B-Instruct": _qwen(8192, 29568, 80, 64, 8),
}
