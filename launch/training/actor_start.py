"""Starting actors on a pool, side by side; without models, so that it can come before any job."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from actors.cluster.role import RoleHandle
from actors.engines.role import ReplicaSpec
from actors.engines.spec import EngineSpec
from actors.pool.pool import Pool
from actors.ranks.experience import ExperienceRank
from actors.ranks.group import RankSpec, WorkerSpec
from actors.ranks.policy import PolicyRank
from actors.ranks.rank import Rank
from actors.ranks.reference import ReferenceRank
from actors.ranks.reward import RewardRank
from actors.ranks.reward_worker import REWARD_WORKER, RewardWorker
from actors.ranks.value import ValueRank
from rlhf_ray.config.base import GroupConfig
from rlhf_ray.config.online import OnlineConfig
from rlhf_ray.config.supervised import SupervisedConfig

logger = logging.getLogger(__name__)

RANKS = {
    "policy": RankSpec(actor_class=PolicyRank),
    "reference": RankSpec(actor_class=ReferenceRank),
    "reward": RankSpec(actor_class=RewardRank),
    "value": RankSpec(actor_class=ValueRank),
}


async def start_actors(
    pool: Pool,
    groups: Mapping[str, GroupConfig],
    jobs: Sequence[OnlineConfig | SupervisedConfig],
    *,
    engine: EngineSpec | None = None,
) -> Mapping[str, RoleHandle[Any]]:
    """Start what the pool does not hold yet; those on another role's GPUs after their host.

    Args:
        pool: Where they go.
        groups: The roles, each with its shape.
        jobs: That they are for.
        engine: Of the rollout role, which comes with the helper that builds experience.

    Raises:
        ConfigError: The pool is too small or holds a role in another shape.
        RunError: An actor died or missed its deadline.
    """
    pool.place(groups)
    tell_of_start(pool, groups)
    starts: dict[str, Any] = {
        role: partial(pool.start, role, RANKS[role])
        for role in groups
        if role in RANKS and (role != "reward" or any(map(_has_reward_ranks, jobs)))
    }
    if any(map(_has_reward_worker, jobs)):
        worker = WorkerSpec(actor_class=RewardWorker)
        starts[REWARD_WORKER] = partial(pool.start, REWARD_WORKER, worker, beside="reward")
    if engine is not None:
        starts["rollout"] = partial(pool.start, "rollout", ReplicaSpec(engine=engine))
        builder = WorkerSpec(actor_class=ExperienceRank)
        starts["experience"] = partial(pool.start, "experience", builder)
    guests = [role for role in starts if role in groups and groups[role].share]
    actors: dict[str, RoleHandle[Any]] = {}
    for roles in ([role for role in starts if role not in guests], guests):
        started = await asyncio.gather(*(starts[role]() for role in roles))
        actors.update(zip(roles, started, strict=True))
    return actors


def _has_reward_ranks(job: OnlineConfig | SupervisedConfig) -> bool:
    if isinstance(job, SupervisedConfig):
        return job.trained_role == "reward"
    return bool(job.reward.model.path)


def _has_reward_worker(job: OnlineConfig | SupervisedConfig) -> bool:
    return isinstance(job, OnlineConfig) and bool(job.reward.functions or job.reward.remote.url)


def tell_of_start(pool: Pool, roles: Iterable[str]) -> None:
    """Say which roles there are to wait for."""
    there = {handle.beside or role for role, handle in pool.state.roles.items()}
    missing = [role for role in roles if role not in there]
    if missing:
        logger.info("starting %s (about a minute)", ", ".join(missing))


async def import_libraries(actors: Mapping[str, RoleHandle[Any]], *, timeout_s: float) -> None:
    """Have all actors but the engines import what their work needs, before there is any."""
    await asyncio.gather(
        *(
            of_role.call(Rank.import_libraries, timeout_s=timeout_s)()
            for role, of_role in actors.items()
            if role != "rollout"
        )
    )
