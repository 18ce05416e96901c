"""The table of a plan that says which rank goes where, and what each node gives to it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from rich.console import Group, RenderableType
from rich.text import Text

from launch.tables.format import size, span, table
from rlhf_ray.planning.layout import Place
from rlhf_ray.planning.plan import DRIVER, RESULTS, Plan


def placement(plan: Plan) -> RenderableType:
    """Roles by node and device, with the node's cores and memory that they take there."""
    grid = table("node", "device", "roles (ranks)", "cores", "GB", left=3)
    grid.columns[2].no_wrap = False
    shown: tuple[int, ...] = ()
    for row in _merged(plan):
        roles = [f"{role} {span(ranks)}" if ranks else role for role, ranks in row.ranks.items()]
        grid.add_row(
            "" if row.nodes == shown else span(row.nodes),
            f"GPU {span(row.gpus)}" if row.gpus else "CPU",
            ", ".join(roles) or "free",
            f"{row.cpus:g}" if row.cpus else "-",
            size(row.num_bytes),
        )
        shown = row.nodes
    memory = f"{size(max(plan.host_bytes))} GB of memory"
    where = "" if plan.cluster.nodes == 1 else " on the fullest node"
    actors = f"{len(plan.places)} actors, {plan.reserved_cpus:g} CPU cores"
    return Group(grid, Text(f"{actors}, {memory}{where}", style="dim"))


@dataclass(frozen=True, kw_only=True)
class _Row:
    """Some devices of one node, or of several nodes that are alike.

    Attributes:
        gpus: Their numbers; none for the CPU.
        ranks: Of each role; of what is no role, none.
        num_bytes: Of each node's memory.
    """

    nodes: tuple[int, ...]
    gpus: tuple[int, ...] = ()
    ranks: dict[str, list[int]]
    cpus: float = 0
    num_bytes: int

    def continues(self, other: _Row) -> bool:
        """Whether it is the same as `other` on the next node."""
        return (
            self.nodes[0] == other.nodes[-1] + 1
            and (self.gpus, self.ranks.keys()) == (other.gpus, other.ranks.keys())
            and (self.cpus, self.num_bytes) == (other.cpus, other.num_bytes)
        )


def _merged(plan: Plan) -> list[_Row]:
    """GPUs with the same roles together, then the CPU role by role; equal nodes as one."""
    merged: list[_Row] = []
    for row in _rows(plan):
        index = next((i for i, before in enumerate(merged) if row.continues(before)), None)
        if index is None:
            merged.append(row)
            continue
        before = merged[index]
        ranks = {role: before.ranks[role] + more for role, more in row.ranks.items()}
        merged[index] = replace(before, nodes=before.nodes + row.nodes, ranks=ranks)
    return merged


def _rows(plan: Plan) -> Iterator[_Row]:
    for node, held in enumerate(plan.hosts):
        here = [place for place in plan.places if place.node == node]
        gpus = range(plan.cluster.gpus_per_node)
        for _, some in groupby(gpus, key=lambda gpu: {p.role for p in here if gpu in p.gpus}):
            numbers = tuple(some)
            there = [place for place in here if set(place.gpus) & set(numbers)]
            yield _row(plan, node, there, numbers)
        for role in dict.fromkeys(place.role for place in here if not place.gpus):
            yield _row(plan, node, [place for place in here if place.role == role], ())
        for name in filter(held.__contains__, (DRIVER, RESULTS)):
            yield _Row(nodes=(node,), ranks={name: []}, num_bytes=held[name])


def _row(plan: Plan, node: int, places: Sequence[Place], gpus: tuple[int, ...]) -> _Row:
    ranks: dict[str, list[int]] = {}
    for place in places:
        ranks.setdefault(place.role, []).append(place.rank)
    # A rank whose GPUs are in several rows counts in the first.
    begun = [place for place in places if not gpus or place.gpus[0] in gpus]
    return _Row(
        nodes=(node,),
        gpus=gpus,
        ranks=ranks,
        cpus=sum(plan.cpus[place.role] for place in begun),
        num_bytes=sum(plan.place_bytes(place) for place in begun),
    )
