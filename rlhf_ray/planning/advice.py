"""What to change where jobs do not fit: keys and values, each tried by planning anew."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from pydantic import ValidationError

from rlhf_ray.errors import ConfigError
from rlhf_ray.planning.changes import Change, changed, fewer_gpus, less_memory
from rlhf_ray.planning.layout import Cluster, smallest_cluster
from rlhf_ray.planning.plan import Plan, plan_jobs
from rlhf_ray.planning.planned_job import PlannedJob, groups_of
from rlhf_ray.planning.roles import Shapes
from rlhf_ray.planning.verdict import usable_gpu_bytes
from rlhf_ray.planning.work import EngineWork

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


@dataclass(frozen=True, kw_only=True)
class _Attempt:
    """Jobs after a change.

    Attributes:
        plan: None where the cluster has no place for them.
        num_gpus: That they ask for.
    """

    change: Change
    jobs: Sequence[PlannedJob]
    plan: Plan | None
    num_gpus: int

    @property
    def excess(self) -> tuple[float, float]:
        """How far it is from fitting: GPUs too many, and memory over what there is."""
        if self.plan is None:
            return self.num_gpus, 0.0
        return 0, _excess(self.plan)


def advise(jobs: Sequence[PlannedJob], shapes: Shapes, plan: Plan) -> list[Advice]:
    """Changes after which jobs fit that do not.

    Every single one that is enough, first those that take no more nodes; several together where
    none of them does.
    """
    search = _Search(jobs, shapes, plan.cluster)
    found: dict[frozenset[str], Advice] = {}
    for change in less_memory(jobs, plan):
        keys = frozenset(change)
        if keys in found:  # the gentlest value comes first
            continue
        attempt = search.on_more_nodes(change)
        if attempt and attempt.plan and attempt.plan.fits:
            found[keys] = Advice(change=change, plan=attempt.plan)
    ways = list(found.values())
    if not any(way.plan.cluster.nodes <= plan.cluster.nodes for way in ways):
        ways += search.together(plan, more_nodes=False)
    ways = ways or search.together(plan, more_nodes=True)
    return sorted(ways, key=lambda way: way.plan.cluster.nodes > plan.cluster.nodes)


def advise_placement(jobs: Sequence[PlannedJob], shapes: Shapes, cluster: Cluster) -> list[Advice]:
    """Changes after which jobs fit a cluster that has no place for them as they are."""
    return _Search(jobs, shapes, cluster).together(None, more_nodes=False)


class _Search:
    """Tries changes of some jobs on a cluster."""

    def __init__(self, jobs: Sequence[PlannedJob], shapes: Shapes, cluster: Cluster) -> None:
        self.jobs, self.shapes, self.cluster = jobs, shapes, cluster

    def together(self, plan: Plan | None, *, more_nodes: bool) -> list[Advice]:
        """Change after change, each the one that leaves least too much, until the jobs fit."""
        attempt_at = self.on_more_nodes if more_nodes else self.here
        now = _Attempt(change={}, jobs=self.jobs, plan=plan, num_gpus=_num_gpus(self.jobs))
        for _ in range(MOST_CHANGES):
            tried = [
                attempt
                for change in _steps(now)
                if (attempt := attempt_at({**now.change, **change})) is not None
            ]
            best = min(tried, key=lambda attempt: attempt.excess, default=now)
            if best.plan is not None and best.plan.fits:
                return [Advice(change=self._effective(best.change), plan=best.plan)]
            if best.excess >= now.excess:
                break
            now = best
        return []

    def here(self, change: Change) -> _Attempt | None:
        """A change on the cluster as it is; None if it is invalid."""
        jobs = self._changed(change)
        return None if jobs is None else self._attempt(change, jobs, self.cluster)

    def on_more_nodes(self, change: Change) -> _Attempt | None:
        """The same, on more nodes where it asks for more GPUs."""
        jobs = self._changed(change)
        if jobs is None or _num_gpus(jobs) > MOST_TIMES_GPUS * _num_gpus(self.jobs):
            return None
        try:
            needed = smallest_cluster(groups_of(jobs), self.cluster)
        except ConfigError:
            return None
        larger = replace(self.cluster, nodes=max(needed.nodes, self.cluster.nodes))
        return self._attempt(change, jobs, larger)

    def _effective(self, change: Change) -> Change:
        """Without what was set on the way, and set back."""
        return {
            key: value
            for key, value in change.items()
            if self._changed({key: value}) != list(self.jobs)
        }

    def _changed(self, change: Change) -> Sequence[PlannedJob] | None:
        try:
            return changed(self.jobs, change)
        except ValidationError:
            return None

    def _attempt(
        self, change: Change, jobs: Sequence[PlannedJob], cluster: Cluster
    ) -> _Attempt | None:
        plan: Plan | None = None
        try:
            plan = plan_jobs(jobs, self.shapes, cluster)
        except ConfigError:
            if cluster.nodes * cluster.gpus_per_node >= _num_gpus(jobs):
                return None
        return _Attempt(change=change, jobs=jobs, plan=plan, num_gpus=_num_gpus(jobs))


def _steps(now: _Attempt) -> Iterator[Change]:
    return fewer_gpus(now.jobs) if now.plan is None else less_memory(now.jobs, now.plan)


def _num_gpus(jobs: Sequence[PlannedJob]) -> int:
    groups = groups_of(jobs).values()
    return sum(group.ranks * group.gpus_per_rank for group in groups if not group.share)


def _excess(plan: Plan) -> float:
    """How far GPUs, nodes and caches are over what they can give, as a sum of shares."""
    cluster = plan.cluster
    full = [gpu.total / usable_gpu_bytes(cluster) for gpu in plan.gpus]
    full += [size / cluster.node_bytes for size in plan.host_bytes if cluster.node_bytes]
    for need in plan.roles:
        if need.engine is not None and isinstance(need.work, EngineWork):
            full.append(2 - min(1, need.engine.cache_tokens / need.work.max_model_len))
    return sum(max(0.0, share - 1) for share in full)
