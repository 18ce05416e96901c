"""The rollout role as pool and loop see it: independent replicas, requests spread by load."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from actors.cluster.role_handle import RoleHandle
from actors.cluster.role_spec import RoleSpec
from actors.engines.acting import Acting
from actors.engines.calls import ANSWER_S
from actors.engines.dispatch import Dispatch, Load
from actors.engines.rollout import RolloutReplica
from actors.engines.samples import Ending
from actors.engines.spec import EngineSpec
from rlhf_ray.config.base import TimeoutConfig
from rlhf_ray.deadlines import deadline, side_by_side
from rlhf_ray.errors import ActorDied, RunError
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
        faults = await side_by_side(_fault(role, replica) for replica in range(len(role)))
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
        faults = await side_by_side(_fault(role, replica) for replica in range(len(role)))
        for name, fault in zip(role.names, faults, strict=True):
            if fault:
                raise RunError(f"{name}: {fault}")
        await role.call(RolloutReplica.drop_requests, timeout_s=timeout_s)()


async def _fault(role: RoleHandle[RolloutReplica], replica: int) -> str:
    """Why a replica cannot be used; empty where it can."""
    try:
        health = role.call(RolloutReplica.health, timeout_s=ANSWER_S, only=replica)
        [found] = await health()
    except ActorDied as died:
        return str(died)
    fault: str = found["fault"] or "it was left amid a publication" * found["updating"]
    return fault


@dataclass(eq=False)
class ReplicaSet:
    """The rollout role: replicas side by side, the least loaded one first.

    Attributes:
        timeout_s: Deadline of a group's answer, once it has a replica.
        sleeps: Whether they live on GPUs that another role needs between rollouts.
        seats: Sequences that one replica runs at a time.
        acting: Gives what it takes to act in an environment now; None without one.
    """

    actors: RoleHandle[RolloutReplica]
    ending: Ending
    timeout_s: float
    sleeps: bool
    seats: int
    acting: Callable[[], Acting] | None = None

    def __post_init__(self) -> None:
        """All idle."""
        self.dispatch = Dispatch(len(self.actors), seats=self.seats)

    async def generate(
        self, requests: Sequence[GenerationRequest], *, together: bool = True
    ) -> list[asyncio.Task[RolloutGroup]]:
        """Begin to sample requests, after waking up; one task a request, in order.

        Those that are together are given to replicas at once. Others wait here until a replica has
        seats for all of a group's samples, in the order in which they were asked for.
        """
        await self.wake_up()
        if not together:
            return [asyncio.ensure_future(self._alone(request)) for request in requests]
        loads = [Load.of(request) for request in requests]
        given = list(zip(self.dispatch.assign(loads), loads, requests, strict=True))
        try:
            await self._admit(given)
        except BaseException:
            for one in given:
                self._leave(*one)
            raise
        answers = []
        for replica, load, request in given:
            answer = asyncio.ensure_future(self._answer(replica, request))
            # Also of one that is cancelled before it begins, which no `finally` of its own sees.
            answer.add_done_callback(partial(self._left, replica, load, request))
            answers.append(answer)
        return answers

    async def _alone(self, request: GenerationRequest) -> RolloutGroup:
        """A group that begins when a replica has seats for it."""
        load = Load.of(request)
        # Each of those before it has a deadline to be admitted by, and one to be answered by.
        wait_s = 2 * self.timeout_s * (self.dispatch.num_waiting + 1)
        name = self.actors.name
        async with deadline(wait_s, actor=name, operation=f"{name}: seats for draw {request.draw}"):
            replica = await self.dispatch.wait(load)
        try:
            await self._admit([(replica, load, request)], together=False)
            return await self._answer(replica, request)
        finally:
            self._leave(replica, load, request)

    async def _admit(
        self, given: Sequence[tuple[int, Load, GenerationRequest]], *, together: bool = True
    ) -> None:
        """Each replica takes all of its requests at once."""
        replicas = sorted({replica for replica, _, _ in given})
        acting = self.acting() if self.acting else None
        refs = [
            self.actors.start(RolloutReplica.admit, replica)(
                [request for of, _, request in given if of == replica],
                self.ending,
                self.timeout_s,
                together,
                acting,
            )
            for replica in replicas
        ]
        await self.actors.answers(refs, "generate", timeout_s=self.timeout_s, ranks=replicas)

    async def _answer(self, replica: int, request: GenerationRequest) -> RolloutGroup:
        # Two objects: the rollouts stay where they are.
        finished = self.actors.start(RolloutReplica.finished, replica, num_returns=2)
        summaries, rollouts = finished(request.draw)
        [summaries_G] = await self.actors.answers(
            [summaries], "generate", timeout_s=self.timeout_s, ranks=[replica]
        )
        return RolloutGroup(
            prompt=request.prompt,
            draw=request.draw,
            summaries_G=tuple(summaries_G),
            rollouts=rollouts,
        )

    def _leave(self, replica: int, load: Load, request: GenerationRequest) -> None:
        """Nobody waits for this group any more: it is here, or given up."""
        self.dispatch.ended(replica, load)
        self.actors.start(RolloutReplica.drop, replica)([request.draw])

    def _left(self, replica: int, load: Load, request: GenerationRequest, _: object) -> None:
        self._leave(replica, load, request)

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
