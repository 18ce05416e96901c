"""Where a policy's reference lives: on ranks of its own, or below the policy's adapter."""

from __future__ import annotations

from typing import Literal

from rlhf_ray.config.models import ModelConfig

# `role` for a group of its own, `adapter_off` for the policy without its adapter.
ReferenceKind = Literal["auto", "role", "adapter_off"]


def is_base_of(policy: ModelConfig, reference: ModelConfig, kind: str) -> bool:
    """Whether the policy without its adapter is the reference, by a `reference_kind`.

    `auto` takes it where there is an adapter, on the weights that the reference starts from.
    """
    if kind != "auto":
        return kind == "adapter_off"
    starts_alike = (reference.path, reference.revision) == (policy.path, policy.revision)
    return policy.lora.rank > 0 and (not reference.path or starts_alike)
