"""How weights travel from the policy to the engines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


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


def backend_of(configured: str, *, gpus_per_replica: int, shares_gpus: bool) -> str:
    """Resolve `publication.backend: auto`."""
    if configured != "auto":
        return configured
    if not gpus_per_replica:
        return "object_store"
    return "ipc" if shares_gpus else "nccl"
