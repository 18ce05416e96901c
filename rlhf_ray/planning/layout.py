"""The cluster that is planned for, and where each rank goes on it.

Ray's placement strategies are acted out on a cluster that need not exist; its cards are known by
what they show of their memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from rlhf_ray.config.placement import GroupConfig
from rlhf_ray.errors import ConfigError
from rlhf_ray.memory import GIB
from rlhf_ray.planning.groups import GroupPlan, Node, check_resources, plan_groups

# By the GB in a card's name, the GiB that CUDA shows: of cards with as many the one that shows
# least, as a sixteenth of a GDDR6 card's memory may be taken for error correction.
SHOWN_GIB: Mapping[float, float] = {
    16: 14.6,  # T4
    24: 22.0,  # L4, A10G; 23.6 on an RTX 4090
    40: 39.4,  # A100
    48: 44.3,  # A40, L40S
    80: 79.1,  # A100, H100
    141: 139.8,  # H200
}
# Of a GPU's memory: what fragmentation of the caching allocator needs.
FREE_SHARE = 0.05


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Equal nodes.

    Attributes:
        gpu_bytes: Memory of one GPU.
        node_bytes: Memory of one node beside its GPUs'; 0 where it is not known.
    """

    nodes: int
    gpus_per_node: int
    gpu_bytes: int
    node_bytes: int = 0

    @property
    def usable_gpu_bytes(self) -> float:
        """What roles may take of a GPU."""
        return self.gpu_bytes * (1 - FREE_SHARE)


def shown_bytes(gigabytes: float) -> int:
    """Bytes of a card that is sold with so many GB; any other number is taken as it is, in GiB."""
    return int(SHOWN_GIB.get(gigabytes, gigabytes) * GIB)


@dataclass(frozen=True, kw_only=True)
class Place:
    """One rank's node, and its GPUs there."""

    role: str
    rank: int
    node: int
    gpus: tuple[int, ...]


def lay_out(roles: Mapping[str, GroupConfig], cluster: Cluster) -> list[Place]:
    """A place for every rank, in the order in which the pool reserves them.

    CPU cores are taken to be enough: locally they are shared, on a cluster nodes differ.

    Raises:
        ConfigError: No room, or GPUs of one rank on several nodes.
    """
    plans = plan_groups(roles)
    _check_resources(plans, cluster)
    free = [list(range(cluster.gpus_per_node)) for _ in range(cluster.nodes)]
    places: dict[str, list[Place]] = {}
    for plan in plans:
        each = int(plan.bundles[0].get("GPU", 0))
        nodes = _nodes_of(plan, each, [len(gpus) for gpus in free])
        places[plan.host] = [
            Place(
                role=plan.host,
                rank=rank,
                node=node,
                gpus=tuple(free[node].pop(0) for _ in range(each)),
            )
            for rank, node in enumerate(sorted(nodes))
        ]
        for guest in plan.guests:
            places[guest] = _guests(guest, roles[guest], places[plan.host])
    return [place for role in roles for place in places[role]]


def smallest_cluster(roles: Mapping[str, GroupConfig], node: Cluster) -> Cluster:
    """The fewest nodes like those of `node` that hold the job.

    Raises:
        ConfigError: A rank or group needs more GPUs of one node than there are.
    """
    hosts = [group for group in roles.values() if not group.share]
    most = sum(group.ranks for group in hosts)
    gpus = sum(group.ranks * group.gpus_per_rank for group in hosts)
    least = max(1, -(-gpus // max(1, node.gpus_per_node)))
    for nodes in range(least, most):
        cluster = replace(node, nodes=nodes)
        try:
            lay_out(roles, cluster)
        except ConfigError:
            continue
        return cluster
    cluster = replace(node, nodes=most)
    lay_out(roles, cluster)
    return cluster


def _check_resources(plans: Sequence[GroupPlan], cluster: Cluster) -> None:
    """GPUs alone: what else is asked for, labels as well, is taken to be there."""
    gpus_alone = [
        replace(plan, bundles=tuple(map(_gpus, plan.bundles)), labels={}) for plan in plans
    ]
    node = {"GPU": float(cluster.gpus_per_node)}
    check_resources(
        gpus_alone, [Node(address=f"node {n}", resources=node) for n in range(cluster.nodes)]
    )


def _gpus(bundle: Mapping[str, float]) -> Mapping[str, float]:
    return {name: amount for name, amount in bundle.items() if name == "GPU"}


def _nodes_of(plan: GroupPlan, each: int, free: Sequence[int]) -> list[int]:
    """A node for each bundle.

    Raises:
        ConfigError: The group's strategy finds no room.
    """
    if not each:
        spreads = plan.strategy in ("SPREAD", "STRICT_SPREAD")
        return [rank % len(free) if spreads else 0 for rank in range(len(plan.bundles))]
    room = [gpus // each for gpus in free]
    num = len(plan.bundles)
    match plan.strategy:
        case "STRICT_PACK":
            nodes = _on_one(room, num)
        case "STRICT_SPREAD":
            nodes = [node for node, ranks in enumerate(room) if ranks][:num]
        case "SPREAD":
            nodes = _in_turns(room, num)
        case _:
            nodes = _on_one(room, num) or _filled(room, num)
    if len(nodes) < num:
        raise ConfigError(
            f"no room for {plan.host}: {num} x {each} GPUs of one node each, {plan.strategy}; "
            f"free are {', '.join(map(str, free))} GPUs on {len(free)} nodes"
        )
    return nodes


def _on_one(room: Sequence[int], num: int) -> list[int]:
    """The node with the least room that is enough."""
    fitting = [node for node, ranks in enumerate(room) if ranks >= num]
    return [min(fitting, key=lambda node: room[node])] * num if fitting else []


def _filled(room: Sequence[int], num: int) -> list[int]:
    """The emptiest nodes first, so that they are few."""
    emptiest = sorted(range(len(room)), key=lambda node: -room[node])
    return [node for node in emptiest for _ in range(room[node])][:num]


def _in_turns(room: Sequence[int], num: int) -> list[int]:
    rounds = range(max(room, default=0))
    return [node for turn in rounds for node, ranks in enumerate(room) if turn < ranks][:num]


def _guests(role: str, group: GroupConfig, hosts: Sequence[Place]) -> list[Place]:
    """On the hosts' GPUs in order, as the pool places them; without GPUs in turns."""
    if not group.gpus_per_rank:
        return [
            Place(role=role, rank=rank, node=hosts[rank % len(hosts)].node, gpus=())
            for rank in range(group.ranks)
        ]
    flat = [(host.node, gpu) for host in hosts for gpu in host.gpus]
    places = []
    for rank in range(group.ranks):
        mine = flat[rank * group.gpus_per_rank : (rank + 1) * group.gpus_per_rank]
        nodes = {node for node, _ in mine}
        if len(nodes) > 1:
            raise ConfigError(
                f"placement.{role} rank {rank} needs {group.gpus_per_rank} GPUs of one node, but "
                f"those of {group.share} lie on {len(nodes)}"
            )
        places.append(
            Place(role=role, rank=rank, node=mine[0][0], gpus=tuple(gpu for _, gpu in mine))
        )
    return places
