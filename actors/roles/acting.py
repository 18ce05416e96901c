"""Engines that act in environments: a group whose environment fails is sampled again."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Sequence
from functools import partial
from typing import Any, get_args

from actors.cluster.role_handle import RoleHandle
from actors.engines.acting import Acting
from actors.engines.replica_set import ReplicaSet
from actors.pool.pool import Pool
from rlhf_ray.environments.play import Limits
from rlhf_ray.errors import ActorDied, EnvironmentFailed, EnvironmentFault
from rlhf_ray.roles.groups import GenerationRequest, RolloutGroup
from rlhf_ray.roles.protocols import EnginePart, SleepLevel
from rlhf_ray.specs import EnvironmentSpec

logger = logging.getLogger(__name__)

# What an engine waits for a worker beyond the worker's own deadline: then its loop is blocked.
SLACK_S = 10.0


def acting_of(workers: RoleHandle[Any], spec: EnvironmentSpec) -> Acting:
    """What engines need to act with the workers that there are now."""
    config = spec.environment
    return Acting(
        workers=tuple(workers.actors),
        limits=Limits(
            max_turns=config.max_turns,
            max_observation_tokens=config.max_observation_tokens,
            timeout_s=config.timeout_s + SLACK_S,
        ),
        end_ids=frozenset(spec.end_token_ids),
        chat_template=spec.chat_template,
        tools=spec.tools,
        max_tokens=spec.max_tokens,
    )


class ActingEngines:
    """Engines as loops see them.

    A group is a failure of its environment's or a group of whole rollouts: nothing is scored for a
    rollout that failed. A worker that died, or whose event loop is blocked, is started again first.
    """

    def __init__(
        self, engines: ReplicaSet, pool: Pool, workers: RoleHandle[Any], *, retries: int
    ) -> None:
        """Nothing has failed; a group may so many times, but for deaths of workers."""
        self._engines, self._pool, self._workers = engines, pool, workers
        self._retries = retries
        self._num_failed = Counter[EnvironmentFault]()

    async def generate(
        self, requests: Sequence[GenerationRequest], *, together: bool = True
    ) -> list[asyncio.Future[RolloutGroup]]:
        """As engines do.

        Raises:
            EnvironmentFailed: Where a group is waited for: it failed too often.
        """
        answers = await self._engines.generate(requests, together=together)
        lasting: list[asyncio.Future[RolloutGroup]] = []
        for request, answer in zip(requests, answers, strict=True):
            future = asyncio.ensure_future(self._acted(request, answer))
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

    def take_failures(self) -> dict[str, float]:
        """`environment/failed_*`: groups that failed since the last time, by cause."""
        counts, self._num_failed = self._num_failed, Counter()
        faults = get_args(EnvironmentFault)
        return {f"environment/failed_{fault}": float(counts[fault]) for fault in faults}

    async def _acted(
        self, request: GenerationRequest, answer: Awaitable[RolloutGroup]
    ) -> RolloutGroup:
        num_own, asked_of = 0, self._workers.incarnation
        while True:
            try:
                return await answer
            except EnvironmentFailed as failed:
                self._num_failed[failed.fault] += 1
                if failed.fault != "raised":
                    await self._mend()
                # Whose doing it is that a worker is of no use nobody knows: `failures.actor` says
                # how often that may be.
                is_replaced = self._workers.incarnation != asked_of
                num_own += failed.fault == "raised" or not is_replaced
                if num_own > self._retries:
                    raise
                logger.warning("%s; the group is sampled again", failed)
            asked_of = self._workers.incarnation
            [answer] = await self._engines.generate([request], together=False)

    async def _mend(self) -> None:
        """Have workers of no use started again.

        Raises:
            ActorDied: They were as often as is allowed.
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
