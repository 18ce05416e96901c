"""Starting actors on a pool, side by side; without models, so that it can come before any job."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from actors.cluster.role_handle import RoleHandle
from actors.cluster.role_spec import RoleSpec
from actors.engines.replica_spec import ReplicaSpec
from actors.environments.worker import EnvironmentWorkers
from actors.pool.pool import Pool
from actors.ranks.experience import ExperienceRank
from actors.ranks.group import RankSpec
from actors.ranks.policy import PolicyRank
from actors.ranks.rank import Rank
from actors.ranks.reference import ReferenceRank
from actors.ranks.reward import RewardRank
from actors.ranks.reward_worker import RewardWorker, WorkerSpec
from actors.ranks.value import ValueRank
from actors.roles.engines import engine_spec, first_online
from actors.roles.lasting import repeated
from rlhf_ray.config.jobs import AnyJob
from rlhf_ray.config.placement import GroupConfig
from rlhf_ray.deadlines import side_by_side

logger = logging.getLogger(__name__)

# What the pool calls the processes of what scores beside a reward model.
REWARD_WORKER = "reward_worker"

RANKS: Mapping[str, RoleSpec] = {
    "policy": RankSpec(actor_class=PolicyRank),
    "reference": RankSpec(actor_class=ReferenceRank),
    "reward": RankSpec(actor_class=RewardRank),
    REWARD_WORKER: WorkerSpec(actor_class=RewardWorker),
    "value": RankSpec(actor_class=ValueRank),
}


def role_specs(roles: Iterable[str], *jobs: AnyJob) -> dict[str, RoleSpec]:
    """What is started for jobs, by the names that the pool gives it.

    Engines come with the helper that builds experience. A pipeline's role may be one of another of
    its jobs.

    Raises:
        ConfigError: The engines' model or tokenizer cannot be read.
    """
    roles = list(roles)
    specs = {role: RANKS[role] for role in roles if role in RANKS}
    if "environment" in roles:
        specs["environment"] = EnvironmentWorkers()
    if (engine := engine_spec(*jobs)) and (job := first_online(jobs)):
        specs["rollout"] = ReplicaSpec(engine=engine, works_beside=job.max_staleness > 0)
        specs["experience"] = RoleSpec(actor_class=ExperienceRank)
    return specs


async def start_actors(
    pool: Pool, groups: Mapping[str, GroupConfig], specs: Mapping[str, RoleSpec]
) -> Mapping[str, RoleHandle[Any]]:
    """Start what the pool does not hold yet; those on another role's GPUs after their host.

    Raises:
        ConfigError: The pool is too small or holds a role in another shape.
        RunError: An actor died or missed its deadline.
    """
    pool.place(groups)
    pool.share_cores(specs)
    if missing := [role for role in groups if role not in pool.state.roles]:
        logger.info("starting %s (about a minute)", ", ".join(missing))
    guests = [role for role in specs if role in groups and groups[role].share]
    actors: dict[str, RoleHandle[Any]] = {}
    for roles in ([role for role in specs if role not in guests], guests):
        # One that others make room for may die as well.
        actors.update(await repeated(pool, partial(_start_beside, pool, roles, specs)))
    return actors


async def _start_beside(
    pool: Pool, roles: Sequence[str], specs: Mapping[str, RoleSpec]
) -> Mapping[str, RoleHandle[Any]]:
    started = await side_by_side(pool.start(role, specs[role]) for role in roles)
    return dict(zip(roles, started, strict=True))


async def start_all(
    pool: Pool, groups: Mapping[str, GroupConfig], specs: Mapping[str, RoleSpec]
) -> None:
    """As `start_actors`; all but the engines import what their work needs, before there is any."""
    actors = await start_actors(pool, groups, specs)
    await side_by_side(
        repeated(pool, of_role.call(Rank.import_libraries, timeout_s=pool.timeouts.start_s))
        for role, of_role in actors.items()
        if role != "rollout"
    )
