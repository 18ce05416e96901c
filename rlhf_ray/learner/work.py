"""How much arithmetic a token costs in an update of a model, as it is held and trained here."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlhf_ray.learner.weights import parameter_infos
from rlhf_ray.metrics.flops import update_flops_per_token
from rlhf_ray.models.decoder import base_of

# An expert by itself, as code outside transformers has them; adapters on a stack of them.
_ONE_OR_ADAPTER = re.compile(r"\.experts\.(\d+|base_layer|lora_)")


def flops_per_token(lm: Any) -> float:
    """Of an optimiser step, forward and backward.

    Experts count as far as a token visits them; frozen weights have no gradient of their own.
    """
    base = base_of(lm)
    experts = _Experts.of(base.config.get_text_config())
    num_active = sum(experts.visited(info.name, info.shape) for info in parameter_infos(lm))
    num_trained = 0.0
    for name, parameter in base.named_parameters():
        size = experts.visited(name, getattr(parameter, "ds_shape", parameter.shape))
        num_trained += size * parameter.requires_grad
        num_active += size * (".lora_" in name)
    return update_flops_per_token(num_active=num_active, num_trained=num_trained)


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
