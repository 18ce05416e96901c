"""How much arithmetic an update of a model costs, as it is held and trained here."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from rlhf_ray.learner.weights import parameter_infos
from rlhf_ray.metrics.usage import UpdateFlops
from rlhf_ray.models.decoder import base_of
from rlhf_ray.models.sharding import whole_shape

# An expert by itself, as code outside transformers has them; adapters on a stack of them.
_ONE_OR_ADAPTER = re.compile(r"\.experts\.(\d+|base_layer|lora_)")


def update_flops(lm: Any) -> UpdateFlops:
    """Of an optimiser step, forward and backward.

    Experts count as far as a token visits them; frozen weights have no gradient of their own; a
    table that is looked up costs nothing, unless it is the head as well.
    """
    base = base_of(lm)
    config = base.config.get_text_config()
    experts, head = _Experts.of(config), base.get_output_embeddings()
    # What the vocabulary product's matrix is called; a tied one has more names than one.
    named = base.named_parameters(remove_duplicate=False)
    heads = {name for name, parameter in named if head is not None and parameter is head.weight}
    modules = base.named_modules()
    tables = {f"{name}.weight" for name, module in modules if isinstance(module, nn.Embedding)}
    others = tables | heads
    return UpdateFlops(
        per_token=_matrix_flops(lm, experts, lambda name: name not in others),
        per_scored_token=_matrix_flops(lm, experts, lambda name: name in heads),
        per_pair=_attention_flops(config),
    )


def _matrix_flops(lm: Any, experts: _Experts, counts: Callable[[str], bool]) -> float:
    """Of one token through the matrices whose names count; vectors are only added.

    2 a parameter forward, 2 for the gradient of its input, 2 for its own gradient.
    """
    num_active = num_trained = 0.0
    for info in parameter_infos(lm):
        if len(info.shape) > 1 and counts(info.name):
            num_active += experts.visited(info.name, info.shape)
    for name, parameter in base_of(lm).named_parameters():
        shape = whole_shape(parameter)
        if len(shape) > 1 and counts(name):
            size = experts.visited(name, shape)
            num_active += size * (".lora_" in name)
            num_trained += size * parameter.requires_grad
    return 4.0 * num_active + 2.0 * num_trained


def _attention_flops(config: Any) -> Mapping[int | None, float]:
    """By window: a pair's product of query and key and its part of the sum of values, in each head.

    Twice 2 a number forward, and as much again for each factor's gradient. Layers that are no
    attention have none; nor has a family that has other names for its heads.
    """
    num_heads = getattr(config, "num_attention_heads", None)
    if not isinstance(num_heads, int):
        return {}
    key_size = value_size = getattr(config, "head_dim", None) or config.hidden_size // num_heads
    if getattr(config, "qk_nope_head_dim", None):  # DeepSeek's latent attention
        key_size = config.qk_nope_head_dim + config.qk_rope_head_dim
        value_size = config.v_head_dim
    window = getattr(config, "sliding_window", None)
    chunk = getattr(config, "attention_chunk_size", None)
    windows = {"full_attention": None, "sliding_attention": window, "chunked_attention": chunk}
    per_pair: dict[int | None, float] = {}
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        kinds = ["sliding_attention"] * config.num_hidden_layers
    for kind in kinds:
        if kind in windows:
            flops = 6.0 * num_heads * (key_size + value_size)
            per_pair[windows[kind]] = per_pair.get(windows[kind], 0.0) + flops
    return per_pair


@dataclass(frozen=True, kw_only=True)
class _Experts:
    """A layer's; `num` is 0 for a model without any, `share` what one token goes to of them."""

    num: int
    share: float

    @classmethod
    def of(cls, config: Any) -> _Experts:
        """By the names that families have for them."""
        chosen = getattr(config, "num_experts_per_tok", None)
        counts = ("num_local_experts", "num_experts", "n_routed_experts")
        num = next((count for name in counts if (count := getattr(config, name, None))), 0)
        return cls(num=num, share=chosen / num if chosen and num else 1.0)

    def visited(self, name: str, shape: Sequence[int]) -> float:
        """How many of a parameter's values one token passes through."""
        size = math.prod(shape)
        # transformers lays experts one behind the other, whatever it calls them.
        is_stack = len(shape) == 3 and shape[0] == self.num
        return size * self.share if is_stack or _ONE_OR_ADAPTER.search(name) else float(size)
