"""What a pool knows of its actors; plain data, so that it can outlive the process that made it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from actors.cluster.role_handle import RoleHandle
from actors.pool.places import Place
from actors.weights.held_model import HeldModel
from rlhf_ray.config.base import GroupConfig


@dataclass(kw_only=True)
class PoolState:
    """Everything that a pool knows; a standing pool's record keeps it between jobs.

    Attributes:
        groups: Shape of each placed role.
        places: Where the ranks of each role with a placement group of its own go.
        roles: Those that are started.
        models: Models that jobs left in the actors' memory, by path.
    """

    groups: dict[str, GroupConfig] = field(default_factory=dict)
    places: dict[str, list[Place]] = field(default_factory=dict)
    roles: dict[str, RoleHandle[Any]] = field(default_factory=dict)
    models: dict[str, HeldModel] = field(default_factory=dict)
