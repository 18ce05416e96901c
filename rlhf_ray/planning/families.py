"""Which models can be planned for; counts are compared with transformers' own in the tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
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


def _a_head(config: Mapping[str, Any]) -> str:
    return "head"


def _biased(traits: Traits, told: Callable[[Mapping[str, Any]], bool] = always) -> Traits:
    """All products of a layer have biases where the configuration says so."""
    return replace(traits, qkv_bias=told, output_bias=told, mlp_bias=told)


_ATTENTION_BIAS = says("attention_bias")
_MODERN = Traits(qkv_bias=_ATTENTION_BIAS, output_bias=_ATTENTION_BIAS)
_LLAMA = replace(_MODERN, mlp_bias=says("mlp_bias"))
_GEMMA = replace(_MODERN, head_dim=256, tied=True)
_QWEN3 = replace(_MODERN, head_dim=128, qk_norm=_a_head)
_CLASSIC = Traits(gated=False, norm_size=2)
_GPT = replace(_CLASSIC, names=_GPT2_NAMES)

_DECODERS: Mapping[str, Traits] = {
    "llama": _LLAMA,
    "mistral": Traits(),
    "mixtral": Traits(),
    "smollm3": replace(_LLAMA, tied=True),
    "granite": _LLAMA,
    "qwen2": Traits(qkv_bias=always),
    "qwen2_moe": Traits(qkv_bias=says("qkv_bias", True)),
    "qwen3": _QWEN3,
    "qwen3_moe": _QWEN3,
    "gemma": _GEMMA,
    "gemma2": replace(_GEMMA, norms=4),
    "gemma3_text": replace(_GEMMA, norms=4, qk_norm=_a_head),
    "phi3": Traits(),
    "phi": replace(_biased(_CLASSIC), norms=1, head_bias=True),
    "olmo": replace(_MODERN, norm_size=0),
    "olmo2": replace(_MODERN, qk_norm=lambda config: "all"),
    "cohere": replace(
        _MODERN,
        norms=1,
        qk_norm=lambda config: "all" if config.get("use_qk_norm") else "none",
        tied=True,
    ),
    "starcoder2": replace(_biased(_CLASSIC, says("use_bias", True)), tied=True),
    "stablelm": Traits(qkv_bias=says("use_qkv_bias"), norm_size=2),
    "gpt2": replace(_biased(_GPT), tied=True, positions=0),
    "gptj": replace(_GPT, mlp_bias=always, norms=1, head_bias=True),
    "gpt_neo": replace(
        _CLASSIC,
        names={"num_hidden_layers": "num_layers", "num_attention_heads": "num_heads"},
        output_bias=always,
        mlp_bias=always,
        tied=True,
        positions=0,
    ),
    "gpt_neox": replace(
        _CLASSIC,
        qkv_bias=says("attention_bias", True),
        output_bias=says("attention_bias", True),
        mlp_bias=always,
    ),
    "opt": replace(
        _biased(_CLASSIC, says("enable_bias", True)),
        names={"intermediate_size": "ffn_dim"},
        outer_norms=says("do_layer_norm_before", True),
        tied=True,
        positions=2,
    ),
    "bloom": replace(
        _biased(_CLASSIC),
        names={"num_hidden_layers": "n_layer", "num_attention_heads": "n_head"},
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
