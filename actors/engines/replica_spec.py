"""What the rollout role is started from, and whether an engine of it can be used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from actors.cluster.role_handle import RoleHandle
from actors.cluster.role_spec import RoleSpec
from actors.engines.calls import ANSWER_S
from actors.engines.rollout import RolloutReplica
from actors.engines.spec import EngineSpec
from rlhf_ray.config.fault_tolerance import TimeoutConfig
from rlhf_ray.deadlines import side_by_side
from rlhf_ray.errors import RunError


@dataclass(frozen=True, kw_only=True)
class ReplicaSpec(RoleSpec):
    """Independent engines, which take their share of their GPUs when they start."""

    engine: EngineSpec
    actor_class: type[RolloutReplica] = RolloutReplica
    # Every group that is sampled has a call that waits for it. Ray runs 1,000 at a time unless told
    # otherwise; new weights would queue behind them, for ever.
    max_calls: int | None = 100_000
    reserves_memory: bool = True

    def argument(self, timeouts: TimeoutConfig) -> EngineSpec:
        """What each engine is started with."""
        return self.engine

    async def join(
        self,
        role: RoleHandle[Any],
        *,
        new: Sequence[int],
        on_gpu: bool,
        timeouts: TimeoutConfig,
    ) -> None:
        """Start the engines, each by itself."""
        refs = [role.start(RolloutReplica.start, replica)() for replica in new]
        await role.answers(refs, "start", timeout_s=timeouts.start_s, ranks=new)

    async def broken(self, role: RoleHandle[Any]) -> Sequence[int]:
        """Those that are dead, cannot be used, or were left amid a publication."""
        faults = await side_by_side(unfit(role, replica) for replica in range(len(role)))
        return [replica for replica, fault in enumerate(faults) if fault]

    async def leave_gpus(self, role: RoleHandle[Any], *, timeout_s: float) -> bool:
        """Sleep without weights: a job with rollouts begins with a publication.

        Engines that no role of their own job shares GPUs with cannot.
        """
        if self.engine.sleeps:
            await role.call(RolloutReplica.sleep, timeout_s=timeout_s)(2, timeout_s)
        return self.engine.sleeps

    async def check(self, role: RoleHandle[Any], *, timeout_s: float) -> None:
        """An actor answers also for an engine that cannot be used or was left amid a publication.

        Requests of the last job are dropped.

        Raises:
            RunError: One is.
        """
        faults = await side_by_side(unfit(role, replica) for replica in range(len(role)))
        for name, fault in zip(role.names, faults, strict=True):
            if fault:
                raise RunError(f"{name}: {fault}")
        await role.call(RolloutReplica.drop_requests, timeout_s=timeout_s)()


async def fault_of(role: RoleHandle[Any], replica: int) -> tuple[str, bool]:
    """Why a replica cannot be used, empty where it can; and whether it is amid an update."""
    health = role.call(RolloutReplica.health, timeout_s=ANSWER_S, only=replica)
    try:
        [found] = await health()
    except RunError as error:
        return str(error), False
    return found["fault"], found["updating"]


async def unfit(role: RoleHandle[Any], replica: int) -> str:
    """Why a replica cannot serve a job to come; empty where it can."""
    fault, is_updating = await fault_of(role, replica)
    return fault or "it was left amid a publication" * is_updating
