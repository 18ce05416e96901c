"""Which models can be planned for; counts are compared with transformers' own in the tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rlhf_ray.planning.decoders import Traits, always, decoder, says
from rlhf_ray.planning.encoders import bert, deberta, distilbert, modernbert, roberta
from rlhf_ray.planning.model_shape import ModelShape

_GPT2_NAMES = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "intermediate_size": "n_inner",
    "max_position_embeddings": "n_positions",
}


def _biased(key: str, default: bool) -> dict[str, Callable[[Mapping[str, Any]], bool]]:
    """All products of a layer have biases where `key` says so."""
    told = says(key, default)
    return {"qkv_bias": told, "output_bias": told, "mlp_bias": told}


def _attention_biased(default: bool = False) -> dict[str, Callable[[Mapping[str, Any]], bool]]:
    told = says("attention_bias", default)
    return {"qkv_bias": told, "output_bias": told}


def _a_head(config: Mapping[str, Any]) -> str:
    return "head"


_LAYER_NORM = {"gated": False, "norm_size": 2}
_GEMMA = {"head_dim": 256, "tied": True}
_QWEN3 = {"qk_norm": _a_head, "head_dim": 128}

_DECODERS: Mapping[str, Traits] = {
    "llama": Traits(**_attention_biased(), mlp_bias=says("mlp_bias")),
    "mistral": Traits(),
    "mixtral": Traits(),
    "smollm3": Traits(**_attention_biased(), mlp_bias=says("mlp_bias"), tied=True),
    "granite": Traits(**_attention_biased(), mlp_bias=says("mlp_bias")),
    "qwen2": Traits(qkv_bias=always),
    "qwen2_moe": Traits(qkv_bias=says("qkv_bias", True)),
    "qwen3": Traits(**_attention_biased(), **_QWEN3),
    "qwen3_moe": Traits(**_attention_biased(), **_QWEN3),
    "gemma": Traits(**_attention_biased(), **_GEMMA),
    "gemma2": Traits(**_attention_biased(), **_GEMMA, norms=4),
    "gemma3_text": Traits(**_attention_biased(), **_GEMMA, norms=4, qk_norm=_a_head),
    "phi3": Traits(),
    "phi": Traits(**_biased("_", True), **_LAYER_NORM, norms=1, head_bias=True),
    "olmo": Traits(**_attention_biased(), norm_size=0),
    "olmo2": Traits(**_attention_biased(), qk_norm=lambda config: "all"),
    "cohere": Traits(
        **_attention_biased(),
        norms=1,
        qk_norm=lambda config: "all" if config.get("use_qk_norm") else "none",
        tied=True,
    ),
    "starcoder2": Traits(**_biased("use_bias", True), **_LAYER_NORM, tied=True),
    "stablelm": Traits(qkv_bias=says("use_qkv_bias"), norm_size=2),
    "gpt2": Traits(names=_GPT2_NAMES, **_biased("_", True), **_LAYER_NORM, tied=True, positions=0),
    "gptj": Traits(names=_GPT2_NAMES, mlp_bias=always, **_LAYER_NORM, norms=1, head_bias=True),
    "gpt_neo": Traits(
        names={"num_hidden_layers": "num_layers", "num_attention_heads": "num_heads"},
        output_bias=always,
        mlp_bias=always,
        **_LAYER_NORM,
        tied=True,
        positions=0,
    ),
    "gpt_neox": Traits(**_attention_biased(True), mlp_bias=always, **_LAYER_NORM),
    "opt": Traits(
        names={"intermediate_size": "ffn_dim"},
        **_biased("enable_bias", True),
        **_LAYER_NORM,
        outer_norms=says("do_layer_norm_before", True),
        tied=True,
        positions=2,
    ),
    "bloom": Traits(
        names={"num_hidden_layers": "n_layer", "num_attention_heads": "n_head"},
        **_biased("_", True),
        **_LAYER_NORM,
        outer_norms=lambda config: 2,
        tied=True,
    ),
}

FAMILIES: Mapping[str, Callable[[Mapping[str, Any]], ModelShape]] = {
    **{name: decoder(traits) for name, traits in _DECODERS.items()},
    "bert": bert,
    "deberta-v2": deberta,
    "distilbert": distilbert,
    "modernbert": modernbert,
    "roberta": roberta,
    "xlm-roberta": roberta,
}
