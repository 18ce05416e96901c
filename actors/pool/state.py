"""What a pool knows of its actors, and where each rank is; plain data that outlives its process."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ray.util.placement_group import PlacementGroup

from actors.cluster.role_handle import RoleHandle
from actors.weights.held_model import HeldModel
from rlhf_ray.config.placement import GroupConfig
from rlhf_ray.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Place:
    """One rank's.

    Attributes:
        group: Ray's placement group.
        bundle: Index of the one in it that the rank takes, or shares.
        gpus: The rank's, as Ray names them on the node and `CUDA_VISIBLE_DEVICES` does.
    """

    group: PlacementGroup
    bundle: int
    node_id: str
    address: str
    gpus: tuple[str, ...] = ()


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


def guest_places(role: str, group: GroupConfig, host: Sequence[Place]) -> list[Place]:
    """The place of each rank of a role that lives on another's GPUs, from the first of them on.

    Ranks without GPUs go round the host's.

    Raises:
        ConfigError: A rank's GPUs would lie on several nodes.
    """
    if not group.gpus_per_rank:
        return [replace(host[rank % len(host)], gpus=()) for rank in range(group.ranks)]
    flat = [(place, gpu) for place in host for gpu in place.gpus]
    places = []
    for rank in range(group.ranks):
        own = flat[rank * group.gpus_per_rank : (rank + 1) * group.gpus_per_rank]
        if len({place.node_id for place, _ in own}) > 1:
            raise ConfigError(
                f"{role} rank {rank} needs {group.gpus_per_rank} GPUs of one node, but those "
                f"of {group.share} ({len(host)} x {len(host[0].gpus)}) lie on several"
            )
        places.append(replace(own[0][0], gpus=tuple(gpu for _, gpu in own)))
    return places


def in_order(places: Sequence[Place]) -> list[Place]:
    """Those of ranks 0, 1, ...: neighbours on one node and GPU; Ray lays bundles anyhow."""

    def order(place: Place) -> tuple[Any, ...]:
        gpus = [_by_number(gpu) for gpu in place.gpus]
        return _by_number(place.address), place.node_id, gpus, place.bundle

    return sorted(places, key=order)


def _by_number(text: str) -> list[Any]:
    """As a key of sorting that puts 10.0.0.9 before 10.0.0.10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", text)]
