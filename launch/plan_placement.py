"""The table of a plan that says which rank goes where, and what each node gives to it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from rich.console import Group, RenderableType
from rich.text import Text

from launch.plan_format import size, span, table
from rlhf_ray.planning.layout import Place
from rlhf_ray.planning.needs import DRIVER, RESULTS, place_bytes
from rlhf_ray.planning.plan import Plan


@dataclass(frozen=True, kw_only=True)
class _Row:
    """Some devices of one node, or of several nodes that are alike."""

    nodes: tuple[int, ...]
    device: str
    ranks: dict[str, list[int]]
    cpus: float
    num_bytes: int

    def continues(self, other: _Row) -> bool:
        """Whether it is the same as `other` on the next node."""
        return (
            self.nodes[0] == other.nodes[-1] + 1
            and (self.device, self.ranks.keys()) == (other.device, other.ranks.keys())
            and (self.cpus, self.num_bytes) == (other.cpus, other.num_bytes)
        )

    def joined(self, other: _Row) -> _Row:
        """Both as one."""
        return _Row(
            nodes=self.nodes + other.nodes,
            device=self.device,
            ranks={role: [*ranks, *other.ranks[role]] for role, ranks in self.ranks.items()},
            cpus=self.cpus,
            num_bytes=self.num_bytes,
        )


def placement(plan: Plan) -> RenderableType:
    """Roles by node and device, with the node's cores and memory that they take there."""
    grid = table("node", "device", "roles (ranks)", "cores", "GB", left=3)
    grid.columns[2].no_wrap = False
    shown: tuple[int, ...] = ()
    for row in _merged(_rows(plan)):
        roles = ", ".join(
            f"{role} {span(ranks)}" if ranks else role for role, ranks in row.ranks.items()
        )
        grid.add_row(
            "" if row.nodes == shown else span(row.nodes),
            row.device,
            roles,
            f"{row.cpus:g}" if row.cpus else "-",
            size(row.num_bytes),
        )
        shown = row.nodes
    most = max(plan.host_bytes)
    of_a_node = "of memory" if plan.cluster.nodes == 1 else "of memory on the fullest node"
    count = (
        f"{len(plan.places)} actors, {plan.reserved_cpus:g} CPU cores, {size(most)} GB {of_a_node}"
    )
    return Group(grid, Text(count, style="dim"))


def _merged(rows: Iterator[_Row]) -> list[_Row]:
    merged: list[_Row] = []
    for row in rows:
        before = next((index for index, one in enumerate(merged) if row.continues(one)), None)
        if before is None:
            merged.append(row)
        else:
            merged[before] = merged[before].joined(row)
    return merged


def _rows(plan: Plan) -> Iterator[_Row]:
    """GPUs with the same roles together, then the CPU role by role."""
    for node in range(plan.cluster.nodes):
        here = [place for place in plan.places if place.node == node]
        gpus = range(plan.cluster.gpus_per_node)
        for roles, some in groupby(gpus, key=lambda gpu: _roles_on(here, gpu)):
            yield _gpu_row(plan, node, tuple(some), roles, here)
        for role in dict.fromkeys(place.role for place in here if not place.gpus):
            places = [place for place in here if place.role == role]
            yield _row(plan, node, "CPU", {role: [place.rank for place in places]}, places)
        for name in (DRIVER, RESULTS):
            if name in plan.hosts[node]:
                shown = {DRIVER: "the driver", RESULTS: "results of stages"}[name]
                yield _Row(
                    nodes=(node,),
                    device="CPU",
                    ranks={shown: []},
                    cpus=0,
                    num_bytes=plan.hosts[node][name],
                )


def _roles_on(places: Sequence[Place], gpu: int) -> tuple[str, ...]:
    return tuple(dict.fromkeys(place.role for place in places if gpu in place.gpus))


def _gpu_row(
    plan: Plan, node: int, gpus: tuple[int, ...], roles: Sequence[str], here: Sequence[Place]
) -> _Row:
    on_them = [place for place in here if set(place.gpus) & set(gpus)]
    ranks = {role: sorted(p.rank for p in on_them if p.role == role) for role in roles}
    # A rank whose GPUs are in several rows counts in the first.
    begun = [place for place in on_them if place.gpus[0] in gpus]
    return _row(plan, node, f"GPU {span(gpus)}", ranks or {"free": []}, begun)


def _row(
    plan: Plan, node: int, device: str, ranks: dict[str, list[int]], places: Sequence[Place]
) -> _Row:
    return _Row(
        nodes=(node,),
        device=device,
        ranks=ranks,
        cpus=sum(plan.cpus[place.role] for place in places),
        num_bytes=sum(_bytes_of(plan, place) for place in places),
    )


def _bytes_of(plan: Plan, place: Place) -> int:
    return max(place_bytes(need, place) for need in plan.roles if need.role == place.role)
