"""How weights travel from the policy to the engines."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_ray.config.publication import Backend


@dataclass(frozen=True, kw_only=True)
class SyncSpec:
    """How weights travel.

    Attributes:
        gpus_per_replica: Workers that receive inside each replica.
    """

    backend: Backend
    gpus_per_replica: int
    bucket_bytes: int
    timeout_s: float
