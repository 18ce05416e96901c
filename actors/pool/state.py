"""What a pool knows of its actors; plain data, so that it can outlive the process that made it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from actors.cluster.role_handle import RoleHandle
from actors.pool.places import Place, guest_places
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

    def places_of(self, role: str) -> list[Place]:
        """The place of each rank of a role that is placed, its own or in its host's.

        Raises:
            ConfigError: A rank's GPUs would lie on several nodes.
        """
        group = self.groups[role]
        if not group.share:
            return list(self.places[role])
        return guest_places(role, group, self.places[group.share])

    @property
    def _host_of(self) -> dict[str, str]:
        """The role whose GPUs each role on GPUs lives on."""
        return {role: g.host_of(role) for role, g in self.groups.items() if g.gpus_per_rank}

    def shared_host(self, role: str) -> str:
        """The role whose GPUs this one and another live on; empty where it has its own."""
        hosts = self._host_of
        host = hosts.get(role, "")
        return host if list(hosts.values()).count(host) > 1 else ""

    def idle_beside(self, roles: Collection[str]) -> set[str]:
        """The other roles on the GPUs of some roles."""
        hosts = self._host_of
        busy = {hosts[role] for role in roles if role in hosts}
        return {role for role, host in hosts.items() if host in busy and role not in roles}
