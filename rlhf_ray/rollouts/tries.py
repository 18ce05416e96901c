"""What becomes of a group at which a user's code fails: further tries, then it is left out.

The code may be an environment's or a reward's: the same settings hold for both, and those of a run
that are left out are counted together.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from rlhf_ray.config.fault_tolerance import RowFailureConfig
from rlhf_ray.deadlines import side_by_side
from rlhf_ray.errors import FailureCause, GroupFailed, RunError
from rlhf_ray.roles.groups import GenerationRequest, RolloutGroup, ScoredGroup
from rlhf_ray.roles.protocols import Reward, RolloutEngine

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Groups whose share counts.
WINDOW = 1000
# A share of fewer says little: a run must not end by the first of ten.
FEWEST = 100


@dataclass(frozen=True, kw_only=True)
class Tried(Generic[T]):
    """What came of a group's tries.

    Attributes:
        value: None where all failed.
        failed: Why, once a try that failed.
    """

    value: T | None
    failed: tuple[FailureCause, ...]


class Tries:
    """Tries of all groups of a run, or of an evaluation."""

    def __init__(self, config: RowFailureConfig) -> None:
        """No group has failed."""
        self.config = config
        self._left_out = deque[bool](maxlen=WINDOW)

    async def of(self, ask: Callable[[], Awaitable[T]]) -> Tried[T]:
        """Ask until it succeeds, or was tried often enough.

        Raises:
            RunError: Something else failed; or all tries did, where that ends a run, or too many
                groups were left out.
        """
        failed: list[FailureCause] = []
        for number in range(1, self.config.retries + 2):
            try:
                value = await ask()
            except GroupFailed as failure:
                failed.append(failure.cause)
                last = failure
                logger.warning("%s (try %d of %d)", failure, number, self.config.retries + 1)
            else:
                return Tried(value=value, failed=tuple(failed))
        self._leave_out(last)
        return Tried(value=None, failed=tuple(failed))

    def succeeded(self) -> None:
        """Count a group that was sampled and scored."""
        self._left_out.append(False)

    def _leave_out(self, failure: GroupFailed) -> None:
        """Count one more that is left out.

        Raises:
            RunError: None may be, or these are too many.
        """
        if self.config.then == "stop":
            raise RunError(str(failure)) from failure
        self._left_out.append(True)
        num_left_out, num_groups = sum(self._left_out), len(self._left_out)
        share = self.config.most_skipped_share
        if num_left_out > share * max(num_groups, FEWEST):
            raise RunError(
                f"{failure}; {num_left_out} of the last {num_groups} groups could not be sampled "
                f"or scored, more than failures.row.most_skipped_share ({share:g}) lets pass"
            ) from failure


class Sampling:
    """Asks the engines; what an environment fails at costs its group, not the run."""

    def __init__(self, engine: RolloutEngine, tries: Tries) -> None:
        """Nothing is asked."""
        self.engine, self.tries = engine, tries

    async def group(
        self, request: GenerationRequest, first: Awaitable[RolloutGroup]
    ) -> RolloutGroup:
        """The request's group, or one without samples once all tries failed.

        Args:
            request: What is asked again, with the same seeds.
            first: The first try, which is asked for already.

        Raises:
            RunError: As of tries.
        """
        asked = [first]

        async def ask() -> RolloutGroup:
            if not asked:
                asked.extend(await self.engine.generate([request], together=False))
            return await asked.pop()

        tried = await self.tries.of(ask)
        if tried.value is None:
            return RolloutGroup.unsampled(request.prompt, request.draw, tried.failed)
        return replace(tried.value, failed=tried.failed) if tried.failed else tried.value

    async def all(self, requests: Sequence[GenerationRequest]) -> list[RolloutGroup]:
        """The groups of requests that are asked together; the first error ends the others."""
        answers = await self.engine.generate(requests)
        return await side_by_side(map(self.group, requests, answers))


class Scoring:
    """Asks the reward role; what a user's code fails at costs its group, not the run."""

    def __init__(self, reward: Reward, tries: Tries) -> None:
        """Nothing is asked."""
        self.reward, self.tries = reward, tries

    async def score(self, group: RolloutGroup) -> ScoredGroup:
        """The group with its scores, or without any once all tries failed, here or before.

        Raises:
            RunError: As of tries.
        """
        if not group.summaries_G:
            return ScoredGroup.skipped(group, ())
        tried = await self.tries.of(lambda: self.reward.score(group))
        if tried.value is None:
            return ScoredGroup.skipped(group, tried.failed)
        self.tries.succeeded()
        return ScoredGroup(group=group, scores_G=tried.value, failed=tried.failed)
