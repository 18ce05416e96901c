"""Encoders by their configuration; they serve as reward models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_ray.planning.decoders import attention_linears, mlp_linears
from rlhf_ray.planning.model_shape import Layer, Linear, ModelShape

Config = Mapping[str, Any]


def bert(config: Config) -> ModelShape:
    """BERT: its pooler belongs to the body."""
    hidden = int(config["hidden_size"])
    pooler = Linear(inputs=hidden, outputs=hidden, bias=True)
    return _encoder(config, _layers(config, hidden), outer=[pooler], score_head=hidden + 1)


def roberta(config: Config) -> ModelShape:
    """RoBERTa and XLM-RoBERTa: a head of two layers."""
    hidden = int(config["hidden_size"])
    return _encoder(config, _layers(config, hidden), score_head=_two_layers(hidden))


def deberta(config: Config) -> ModelShape:
    """DeBERTa v2 and v3 (https://arxiv.org/abs/2111.09543): relative positions of all layers."""
    hidden = int(config["hidden_size"])
    pooler = Linear(inputs=hidden, outputs=hidden, bias=True)
    buckets = int(config.get("position_buckets", -1))
    reach = int(config.get("max_relative_positions", -1))
    if reach < 1:
        reach = int(config["max_position_embeddings"])
    relative = 2 * (buckets if buckets > 0 else reach) * hidden
    norm = 2 * hidden if "layer_norm" in str(config.get("norm_rel_ebd", "none")) else 0
    absolute = bool(config.get("position_biased_input", True))
    return _encoder(
        config,
        _layers(config, hidden),
        outer=[pooler],
        num_positions=int(config["max_position_embeddings"]) if absolute else 0,
        num_types=int(config.get("type_vocab_size", 0)),
        num_other=relative + norm if config.get("relative_attention") else 0,
        score_head=hidden + 1,
    )


def distilbert(config: Config) -> ModelShape:
    """DistilBERT, which names its sizes otherwise and knows no token types."""
    renamed = {
        **config,
        "hidden_size": config["dim"],
        "intermediate_size": config["hidden_dim"],
        "num_hidden_layers": config["n_layers"],
        "num_attention_heads": config["n_heads"],
    }
    hidden = int(config["dim"])
    return _encoder(renamed, _layers(renamed, hidden), num_types=0, score_head=_two_layers(hidden))


def modernbert(config: Config) -> ModelShape:
    """ModernBERT (https://arxiv.org/abs/2412.13663): no biases, a gated inner width."""
    hidden, width = int(config["hidden_size"]), int(config["intermediate_size"])
    layer = (
        *attention_linears(hidden, hidden, hidden, qkv_bias=False, output_bias=False),
        *mlp_linears(hidden, width, gated=True, bias=False),
    )
    # The first layer has one norm only.
    layers = [
        Layer(linears=layer, num_other=(1 if index == 0 else 2) * hidden)
        for index in range(int(config["num_hidden_layers"]))
    ]
    return _encoder(
        config,
        layers,
        num_positions=0,
        num_types=0,
        norm=hidden,
        num_other=hidden,
        score_head=hidden * hidden + hidden + hidden + 1,
        is_gated=True,
    )


def _two_layers(hidden: int) -> int:
    return hidden * hidden + hidden + hidden + 1


def _layers(config: Config, hidden: int) -> list[Layer]:
    layer = Layer(
        linears=(
            *attention_linears(hidden, hidden, hidden, qkv_bias=True, output_bias=True),
            *mlp_linears(hidden, int(config["intermediate_size"]), gated=False, bias=True),
        ),
        num_other=4 * hidden,
    )
    return [layer] * int(config["num_hidden_layers"])


def _encoder(
    config: Config,
    layers: Sequence[Layer],
    *,
    score_head: int,
    outer: Sequence[Linear] = (),
    num_positions: int | None = None,
    num_types: int | None = None,
    num_other: int = 0,
    norm: int | None = None,
    is_gated: bool = False,
) -> ModelShape:
    hidden, vocabulary = int(config["hidden_size"]), int(config["vocab_size"])
    heads, context = int(config["num_attention_heads"]), int(config["max_position_embeddings"])
    positions = context if num_positions is None else num_positions
    types = int(config.get("type_vocab_size", 2)) if num_types is None else num_types
    return ModelShape(
        model_type=str(config["model_type"]),
        hidden=hidden,
        vocabulary=vocabulary,
        layers=tuple(layers),
        outer_linears=tuple(outer),
        num_embedding=(vocabulary + positions + types) * hidden,
        num_other=num_other + (2 * hidden if norm is None else norm),
        lm_head=None,
        score_head=score_head,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=hidden // heads,
        ffn=int(config["intermediate_size"]),
        is_gated=is_gated,
        kv_width=2 * hidden,
        context_tokens=context,
    )
