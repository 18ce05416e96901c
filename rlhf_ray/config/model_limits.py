"""What a model's own `config.json` says of its limits, read without transformers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# vllm/v1/attention/backends/cpu_attn.py, CPUAttentionBackend.get_supported_head_sizes, vLLM 0.32
CPU_HEAD_DIMS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)


@dataclass(frozen=True, kw_only=True)
class ModelLimits:
    """Numbers that decide before anything starts whether a model fits; None where not stated.

    Attributes:
        head_dim: Of one attention head.
        num_heads: Query heads of a layer.
        context_tokens: The longest sequence; None also where the model stretches its positions.
    """

    head_dim: int | None
    num_heads: int | None
    context_tokens: int | None


def read_limits(folder: Path) -> ModelLimits | None:
    """The limits of a local model; None where `folder` holds no readable `config.json`."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    text: dict[str, Any] = {**config, **config.get("text_config", {})}
    num_heads, hidden = text.get("num_attention_heads"), text.get("hidden_size")
    head_dim = text.get("head_dim")
    if head_dim is None and num_heads and hidden:
        head_dim = hidden // num_heads
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    stretched = rope.get("rope_type", rope.get("type", "default")) not in ("default", "llama3")
    return ModelLimits(
        head_dim=head_dim,
        num_heads=num_heads,
        context_tokens=None if stretched else text.get("max_position_embeddings"),
    )
