"""Which devices of which nodes hold what, as rows of a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from rlhf_ray.planning.layout import Place
from rlhf_ray.planning.needs import DRIVER, RESULTS, place_bytes
from rlhf_ray.planning.plan import Plan


@dataclass(frozen=True, kw_only=True)
class DeviceRow:
    """Some devices of one node, or of several nodes that are alike.

    Attributes:
        gpus: Their numbers; none for the CPU.
        ranks: Of each role; of what is no role, none.
        num_bytes: Of each node's memory.
    """

    nodes: tuple[int, ...]
    gpus: tuple[int, ...]
    ranks: dict[str, list[int]]
    cpus: float
    num_bytes: int

    def continues(self, other: DeviceRow) -> bool:
        """Whether it is the same as `other` on the next node."""
        return (
            self.nodes[0] == other.nodes[-1] + 1
            and (self.gpus, self.ranks.keys()) == (other.gpus, other.ranks.keys())
            and (self.cpus, self.num_bytes) == (other.cpus, other.num_bytes)
        )

    def joined(self, other: DeviceRow) -> DeviceRow:
        """Both as one."""
        return DeviceRow(
            nodes=self.nodes + other.nodes,
            gpus=self.gpus,
            ranks={role: [*ranks, *other.ranks[role]] for role, ranks in self.ranks.items()},
            cpus=self.cpus,
            num_bytes=self.num_bytes,
        )


def device_rows(plan: Plan) -> list[DeviceRow]:
    """GPUs with the same roles together, then the CPU role by role; equal nodes as one."""
    merged: list[DeviceRow] = []
    for row in _rows(plan):
        before = next((index for index, one in enumerate(merged) if row.continues(one)), None)
        if before is None:
            merged.append(row)
        else:
            merged[before] = merged[before].joined(row)
    return merged


def _rows(plan: Plan) -> Iterator[DeviceRow]:
    for node in range(plan.cluster.nodes):
        here = [place for place in plan.places if place.node == node]
        gpus = range(plan.cluster.gpus_per_node)
        for roles, some in groupby(gpus, key=lambda gpu: _roles_on(here, gpu)):
            yield _gpu_row(plan, node, tuple(some), roles, here)
        for role in dict.fromkeys(place.role for place in here if not place.gpus):
            places = [place for place in here if place.role == role]
            yield _row(plan, node, (), {role: [place.rank for place in places]}, places)
        for name in (DRIVER, RESULTS):
            if name in plan.hosts[node]:
                num_bytes = plan.hosts[node][name]
                yield DeviceRow(
                    nodes=(node,), gpus=(), ranks={name: []}, cpus=0, num_bytes=num_bytes
                )


def _roles_on(places: Sequence[Place], gpu: int) -> tuple[str, ...]:
    return tuple(dict.fromkeys(place.role for place in places if gpu in place.gpus))


def _gpu_row(
    plan: Plan, node: int, gpus: tuple[int, ...], roles: Sequence[str], here: Sequence[Place]
) -> DeviceRow:
    on_them = [place for place in here if set(place.gpus) & set(gpus)]
    ranks = {role: sorted(p.rank for p in on_them if p.role == role) for role in roles}
    # A rank whose GPUs are in several rows counts in the first.
    begun = [place for place in on_them if place.gpus[0] in gpus]
    return _row(plan, node, gpus, ranks, begun)


def _row(
    plan: Plan,
    node: int,
    gpus: tuple[int, ...],
    ranks: dict[str, list[int]],
    places: Sequence[Place],
) -> DeviceRow:
    return DeviceRow(
        nodes=(node,),
        gpus=gpus,
        ranks=ranks,
        cpus=sum(plan.cpus[place.role] for place in places),
        num_bytes=sum(_bytes_of(plan, place) for place in places),
    )


def _bytes_of(plan: Plan, place: Place) -> int:
    return max(place_bytes(need, place) for need in plan.roles if need.role == place.role)
