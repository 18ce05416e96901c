"""What a model's own `config.json` says of its limits, read without transformers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# vllm/v1/attention/backends/cpu_attn.py, CPUAttentionBackend.get_supported_head_sizes, vLLM 0.32
CPU_HEAD_DIMS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
# RoBERTa and its kin number positions from behind the padding token's id, which is 1 by default.
POSITIONS_AFTER_PADDING = frozenset({
    "camembert", "data2vec-text", "esm", "ibert", "lilt", "longformer", "luke", "markuplm", "mpnet",
    "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod",
})  # fmt: skip
# As GPT-2 and others of its time call what has another name by now.
_OLDER_NAMES = {
    "n_positions": "max_position_embeddings",
    "n_embd": "hidden_size",
    "n_head": "num_attention_heads",
}


def read_json(path: Path) -> dict[str, Any] | None:
    """A file's mapping; None where there is none."""
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return read if isinstance(read, dict) else None


def text_part(config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a model of text, which others keep in a section."""
    return {**config, **section(config, "text_config")}


def section(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The mapping below a key; an empty one where something else is there."""
    found = config.get(key)
    return found if isinstance(found, Mapping) else {}


@dataclass(frozen=True, kw_only=True)
class ModelLimits:
    """Numbers that decide before anything starts whether a model fits; None where not stated.

    Attributes:
        head_dim: Of one attention head.
        num_heads: Query heads of a layer.
        num_kv_heads: Key and value heads of a layer.
        context_tokens: The longest sequence; None also where the model stretches its positions.
    """

    head_dim: int | None
    num_heads: int | None
    num_kv_heads: int | None
    context_tokens: int | None


def read_limits(folder: Path) -> ModelLimits | None:
    """The limits of a local model; None where `folder` holds no readable `config.json`."""
    config = read_json(folder / "config.json")
    if config is None:
        return None
    text = {ours: config[older] for older, ours in _OLDER_NAMES.items() if older in config}
    text |= text_part(config)
    num_heads, hidden = text.get("num_attention_heads"), text.get("hidden_size")
    head_dim = text.get("head_dim")
    if head_dim is None and num_heads and hidden:
        head_dim = hidden // num_heads
    return ModelLimits(
        head_dim=head_dim,
        num_heads=num_heads,
        num_kv_heads=text.get("num_key_value_heads"),
        context_tokens=None if is_stretched(text) else context_of(text),
    )


def is_stretched(text: Mapping[str, Any]) -> bool:
    """Whether a model reaches further than the positions that it names, as by YaRN."""
    rope = section(text, "rope_parameters") or section(text, "rope_scaling")
    return rope.get("rope_type", rope.get("type", "default")) not in ("default", "llama3")


def context_of(text: Mapping[str, Any]) -> int | None:
    """The longest sequence by a configuration's keys, where it names one."""
    num_positions = text.get("max_position_embeddings")
    return usable_positions(num_positions, text.get("model_type"), text.get("pad_token_id"))


def usable_positions(
    num_positions: int | None, model_type: str | None, padding: int | None
) -> int | None:
    """Those of a model's positions that tokens can have; None for any number of them."""
    if num_positions is None or num_positions < 1:  # XLNet says -1
        return None
    if model_type not in POSITIONS_AFTER_PADDING:
        return int(num_positions)
    return int(num_positions) - (1 if padding is None else int(padding)) - 1
