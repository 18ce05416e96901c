"""What a pool knows of its actors; plain data, so that it can outlive the process that made it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from actors.cluster.actor_set import ActorSet
from actors.pool.placement import Slot
from actors.weights.held_model import HeldModel
from rlhf_ray.config.base import GroupConfig


@dataclass(frozen=True, kw_only=True)
class Hosted:
    """What a role was last asked to host, and when (seconds since the epoch)."""

    path: str
    since_s: float


@dataclass(kw_only=True)
class PoolState:
    """Everything that a pool knows; a standing pool's record keeps it between jobs.

    Attributes:
        groups: Shape of each placed role.
        slots: Where the ranks of each role with GPUs of its own go.
        sets: The started actors of each role.
        specs: What the engines were started with, by role.
        models: Models that jobs left in the actors' memory, by path.
        hosted: The model of each role.
    """

    groups: dict[str, GroupConfig] = field(default_factory=dict)
    slots: dict[str, list[Slot]] = field(default_factory=dict)
    sets: dict[str, ActorSet] = field(default_factory=dict)
    specs: dict[str, Any] = field(default_factory=dict)
    models: dict[str, HeldModel] = field(default_factory=dict)
    hosted: dict[str, Hosted] = field(default_factory=dict)
