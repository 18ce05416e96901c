"""How much arithmetic a token costs in an update of a model, as it is held and trained here."""

from __future__ import annotations

import math
from typing import Any

from rlhf_ray.learner.weights import parameter_infos
from rlhf_ray.metrics.flops import update_flops_per_token
from rlhf_ray.models.decoder import base_of


def flops_per_token(lm: Any) -> float:
    """Of an optimiser step, forward and backward.

    Experts count as far as a token visits them; frozen weights have no gradient of their own.
    """
    base = base_of(lm)
    share = _share_of_experts(base.config.get_text_config())
    num_active = sum(
        math.prod(info.shape) * _visited(info.name, share) for info in parameter_infos(lm)
    )
    num_trained = 0.0
    for name, parameter in base.named_parameters():
        size = getattr(parameter, "ds_numel", parameter.numel()) * _visited(name, share)
        num_trained += size * parameter.requires_grad
        num_active += size * (".lora_" in name)
    return update_flops_per_token(num_active=num_active, num_trained=num_trained)


def _visited(name: str, share: float) -> float:
    return share if ".experts." in name else 1.0


def _share_of_experts(config: Any) -> float:
    """Of a layer's experts, those that one token goes to; 1 for a model without any."""
    chosen = getattr(config, "num_experts_per_tok", None)
    counts = ("num_local_experts", "num_experts", "n_routed_experts")
    num = next((count for name in counts if (count := getattr(config, name, None))), None)
    return chosen / num if chosen and num else 1.0
