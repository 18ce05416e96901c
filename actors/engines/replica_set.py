"""The rollout role as pool and loop see it: independent replicas, requests spread by load."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from actors.cluster.role_handle import RoleHandle
from actors.cluster.role_spec import RoleSpec
from actors.engines.rollout import RolloutReplica
from actors.engines.sampling import Ending
from actors.engines.spec import EngineSpec
from rlhf_ray.config.base import TimeoutConfig
from rlhf_ray.errors import RunError
from rlhf_ray.roles import EnginePart, GenerationRequest, RolloutGroup, SleepLevel


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


class LeastLoaded:
    """Counts tokens in flight and hands out requests to replicas.

    Deterministic: among equally loaded replicas the first is taken.
    """

    def __init__(self, num_replicas: int) -> None:
        """All idle."""
        self.tokens_in_flight = [0] * num_replicas

    def assign(self, tokens_of_requests: Sequence[int]) -> list[int]:
        """Take requests in order; returns the replica of each and counts its tokens in flight."""
        assigned = []
        for tokens in tokens_of_requests:
            replica = min(range(len(self.tokens_in_flight)), key=self.tokens_in_flight.__getitem__)
            self.tokens_in_flight[replica] += tokens
            assigned.append(replica)
        return assigned

    def finished(self, replica: int, tokens: int) -> None:
        """Requests of so many tokens were answered, or failed."""
        self.tokens_in_flight[replica] -= tokens


@dataclass(eq=False)
class ReplicaSet:
    """The rollout role: replicas side by side, the least loaded one first.

    Attributes:
        timeout_s: Deadline of the answers to one call of `generate`.
        sleeps: Whether they live on GPUs that another role needs between rollouts.
    """

    actors: RoleHandle[RolloutReplica]
    ending: Ending
    timeout_s: float
    sleeps: bool

    def __post_init__(self) -> None:
        """All idle."""
        self._load = LeastLoaded(len(self.actors))

    async def generate(
        self, requests: Sequence[GenerationRequest]
    ) -> list[asyncio.Task[RolloutGroup]]:
        """Begin to sample all requests together, after waking up; one task a request, in order."""
        await self.wake_up()
        costs = [
            (len(request.prompt.token_ids_T) + request.max_new_tokens) * len(request.seeds_G)
            for request in requests
        ]
        assigned = list(zip(self._load.assign(costs), costs, requests, strict=True))
        try:
            await self._admit(assigned)
        except BaseException:
            for replica, cost, request in assigned:
                self._give_up(replica, request)
                self._load.finished(replica, cost)
            raise
        return [asyncio.ensure_future(self._answer(*one)) for one in assigned]

    async def _admit(self, assigned: Sequence[tuple[int, int, GenerationRequest]]) -> None:
        """Each replica takes all of its requests at once."""
        replicas = sorted({replica for replica, _, _ in assigned})
        refs = [
            self.actors.start(RolloutReplica.admit, replica)(
                [request for of, _, request in assigned if of == replica],
                self.ending,
                self.timeout_s,
            )
            for replica in replicas
        ]
        await self.actors.answers(refs, "generate", timeout_s=self.timeout_s, ranks=replicas)

    async def _answer(self, replica: int, cost: int, request: GenerationRequest) -> RolloutGroup:
        try:
            # Two objects: the rollouts stay where they are.
            finished = self.actors.start(RolloutReplica.finished, replica, num_returns=2)
            summaries, rollouts = finished(request.draw)
            [summaries_G] = await self.actors.answers(
                [summaries], "generate", timeout_s=self.timeout_s, ranks=[replica]
            )
        except BaseException:
            self._give_up(replica, request)
            raise
        finally:
            self._load.finished(replica, cost)
        return RolloutGroup(
            prompt=request.prompt,
            draw=request.draw,
            summaries_G=tuple(summaries_G),
            rollouts=rollouts,
        )

    def _give_up(self, replica: int, request: GenerationRequest) -> None:
        """Nobody waits for the answer to this: a replica that lives ends it when it can."""
        self.actors.start(RolloutReplica.abort, replica)([request.draw])

    async def sleep(self, level: SleepLevel) -> None:
        """Between rollouts, where GPUs are shared."""
        if self.sleeps:
            await self.actors.call(RolloutReplica.sleep, timeout_s=self.timeout_s)(
                level, self.timeout_s
            )

    async def wake_up(self, part: EnginePart | None = None) -> None:
        """Before weights or requests come, where GPUs are shared."""
        if self.sleeps:
            await self.actors.call(RolloutReplica.wake_up, timeout_s=self.timeout_s)(
                part, self.timeout_s
            )
