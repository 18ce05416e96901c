"""What to change where a job does not fit: keys and values, each tried by planning anew."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from rlhf_ray.config.base import ForwardConfig, JobConfig
from rlhf_ray.config.online import OnlineConfig
from rlhf_ray.errors import ConfigError
from rlhf_ray.planning.job import JobPlan, plan_job
from rlhf_ray.planning.layout import Cluster, smallest_cluster
from rlhf_ray.planning.roles import Shapes
from rlhf_ray.planning.work import EngineWork, ModelWork

# One change by key and value; a key that belongs to another goes with it.
Change = Mapping[str, Any]
SMALLEST_MICRO_BATCH = 2048
MOST_CHANGES = 8


@dataclass(frozen=True, kw_only=True)
class Advice:
    """One way to make a job fit.

    Attributes:
        changes: Keys of the configuration and their new values; empty where none was found.
        nodes: That it then takes.
    """

    changes: Change
    nodes: int


def advise(config: JobConfig, shapes: Shapes, plan: JobPlan) -> list[Advice]:
    """Changes after which the job fits.

    Every single one that is enough, first those that take no more nodes; several together where
    none of them does.
    """
    found: dict[frozenset[str], Advice] = {}
    for change in _candidates(config, plan):
        keys = frozenset(change)
        if keys in found:  # the gentlest value comes first
            continue
        changed = _planned(config, shapes, plan.cluster, change)
        if changed is not None and changed.fits:
            found[keys] = Advice(changes=change, nodes=changed.cluster.nodes)
    ways = list(found.values())
    if not any(way.nodes <= plan.cluster.nodes for way in ways):
        ways += _together(config, shapes, plan, most_nodes=plan.cluster.nodes)
    ways = ways or _together(config, shapes, plan, most_nodes=None)
    return sorted(ways, key=lambda way: way.nodes > plan.cluster.nodes)


def _together(
    config: JobConfig, shapes: Shapes, plan: JobPlan, *, most_nodes: int | None
) -> list[Advice]:
    """Change after change, each the one that leaves least too much, until the job fits."""
    taken: dict[str, Any] = {}
    for _ in range(MOST_CHANGES):
        tried = []
        for change in _candidates(_changed(config, taken), plan):
            changed = _planned(config, shapes, plan.cluster, {**taken, **change})
            if changed is None or (most_nodes and changed.cluster.nodes > most_nodes):
                continue
            if changed.fits:
                return [Advice(changes={**taken, **change}, nodes=changed.cluster.nodes)]
            tried.append((_excess(changed), changed, change))
        if not tried:
            return []
        excess, best, change = min(tried, key=lambda attempt: attempt[0])
        if excess >= _excess(plan):
            return []
        taken, plan = {**taken, **change}, best
    return []


def _excess(plan: JobPlan) -> float:
    """How far GPUs, nodes and caches are over what they have, as a sum of shares."""
    cluster = plan.cluster
    full = [gpu.total / cluster.gpu_bytes for gpu in plan.gpus]
    full += [size / cluster.node_bytes for size in plan.host_bytes if cluster.node_bytes]
    for need in plan.roles:
        if need.engine is not None and isinstance(need.work, EngineWork):
            full.append(2 - min(1, need.engine.cache_tokens / need.work.max_model_len))
    return sum(max(0.0, share - 1) for share in full)


def _planned(config: JobConfig, shapes: Shapes, cluster: Cluster, change: Change) -> JobPlan | None:
    """The plan after a change, on more nodes where it asks for more GPUs; None if it is invalid."""
    try:
        changed = _changed(config, change)
        needed = smallest_cluster(changed.groups, cluster)
        larger = needed if needed.nodes > cluster.nodes else cluster
        return plan_job(changed, shapes, larger)
    except (ConfigError, ValidationError):
        return None


def _changed(config: JobConfig, change: Change) -> JobConfig:
    values = config.model_dump()
    for key, value in change.items():
        *above, last = key.split(".")
        section = values
        for name in above:
            section = section[name]
        section[last] = value
    return type(config).model_validate(values)


def _candidates(config: JobConfig, plan: JobPlan) -> Iterator[Change]:
    """Single steps towards less memory, the cheapest for speed first."""
    for need in plan.roles:
        if isinstance(need.work, ModelWork):
            yield from _of_model(config, need.work)
    if isinstance(config, OnlineConfig):
        yield from _of_engine(config)


def _of_model(config: JobConfig, work: ModelWork) -> Iterator[Change]:
    role = work.role
    section = getattr(config, role)
    if not isinstance(section, ForwardConfig):  # a reward model has fewer keys
        yield from _smaller_passes(work.section, section.model.max_tokens_per_micro_batch)
        return
    if work.trains and not section.model.gradient_checkpointing:
        yield {f"{role}.model.gradient_checkpointing": True}
    yield from _smaller_passes(role, section.max_tokens_per_micro_batch)
    if section.zero.stage < 3 and work.group.ranks > 1:
        yield {f"{role}.zero.stage": 3}
    if work.trains and section.zero.offload_optimizer == "none":
        stage = {f"{role}.zero.stage": 3} if section.zero.stage == 0 else {}
        yield {**stage, f"{role}.zero.offload_optimizer": "cpu"}
    yield from _more_ranks(config, work)


def _more_ranks(config: JobConfig, work: ModelWork) -> Iterator[Change]:
    role, group = work.role, work.group
    if group.share:
        return
    guests = [name for name, other in config.groups.items() if other.share == role]
    section = getattr(config, role)
    spread = {f"{role}.zero.stage": 3} if section.zero.stage == 0 else {}
    for factor in (2, 4, 8):
        yield {
            f"placement.{role}.ranks": factor * group.ranks,
            **{
                f"placement.{guest}.ranks": factor * config.groups[guest].ranks
                for guest in guests
                if guest != "rollout"
            },
            **spread,
        }


def _smaller_passes(section: str, tokens: int) -> Iterator[Change]:
    while tokens > SMALLEST_MICRO_BATCH:
        tokens //= 2
        yield {f"{section}.max_tokens_per_micro_batch": tokens}


def _of_engine(config: OnlineConfig) -> Iterator[Change]:
    group, share = config.placement.rollout, config.rollout.gpu_memory_share
    if not group.gpus_per_rank:
        yield {"rollout.kv_cache_gb": 2 * config.rollout.kv_cache_gb}
        return
    for wanted in (0.9, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2):
        if wanted != share:
            yield {"rollout.gpu_memory_share": wanted}
    if not group.share:
        for gpus in (2, 4, 8):
            if gpus > group.gpus_per_rank:
                yield {"placement.rollout.gpus_per_rank": gpus}
