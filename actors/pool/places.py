"""Where each rank of a role is: which bundle of Ray's, on which node, with which GPUs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ray.util.placement_group import PlacementGroup

from rlhf_ray.config.base import GroupConfig
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
