"""How weights travel from the policy to the engines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rlhf_ray.config.online import PlacementConfig, PublicationConfig
from rlhf_ray.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class SyncSpec:
    """How weights travel.

    Attributes:
        backend: `object_store`, `nccl` or `ipc`.
        replicas: Handles of the rollout actors.
        names: Their names, for errors.
        gpus_per_replica: Workers that receive inside each replica.
    """

    backend: str
    replicas: tuple[Any, ...]
    names: tuple[str, ...]
    gpus_per_replica: int
    bucket_bytes: int
    timeout_s: float


def backend_of(config: PublicationConfig, placement: PlacementConfig) -> str:
    """Resolve `publication.backend: auto`.

    Raises:
        ConfigError: A policy on CPU cannot reach engines on GPUs.
    """
    if config.backend != "auto":
        return config.backend
    policy, rollout = placement.policy, placement.rollout
    if not rollout.gpus_per_rank:
        return "object_store"
    if not policy.gpus_per_rank:
        raise ConfigError("placement.policy must have GPUs where placement.rollout has, got none")
    # A CUDA handle is good on the GPU it was made on: each engine's GPU needs a policy rank.
    together = policy.host_of("policy") == rollout.host_of("rollout")
    covers = policy.ranks >= rollout.ranks * rollout.gpus_per_rank
    return "ipc" if together and covers else "nccl"
