"""What a model's own `config.json` says: its limits, and what rules it out for a role.

Read without transformers. The same questions are asked of files here (`preflight`) and of what
transformers makes of a hub's name, where the data are read (`rlhf_ray.models.fit`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from rlhf_ray.config.base import ModelConfig

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


# A critic may start from a reward model; a classifier from any model.
Kind: TypeAlias = Literal["causal", "critic", "classifier"]

_ROLE_IDS = ("pad_token_id", "bos_token_id", "eos_token_id")
_NO_DECODER = ("ForMaskedLM", "ForTokenClassification", "ForQuestionAnswering", "ForPreTraining")
_CLASSIFIER = "ForSequenceClassification"


def kind_fault(config: Mapping[str, Any], kind: Kind) -> str | None:
    """Whether a model, by its `config.json`, is of another kind than a role takes."""
    if kind == "classifier":
        return None
    names = config.get("architectures") or []
    what = " or ".join(names) or config.get("model_type")
    if config.get("is_encoder_decoder"):
        return f"is {what}, an encoder with a decoder: a decoder alone is wanted"
    unfit = _NO_DECODER if kind == "critic" else (*_NO_DECODER, _CLASSIFIER)
    if names and all(name.endswith(unfit) for name in names):
        return f"is {what}: a causal language model is wanted"
    return None


def quantization_fault(config: Mapping[str, Any], model: ModelConfig) -> str | None:
    """Whether a model that is to be trained comes in weights that cannot be."""
    if not config.get("quantization_config"):
        return None
    method = section(config, "quantization_config").get("quant_method") or "bitsandbytes"
    if method == "bitsandbytes" and model.lora.rank:
        return None
    return (
        f"holds weights that are quantized ({method}) and cannot be trained: name the model in "
        "bfloat16 or float32; model.quantization with lora.rank quantizes it here"
    )


def token_id_faults(config: Mapping[str, Any], generation: Mapping[str, Any]) -> Iterator[str]:
    """Special tokens in `config.json` or `generation_config.json` that have no embedding."""
    num_rows = text_part(config).get("vocab_size")
    if not isinstance(num_rows, int):
        return
    files = {"config.json": text_part(config), "generation_config.json": generation}
    for file, values in files.items():
        for key in _ROLE_IDS:
            given = values.get(key)
            for token_id in given if isinstance(given, list) else [given]:
                if isinstance(token_id, int) and not 0 <= token_id < num_rows:
                    yield (
                        f"has {key} {token_id} in its {file}, but embeddings of the tokens 0 to "
                        f"{num_rows - 1} alone: correct it there"
                    )
