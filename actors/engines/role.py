"""Replicas of one engine as the pool sees them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from actors.cluster.role_handle import RoleHandle
from actors.engines.rollout import RolloutReplica
from actors.engines.spec import EngineSpec
from rlhf_ray.config.base import TimeoutConfig
from rlhf_ray.errors import RunError


@dataclass(frozen=True, kw_only=True)
class ReplicaSpec:
    """Independent engines, which take their share of their GPUs when they start."""

    engine: EngineSpec
    actor_class: type[RolloutReplica] = RolloutReplica
    beside: str = ""
    # Every group that is sampled has a call that waits for it. Ray runs 1,000 at a time unless told
    # otherwise; new weights would queue behind them, for ever.
    max_calls: int | None = 100_000
    reserves_memory: bool = True

    def argument(self, timeouts: TimeoutConfig) -> EngineSpec:
        """What each engine is started with."""
        return self.engine

    async def join(self, role: RoleHandle[Any], *, on_gpu: bool, timeouts: TimeoutConfig) -> None:
        """Start the engines, each by itself."""
        await role.call(RolloutReplica.start, timeout_s=timeouts.start_s)()

    async def leave_gpus(self, role: RoleHandle[Any], *, timeout_s: float) -> bool:
        """Sleep without weights: a job with rollouts begins with a publication.

        Engines that no role of their own job shares GPUs with cannot.
        """
        if self.engine.sleeps:
            await role.call(RolloutReplica.sleep, timeout_s=timeout_s)(2, timeout_s)
        return self.engine.sleeps

    async def check(self, role: RoleHandle[Any], *, timeout_s: float) -> None:
        """An actor answers also for an engine that is dead or was left amid a publication.

        Requests of the last job are dropped.

        Raises:
            RunError: One is.
        """
        for health in await role.call(RolloutReplica.health, timeout_s=timeout_s)():
            if not health["alive"] or health["updating"]:
                raise RunError(
                    f"{health['name']}: its engine is dead, or was left amid a publication"
                )
        await role.call(RolloutReplica.drop_requests, timeout_s=timeout_s)()
