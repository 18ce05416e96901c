"""How large the checks are: on a card, and rehearsed on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A model: its family in transformers, and the settings of its configuration."""

    family: str
    settings: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Sizes.

    Attributes:
        small: Shows whether numbers are right; its heads are of a size that every kernel takes.
        large: Shows how fast, and how much memory.
        sequence_tokens: Lengths at which the learner's speed is measured, by name.
        micro_batch_tokens: Of the learner's speed; a longer sequence goes alone.
        requests: That the engine's speed is measured with, together.
        new_tokens: Of each of them.
        gpu_memory_share: Of an engine that shares its card with a small policy.
    """

    device: Literal["cuda", "cpu"]
    small: Shape
    large: Shape
    sequence_tokens: Mapping[str, int]
    micro_batch_tokens: int
    requests: int
    new_tokens: int
    gpu_memory_share: float = 0.3

    @property
    def on_gpu(self) -> bool:
        """Whether there is a card."""
        return self.device == "cuda"


_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
# Qwen2.5-0.5B's.
HALF_BILLION = Shape(
    family="qwen2",
    settings={
        **_TOKENS,
        "vocab_size": 151_936,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "max_position_embeddings": 131_072,
        "rope_theta": 1_000_000.0,
        "tie_word_embeddings": True,
        "initializer_range": 0.02,
    },
)
CARD = Scale(
    device="cuda",
    small=Shape(
        family="llama",
        settings={
            **_TOKENS,
            "vocab_size": 1024,
            "hidden_size": 512,
            "intermediate_size": 1408,
            "num_hidden_layers": 4,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "max_position_embeddings": 2048,
            "tie_word_embeddings": False,
            # Rounding in bfloat16 then moves a token by 0.02 nats at most.
            "initializer_range": 0.03,
        },
    ),
    large=HALF_BILLION,
    sequence_tokens={"4k": 4096, "16k": 16_384, "64k": 65_536},
    micro_batch_tokens=16_384,
    requests=512,
    new_tokens=256,
)
REHEARSAL = Scale(
    device="cpu",
    small=Shape(
        family="llama",
        settings={
            **_TOKENS,
            "vocab_size": 128,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 256,
            "tie_word_embeddings": False,
            "initializer_range": 0.25,
        },
    ),
    large=Shape(
        family="qwen2",
        settings={
            **_TOKENS,
            "vocab_size": 16_000,
            "hidden_size": 256,
            "intermediate_size": 768,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 1024,
            "tie_word_embeddings": True,
            "initializer_range": 0.02,
        },
    ),
    sequence_tokens={"4k": 64, "16k": 128, "64k": 256},
    micro_batch_tokens=128,
    requests=16,
    new_tokens=16,
)
SCALES = {"card": CARD, "rehearsal": REHEARSAL}
