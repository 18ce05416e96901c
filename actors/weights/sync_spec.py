"""How weights travel from the policy to the engines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rlhf_ray.config.publication import Backend


@dataclass(frozen=True, kw_only=True)
class SyncSpec:
    """How weights travel.

    Attributes:
        replicas: Handles of the rollout actors.
        names: Their names, for errors.
        gpus_per_replica: Workers that receive inside each replica.
    """

    backend: Backend
    replicas: tuple[Any, ...]
    names: tuple[str, ...]
    gpus_per_replica: int
    bucket_bytes: int
    timeout_s: float
