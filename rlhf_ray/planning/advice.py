"""What to change where jobs do not fit: keys and values, each tried by planning anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pydantic import ValidationError

from rlhf_ray.config.tools.stages import Stage, groups_of
from rlhf_ray.errors import ConfigError
from rlhf_ray.planning.changes import Change, changed, fewer_gpus, less_memory
from rlhf_ray.planning.engines import Engine
from rlhf_ray.planning.layout import Cluster, smallest_cluster
from rlhf_ray.planning.plan import Plan, plan_jobs
from rlhf_ray.planning.roles import Shapes

MOST_CHANGES = 8
# More GPUs than so many times what was asked for is no advice.
MOST_TIMES_GPUS = 16


@dataclass(frozen=True, kw_only=True)
class Advice:
    """One way to make jobs fit.

    Attributes:
        change: Keys of the configuration and their new values.
        plan: What comes of it, perhaps on more nodes.
    """

    change: Change
    plan: Plan


def advise(jobs: Sequence[Stage], shapes: Shapes, plan: Plan) -> list[Advice]:
    """Changes after which jobs fit that do not.

    Every single one that is enough, first those that take no more nodes; several together where
    none of them does.
    """
    search = _Search(jobs=jobs, shapes=shapes, cluster=plan.cluster)
    found: dict[frozenset[str], Advice] = {}
    for change in less_memory(jobs, plan):
        keys = frozenset(change)  # of which the gentlest value comes first
        attempt = None if keys in found else search.attempt(change, more_nodes=True)
        if attempt and attempt.plan and attempt.plan.fits:
            found[keys] = Advice(change=change, plan=attempt.plan)
    ways = list(found.values())
    if not any(way.plan.cluster.nodes <= plan.cluster.nodes for way in ways):
        ways += search.together(plan, more_nodes=False)
    ways = ways or search.together(plan, more_nodes=True)
    return sorted(ways, key=lambda way: way.plan.cluster.nodes > plan.cluster.nodes)


def advise_placement(jobs: Sequence[Stage], shapes: Shapes, cluster: Cluster) -> list[Advice]:
    """Changes after which jobs fit a cluster that has no place for them as they are."""
    search = _Search(jobs=jobs, shapes=shapes, cluster=cluster)
    return search.together(None, more_nodes=False)


@dataclass(frozen=True, kw_only=True)
class _Attempt:
    """Jobs after a change; `plan` is None where the cluster has no place for them."""

    change: Change
    jobs: Sequence[Stage]
    plan: Plan | None

    @property
    def excess(self) -> tuple[float, float]:
        """How far it is from fitting: GPUs too many, and memory over what there is."""
        return (_num_gpus(self.jobs), 0.0) if self.plan is None else (0, _excess(self.plan))


@dataclass(frozen=True, kw_only=True)
class _Search:
    """Tries changes of some jobs on a cluster."""

    jobs: Sequence[Stage]
    shapes: Shapes
    cluster: Cluster

    def together(self, plan: Plan | None, *, more_nodes: bool) -> list[Advice]:
        """Change after change, each the one that leaves least too much, until the jobs fit."""
        now = _Attempt(change={}, jobs=self.jobs, plan=plan)
        for _ in range(MOST_CHANGES):
            steps = fewer_gpus(now.jobs) if now.plan is None else less_memory(now.jobs, now.plan)
            tried = (self.attempt({**now.change, **step}, more_nodes=more_nodes) for step in steps)
            best = min(filter(None, tried), key=lambda attempt: attempt.excess, default=now)
            if best.plan is not None and best.plan.fits:
                # Without what was set on the way, and set back.
                same = list(self.jobs)
                change = {k: v for k, v in best.change.items() if self.changed({k: v}) != same}
                return [Advice(change=change, plan=best.plan)]
            if best.excess >= now.excess:
                break
            now = best
        return []

    def changed(self, change: Change) -> Sequence[Stage] | None:
        """The jobs after a change; None if it is invalid."""
        try:
            return changed(self.jobs, change)
        except ValidationError:
            return None

    def attempt(self, change: Change, *, more_nodes: bool) -> _Attempt | None:
        """A change on the cluster, or where it asks for more GPUs on more nodes; None: no way."""
        jobs, cluster = self.changed(change), self.cluster
        if jobs is None or (
            more_nodes and _num_gpus(jobs) > MOST_TIMES_GPUS * _num_gpus(self.jobs)
        ):
            return None
        try:
            if more_nodes:
                needed = smallest_cluster(groups_of(jobs), cluster).nodes
                cluster = replace(cluster, nodes=max(needed, cluster.nodes))
            plan: Plan | None = plan_jobs(jobs, self.shapes, cluster)
        except ConfigError:
            if more_nodes or cluster.nodes * cluster.gpus_per_node >= _num_gpus(jobs):
                return None
            plan = None
        return _Attempt(change=change, jobs=jobs, plan=plan)


def _num_gpus(jobs: Sequence[Stage]) -> int:
    groups = groups_of(jobs).values()
    return sum(group.ranks * group.gpus_per_rank for group in groups if not group.share)


def _excess(plan: Plan) -> float:
    """How far GPUs, nodes and caches are over what they can give, as a sum of shares."""
    cluster = plan.cluster
    full = [gpu.total / cluster.usable_gpu_bytes for gpu in plan.gpus]
    full += [size / cluster.node_bytes for size in plan.host_bytes if cluster.node_bytes]
    for need in plan.roles:
        if need.cache_tokens is not None and isinstance(need.model, Engine):
            full.append(2 - min(1, need.cache_tokens / need.model.max_model_len))
    return sum(max(0.0, share - 1) for share in full)
