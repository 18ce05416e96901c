"""Decoders by their configuration: most are Llama's layer with a few things otherwise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rlhf_ray.planning.model_shape import Layer, Linear, ModelShape

Config = Mapping[str, Any]


def never(config: Config) -> bool:
    """No."""
    return False


def always(config: Config) -> bool:
    """Yes."""
    return True


def says(key: str, default: bool = False) -> Callable[[Config], bool]:
    """Whether the configuration switches something on."""
    return lambda config: bool(config.get(key, default))


@dataclass(frozen=True, kw_only=True)
class Traits:
    """What a family does otherwise.

    Attributes:
        names: What it calls a size, by the name that it has here.
        head_dim: Where the configuration states none; 0 for hidden / heads.
        qkv_bias: Of the products that make queries, keys and values; `output_bias` after them.
        norms: A layer's, over the hidden size.
        norm_size: Parameters of a norm: 1 a hidden unit, 2 with a bias, 0 without any.
        outer_norms: How many there are beside the layers.
        qk_norm: Norms of queries and keys: `none`, `head` (one head's size) or `all` (all heads').
        tied: Whether head and embedding are one where the configuration does not say.
        positions: Learned positions beyond the context; None for none at all.
    """

    names: Mapping[str, str] = field(default_factory=dict)
    head_dim: int = 0
    qkv_bias: Callable[[Config], bool] = never
    output_bias: Callable[[Config], bool] = never
    mlp_bias: Callable[[Config], bool] = never
    head_bias: bool = False
    gated: bool = True
    norms: int = 2
    norm_size: int = 1
    outer_norms: Callable[[Config], int] = always
    qk_norm: Callable[[Config], str] = lambda config: "none"
    tied: bool = False
    positions: int | None = None


def decoder(traits: Traits) -> Callable[[Config], ModelShape]:
    """How the configurations of a family with such traits are read."""
    return lambda config: _shape(traits, config)


def _shape(traits: Traits, config: Config) -> ModelShape:
    def size(name: str, default: int | None = None) -> int:
        found = config.get(traits.names.get(name, name), default)
        if found is None and default is None:
            raise KeyError(traits.names.get(name, name))
        return int(found if found is not None else default or 0)

    hidden, vocabulary = size("hidden_size"), size("vocab_size")
    heads = size("num_attention_heads")
    kv_heads = size("num_key_value_heads", heads)
    head_dim = size("head_dim", traits.head_dim or hidden // heads)
    attention = attention_linears(
        hidden,
        heads * head_dim,
        kv_heads * head_dim,
        qkv_bias=traits.qkv_bias(config),
        output_bias=traits.output_bias(config),
    )
    qk_norm = {
        "none": 0,
        "head": 2 * head_dim,
        "all": (heads + kv_heads) * head_dim,
    }[traits.qk_norm(config)]
    num_norm = traits.norm_size * (traits.norms * hidden + qk_norm)
    feed_forward = _feed_forward(traits, config, hidden, size)
    layers = tuple(
        Layer(
            linears=(*attention, *part.linears),
            num_other=num_norm + part.num_other,
            num_fused=part.num_fused,
            experts=part.experts,
        )
        for part in feed_forward
    )
    embedding = size("word_embed_proj_dim", hidden)
    project = Linear(inputs=embedding, outputs=hidden)
    projections = (project, project) if embedding != hidden else ()
    context = size("max_position_embeddings", 0)
    positions = 0 if traits.positions is None else (context + traits.positions) * hidden
    tied = config.get("tie_word_embeddings", traits.tied)
    head = Linear(inputs=embedding, outputs=vocabulary, bias=traits.head_bias)
    return ModelShape(
        model_type=str(config["model_type"]),
        hidden=hidden,
        vocabulary=vocabulary,
        layers=layers,
        outer_linears=projections,
        num_embedding=vocabulary * embedding + positions,
        num_other=traits.outer_norms(config) * traits.norm_size * hidden,
        lm_head=None if tied else head,
        score_head=embedding,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        ffn=max(part.ffn for part in feed_forward),
        is_gated=traits.gated,
        kv_width=2 * kv_heads * head_dim,
        context_tokens=context,
    )


def attention_linears(
    hidden: int, query: int, key: int, *, qkv_bias: bool, output_bias: bool
) -> tuple[Linear, ...]:
    """Products into queries, keys and values, and back."""
    return (
        Linear(inputs=hidden, outputs=query, bias=qkv_bias, name="q_proj"),
        Linear(inputs=hidden, outputs=key, bias=qkv_bias, name="k_proj"),
        Linear(inputs=hidden, outputs=key, bias=qkv_bias, name="v_proj"),
        Linear(inputs=query, outputs=hidden, bias=output_bias, name="o_proj"),
    )


@dataclass(frozen=True, kw_only=True)
class _FeedForward:
    """The second half of a layer; `ffn` is the width that a token passes through."""

    linears: tuple[Linear, ...]
    num_other: int
    ffn: int
    num_fused: int = 0
    experts: tuple[Linear, ...] = ()


def _feed_forward(
    traits: Traits, config: Config, hidden: int, size: Callable[..., int]
) -> list[_FeedForward]:
    num_layers = size("num_hidden_layers")
    width = size("intermediate_size", 4 * hidden)
    bias = traits.mlp_bias(config)
    dense = _FeedForward(
        linears=mlp_linears(hidden, width, gated=traits.gated, bias=bias), num_other=0, ffn=width
    )
    num_experts = config.get("num_local_experts") or config.get("num_experts") or 0
    if not num_experts:
        return [dense] * num_layers
    expert = int(config.get("moe_intermediate_size", width))
    shared = int(config.get("shared_expert_intermediate_size", 0))
    router = num_experts * hidden
    num_other = router + 3 * num_experts * hidden * expert
    linears: tuple[Linear, ...] = ()
    if shared:
        gate = Linear(inputs=hidden, outputs=1)
        linears = (*mlp_linears(hidden, shared, gated=True, bias=False), gate)
    sparse = _FeedForward(
        linears=linears,
        num_other=num_other,
        ffn=shared + expert * int(config.get("num_experts_per_tok", 2)),
        num_fused=2 * num_experts * hidden * expert,
        experts=_expert_linears(str(config["model_type"]), num_experts, hidden, expert),
    )
    step, dense_layers = config.get("decoder_sparse_step", 1), config.get("mlp_only_layers") or ()
    return [
        dense if layer in dense_layers or (layer + 1) % step else sparse
        for layer in range(num_layers)
    ]


# What a target is called that peft takes for the router, for gates (with what they are multiplied
# with), and for the products back, where it knows a family's experts.
_EXPERT_TARGETS = {
    "mixtral": ("gate", "w1", "w2"),
    "qwen3_moe": ("gate", "gate_proj", "down_proj"),
}


def _expert_linears(
    model_type: str, num_experts: int, hidden: int, width: int
) -> tuple[Linear, ...]:
    """What adapters on experts come to: peft gives the fused gate and up twice the rank."""
    if model_type not in _EXPERT_TARGETS:
        return ()
    router, gate, down = _EXPERT_TARGETS[model_type]
    return (
        Linear(inputs=hidden, outputs=num_experts, name=router),
        *(Linear(inputs=hidden, outputs=2 * width, name=gate),) * (2 * num_experts),
        *(Linear(inputs=width, outputs=hidden, name=down),) * num_experts,
    )


def mlp_linears(hidden: int, width: int, *, gated: bool, bias: bool) -> tuple[Linear, ...]:
    """Products to the inner width, twice where one gates the other, and back."""
    if not gated:
        return (
            Linear(inputs=hidden, outputs=width, bias=bias),
            Linear(inputs=width, outputs=hidden, bias=bias),
        )
    return (
        Linear(inputs=hidden, outputs=width, bias=bias, name="gate_proj"),
        Linear(inputs=hidden, outputs=width, bias=bias, name="up_proj"),
        Linear(inputs=width, outputs=hidden, bias=bias, name="down_proj"),
    )
