"""What to change where jobs do not fit: keys and values, each tried by planning anew."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from rlhf_ray.config.learners import ForwardConfig
from rlhf_ray.config.online import OnlineConfig
from rlhf_ray.config.placement import GroupConfig
from rlhf_ray.config.run import JobConfig
from rlhf_ray.config.tools.layers import put
from rlhf_ray.config.tools.stages import Stage, groups_of
from rlhf_ray.errors import ConfigError
from rlhf_ray.learner.deepspeed.memory import ModelRank
from rlhf_ray.planning.layout import Cluster, smallest_cluster
from rlhf_ray.planning.needs import Engine
from rlhf_ray.planning.plan import Plan, plan_jobs
from rlhf_ray.planning.roles import Shapes

# One change by key and value, as they are given on the command line; a key that belongs to another
# goes with it.
Change = Mapping[str, Any]
SMALLEST_MICRO_BATCH = 2048
MEMORY_SHARES = (0.9, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
PLACEMENT = "placement"
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


def changed(jobs: Sequence[Stage], change: Change) -> list[Stage]:
    """The jobs after a change; what concerns placement is laid over all that have the role.

    Raises:
        ValidationError: It cannot be.
    """
    values = [job.rooted.model_dump() for job in jobs]
    for key, value in change.items():
        path = tuple(key.split("."))
        if path[0] == PLACEMENT:
            for of_job in values:
                if path[1] in of_job[PLACEMENT]:
                    put(of_job, path, value)
        elif path[0] == "stages":
            put(values[int(path[1])], path[3:], value)
        else:
            put(values[0], path, value)
    configs = [
        type(job.rooted).model_validate(of_job) for job, of_job in zip(jobs, values, strict=True)
    ]
    return [
        replace(job, config=config, rooted=config)
        for job, config in zip(jobs, configs, strict=True)
    ]


def less_memory(jobs: Sequence[Stage], plan: Plan) -> Iterator[Change]:
    """Single steps towards less memory, the cheapest for speed first."""
    groups = groups_of(jobs)
    for index, (job, stage) in enumerate(zip(jobs, plan.stages, strict=True)):
        models = {need.role: need.model for need in stage.roles}
        changes = [
            change
            for role, model in models.items()
            if isinstance(model, ModelRank)
            for change in _of_model(job.rooted, role, model, groups)
        ]
        if isinstance(job.rooted, OnlineConfig):
            changes += _of_engine(job.rooted)
        prefix = f"stages.{index}.set." if job.name else ""
        for change in changes:
            yield {
                key if key.startswith(PLACEMENT) else prefix + key: value
                for key, value in change.items()
            }


def fewer_gpus(jobs: Sequence[Stage]) -> Iterator[Change]:
    """Single steps towards fewer GPUs: roles move in with the policy, groups become smaller."""
    groups = groups_of(jobs)
    alone = {role: g for role, g in groups.items() if g.gpus_per_rank and not g.share}
    hosts = {g.share for g in groups.values()}
    for role, group in alone.items():
        if role != "policy" and "policy" in alone and role not in hosts:
            ranks = min(group.ranks, alone["policy"].ranks // group.gpus_per_rank)
            if ranks:
                yield {f"{PLACEMENT}.{role}.share": "policy", f"{PLACEMENT}.{role}.ranks": ranks}
    for role, group in alone.items():
        if group.ranks > 1:
            yield _with_guests(role, group.ranks // 2, groups)
    if "rollout" in alone and groups["rollout"].gpus_per_rank > 1:
        yield {f"{PLACEMENT}.rollout.gpus_per_rank": groups["rollout"].gpus_per_rank // 2}


def _of_model(
    config: JobConfig, role: str, rank: ModelRank, groups: Mapping[str, GroupConfig]
) -> Iterator[Change]:
    section = getattr(config, role)
    if not isinstance(section, ForwardConfig):  # a reward model has fewer keys
        yield from _smaller_passes(f"{role}.model", section.model.max_tokens_per_micro_batch)
        return
    if rank.use == "train" and not section.model.gradient_checkpointing:
        yield {f"{role}.model.gradient_checkpointing": True}
    yield from _smaller_passes(role, section.max_tokens_per_micro_batch)
    to_stage_3 = {f"{role}.zero.stage": 3}
    if section.zero.stage < 3 and rank.ranks > 1:
        yield to_stage_3
    spread = {} if section.zero.stage else to_stage_3
    if rank.use != "read" and section.zero.offload_optimizer == "none":
        yield {**spread, f"{role}.zero.offload_optimizer": "cpu"}
    if not rank.group.share:
        for factor in (2, 4, 8):
            yield {**_with_guests(role, factor * rank.ranks, groups), **spread}


def _with_guests(role: str, ranks: int, groups: Mapping[str, GroupConfig]) -> Change:
    """Another number of ranks, and of those that live with them; no more engines."""
    factor = ranks / groups[role].ranks
    guests = {
        f"{PLACEMENT}.{name}.ranks": max(1, int(factor * group.ranks))
        for name, group in groups.items()
        if group.share == role and group.gpus_per_rank and (name != "rollout" or factor < 1)
    }
    return {f"{PLACEMENT}.{role}.ranks": ranks, **guests}


def _smaller_passes(section: str, tokens: int) -> Iterator[Change]:
    while tokens > SMALLEST_MICRO_BATCH:
        tokens //= 2
        yield {f"{section}.max_tokens_per_micro_batch": tokens}


def _of_engine(config: OnlineConfig) -> Iterator[Change]:
    group, share = config.placement.rollout, config.rollout.gpu_memory_share
    if not group.gpus_per_rank:
        yield {"rollout.kv_cache_gb": 2 * config.rollout.kv_cache_gb}
        return
    yield from ({"rollout.gpu_memory_share": one} for one in MEMORY_SHARES if one != share)
    there = group.ranks * group.gpus_per_rank
    for gpus in (2, 4, 8):
        if gpus > group.gpus_per_rank and not (group.share and there % gpus):
            # On another role's GPUs there are fewer engines then.
            fewer = {f"{PLACEMENT}.rollout.ranks": there // gpus} if group.share else {}
            yield {f"{PLACEMENT}.rollout.gpus_per_rank": gpus, **fewer}
