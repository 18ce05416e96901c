"""Engines that act in environments: a group whose environment fails is sampled again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

from actors.cluster.role_handle import RoleHandle
from actors.engines.acting import Acting
from actors.engines.replica_set import ReplicaSet
from actors.pool.pool import Pool
from rlhf_ray.config.fault_tolerance import TimeoutConfig
from rlhf_ray.deadlines import deadline
from rlhf_ray.environments.play import Limits
from rlhf_ray.errors import ActorDied, GroupFailed
from rlhf_ray.roles.groups import GenerationRequest, RolloutGroup
from rlhf_ray.roles.protocols import EnginePart, SleepLevel
from rlhf_ray.specs import EnvironmentSpec

logger = logging.getLogger(__name__)

# Groups beside each other that were on a worker that died: a wave must not end one by one.
_FEW = 8


def acting_of(workers: RoleHandle[Any], spec: EnvironmentSpec) -> Acting:
    """What engines need to act with the workers that there are now."""
    config = spec.environment
    return Acting(
        workers=tuple(workers.actors),
        limits=Limits(
            max_turns=config.max_turns,
            max_observation_tokens=config.max_observation_tokens,
            timeout_s=config.answer_s,
        ),
        end_ids=frozenset(spec.end_token_ids),
        chat_template=spec.chat_template,
        tools=spec.tools,
        max_tokens=spec.max_tokens,
        closing_s=config.closing_s,
    )


class _WorkerLost(GroupFailed):
    """The group's worker had to be started again, which may be another group's doing."""


class ActingEngines:
    """Engines as loops see them.

    A group is whole rollouts, or a failure of its environment's; nothing is scored for a rollout
    that failed. A worker that died, or whose event loop is blocked, is started again first. Whose
    doing that was nobody knows: all groups that were on it are sampled again, a few at a time, and
    those that have a worker die once more one by one. Then it is theirs.
    """

    def __init__(
        self, engines: ReplicaSet, pool: Pool, workers: RoleHandle[Any], *, timeouts: TimeoutConfig
    ) -> None:
        """Nothing has failed."""
        self._engines, self._pool, self._workers = engines, pool, workers
        # What groups wait for that were on a worker that died: once, and `FREE_DEATHS` times.
        self._few = asyncio.Semaphore(_FEW)
        self._one = asyncio.Lock()
        # Until a group is there, or its worker is there again.
        self._group_s = timeouts.call_s + 2 * timeouts.place_s + timeouts.start_s
        self._num_in_turn = 0  # that wait for a turn, or have one
        self._suspects: set[int] = set()  # draws that are sampled one by one

    async def generate(
        self, requests: Sequence[GenerationRequest], *, together: bool = True
    ) -> list[asyncio.Future[RolloutGroup]]:
        """As engines do.

        Raises:
            GroupFailed: Where a group is waited for: its environment failed.
        """
        others = [request for request in requests if request.draw not in self._suspects]
        asked_of = self._workers.incarnation
        answers = await self._engines.generate(others, together=together) if others else []
        answer_of = {request.draw: answer for request, answer in zip(others, answers, strict=True)}
        lasting: list[asyncio.Future[RolloutGroup]] = []
        for request in requests:
            answer = answer_of.get(request.draw)
            future = asyncio.ensure_future(self._acted(request, answer, asked_of))
            if answer is not None:
                # Also of one that is cancelled before it begins, and never waits for its answer.
                future.add_done_callback(partial(_cancel, answer))
            lasting.append(future)
        return lasting

    async def joining(self) -> None:
        """As engines do."""
        await self._engines.joining()

    async def sleep(self, level: SleepLevel) -> None:
        """As engines do."""
        await self._engines.sleep(level)

    async def wake_up(self, part: EnginePart | None = None) -> None:
        """As engines do."""
        await self._engines.wake_up(part)

    async def _acted(
        self,
        request: GenerationRequest,
        answer: Awaitable[RolloutGroup] | None,
        asked_of: int,
    ) -> RolloutGroup:
        """The group, unless a worker dies while it is sampled alone (after `FREE_DEATHS`)."""
        if answer is None:
            return await self._alone(request)
        try:
            return await self._whole(answer, asked_of)
        except _WorkerLost as lost:
            logger.warning("%s; the group is sampled again, beside few others", lost)
        try:
            async with self._turn(self._few):
                return await self._again(request)
        except _WorkerLost as lost:
            logger.warning("%s; the group is sampled again, alone of its kind", lost)
        return await self._alone(request)

    async def _alone(self, request: GenerationRequest) -> RolloutGroup:
        self._suspects.add(request.draw)
        async with self._turn(self._one, *[self._few] * _FEW):
            group = await self._again(request)
        self._suspects.discard(request.draw)
        return group

    @asynccontextmanager
    async def _turn(self, *turns: AbstractAsyncContextManager[None]) -> AsyncIterator[None]:
        """Hold all of these, as soon as those that came before are done with them.

        Raises:
            DeadlineError: They are not, though each has a deadline of its own.
        """
        self._num_in_turn += 1
        try:
            async with AsyncExitStack() as held:
                at_most_s = self._num_in_turn * self._group_s
                async with deadline(
                    at_most_s, actor="groups that were on a worker that died", operation="a turn"
                ):
                    for turn in turns:
                        await held.enter_async_context(turn)
                yield
        finally:
            self._num_in_turn -= 1

    async def _again(self, request: GenerationRequest) -> RolloutGroup:
        asked_of = self._workers.incarnation
        [answer] = await self._engines.generate([request], together=False)
        return await self._whole(answer, asked_of)

    async def _whole(self, answer: Awaitable[RolloutGroup], asked_of: int) -> RolloutGroup:
        """The group.

        Raises:
            _WorkerLost: Its worker was started again.
            GroupFailed: Its environment failed.
        """
        try:
            return await answer
        except GroupFailed as failed:
            if failed.cause == "raised":
                raise
            await self._mend()
            if self._workers.incarnation == asked_of:
                raise
            raise _WorkerLost.of(str(failed), cause=failed.cause) from failed

    async def _mend(self) -> None:
        """Have workers of no use started again.

        Raises:
            ActorDied: They die while they start, more often than is allowed.
        """
        workers = self._workers
        incarnation = workers.incarnation
        if broken := await workers.spec.broken(workers):
            died = ActorDied.of(
                f"{workers.names[broken[0]]} is dead, or its event loop is blocked",
                role=workers.name, index=broken[0], operation="acting", age_s=0.0,
            )  # fmt: skip
            died.incarnation = incarnation
            await self._pool.restarts.after(died, self._pool.state.roles)


def _cancel(answer: asyncio.Future[Any], _: object) -> None:
    answer.cancel()
