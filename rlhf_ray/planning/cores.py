"""How roles share the cores of a node: the threads of each rank, and which roles compute in turn.

A rank with a number in `cpus_per_rank` has so many threads. With `auto` a rank on a GPU has one,
and ranks on CPUs have what their node has:

1. Engines that sample while others train (`max_staleness` above 0) have one half of the cores, the
   other roles the rest. Else engines idle while the others compute (a reward model waits for them,
   see `scores_behind_engines`), and either have all of them.
2. Ranks of a role work at the same time: they divide what the role has.
3. Roles that are no engines compute in turn, each once as many cores are free as it has threads.
   A policy and a value function, which are updated at the same time, have a half each where they
   are on one node, and the other roles there as well: twice the threads do not make a pass twice
   as fast, as they wait for each other between any two operations.

So there are never more threads at work than cores: threads that wait for each other at every step
of a computation, for cores that others have, make it several times slower. Those of a role that
waits sleep by themselves: OpenMP's spin for some 8 ms behind a computation, by default. All of it
follows from configuration and machine alone, as the number of threads decides in which order floats
are added.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from rlhf_ray.config.placement import GroupConfig

ENGINES = "rollout"
UPDATED_TOGETHER = frozenset({"policy", "value"})


@dataclass(frozen=True, kw_only=True)
class CoreShares:
    """Of roles on CPUs.

    Attributes:
        threads: Of each rank of a role.
        lent: By node: cores on which roles that are no engines compute in turn.
        taken: By role and node: how many of those it needs to compute.
    """

    threads: Mapping[str, int] = field(default_factory=dict)
    lent: Mapping[str, int] = field(default_factory=dict)
    taken: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


def share_cores(
    groups: Mapping[str, GroupConfig],
    nodes_of: Mapping[str, Sequence[str]],
    cores: Mapping[str, int],
    *,
    working: Collection[str],
    runs_ahead: bool,
) -> CoreShares:
    """Share the cores of nodes.

    Args:
        groups: Of the roles that have ranks.
        nodes_of: The node of each rank of these roles.
        cores: Of each node.
        working: Roles of the job; the others are idle.
        runs_ahead: Whether engines sample while the other roles compute.

    Returns:
        Shares of the roles without GPUs. Ranks of one role have equally many threads, as they wait
        for the slowest of them.
    """
    ranks = {role: Counter(nodes_of[role]) for role, g in groups.items() if not g.gpus_per_rank}
    engines, lent, at_once = dict[str, int](), dict[str, int](), dict[str, int]()
    for node in sorted({node for on_nodes in ranks.values() for node in on_nodes}):
        here = {role: on_nodes[node] for role, on_nodes in ranks.items() if on_nodes[node]}
        engines[node] = lent[node] = cores[node]
        if runs_ahead and ENGINES in here and len(here) > 1:
            fixed = groups[ENGINES].cpus_per_rank
            half = max(1, cores[node] // 2)
            engines[node] = half if fixed == "auto" else here[ENGINES] * _threads(fixed)
            lent[node] = max(1, cores[node] - engines[node])
        at_once[node] = max(1, len(UPDATED_TOGETHER & here.keys() & {*working}))

    def share(role: str, node: str) -> int:
        return engines[node] if role == ENGINES else lent[node] // at_once[node]

    threads = {
        role: min(
            _threads(groups[role].cpus_per_rank, share(role, node) // num)
            for node, num in on_nodes.items()
        )
        for role, on_nodes in ranks.items()
    }
    taken = {
        role: {node: min(lent[node], num * threads[role]) for node, num in sorted(on_nodes.items())}
        for role, on_nodes in ranks.items()
        if role != ENGINES
    }
    return CoreShares(threads=threads, lent=lent, taken=taken)


def _threads(cpus_per_rank: float | str, share: int = 1) -> int:
    return max(1, share if isinstance(cpus_per_rank, str) else int(cpus_per_rank))
