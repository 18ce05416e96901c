"""Changes of a configuration that lessen what a job needs, by key and value."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from rlhf_ray.config.base import ForwardConfig, GroupConfig
from rlhf_ray.config.online import OnlineConfig
from rlhf_ray.config.run import JobConfig
from rlhf_ray.config.tools.layers import put
from rlhf_ray.config.tools.stages import Stage, groups_of
from rlhf_ray.learner.deepspeed.memory import ModelRank
from rlhf_ray.planning.plan import Plan

# One change by key and value, as they are given on the command line; a key that belongs to another
# goes with it.
Change = Mapping[str, Any]
SMALLEST_MICRO_BATCH = 2048
MEMORY_SHARES = (0.9, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
PLACEMENT = "placement"


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
