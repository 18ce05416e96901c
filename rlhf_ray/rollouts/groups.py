"""A group's tries at being sampled and scored, what of it is compared, and what can be trained.

A user's code may fail at a group: an environment's or a reward's. The same settings hold for both,
and what is left out of a run for either is counted together.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from rlhf_ray.config.fault_tolerance import RowFailureConfig
from rlhf_ray.deadlines import side_by_side
from rlhf_ray.errors import FailureCause, GroupFailed, RunError
from rlhf_ray.roles.groups import GenerationRequest, RolloutGroup, ScoredGroup
from rlhf_ray.roles.protocols import Reward, RolloutEngine
from rlhf_ray.types import FinishReason, RolloutSummary, Score

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
        self.rollout, self.tries = engine, tries

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
                asked.extend(await self.rollout.generate([request], together=False))
            return await asked.pop()

        tried = await self.tries.of(ask)
        if tried.value is None:
            return RolloutGroup.unsampled(request.prompt, request.draw, tried.failed)
        return replace(tried.value, failed=tried.failed) if tried.failed else tried.value

    async def all(self, requests: Sequence[GenerationRequest]) -> list[RolloutGroup]:
        """The groups of requests that are asked together; the first error ends the others."""
        answers = await self.rollout.generate(requests)
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


def summaries_of(groups: Iterable[RolloutGroup]) -> list[RolloutSummary]:
    """Of all their samples, in order."""
    return [summary for group in groups for summary in group.summaries_G]


def with_scores(scored: ScoredGroup) -> ScoredGroup:
    """The same group with the samples to which a reward applied."""
    return scored.where([score.total is not None for score in scored.scores_G])


def trainable(groups: Iterable[ScoredGroup], *, smallest_group: int) -> list[ScoredGroup]:
    """The groups of which enough samples have a score, each with those samples.

    Args:
        groups: All of them.
        smallest_group: Scored samples that a group needs: 2 where it is compared with itself.
    """
    left = [with_scores(scored) for scored in groups]
    return [scored for scored in left if len(scored.scores_G) >= smallest_group]


def trained_of(
    groups: Iterable[ScoredGroup], trains: Callable[[FinishReason], bool]
) -> list[RolloutGroup]:
    """The groups with the samples that enter the losses; those without any are left out."""
    left = [
        scored.group.where([trains(summary.finish_reason) for summary in scored.group.summaries_G])
        for scored in groups
    ]
    return [group for group in left if group.summaries_G]


def compared_scores(scores_G: Sequence[Score], *, apart: bool) -> list[list[float]]:
    """What of a group is compared: the totals, or `apart` each reward's own values."""
    if not apart:
        return [[score.total for score in scores_G if score.total is not None]]
    names = scores_G[0].parts if scores_G else ()
    columns = [[score.parts[name] for score in scores_G] for name in names]
    return [[value for value in column if value is not None] for column in columns]


def has_spread(scores_G: Sequence[Score], *, apart: bool) -> bool:
    """Whether a group's scores differ, in any one of what is compared.

    A group whose scores are equal has advantage 0 and teaches nothing; so has one of fewer than two
    samples. Source: DAPO, https://arxiv.org/abs/2503.14476, section 3.2.
    """
    return any(len(set(scores)) > 1 for scores in compared_scores(scores_G, apart=apart))


def require_finite(scored: ScoredGroup) -> None:
    """Before spread decides about a group: NaN differs from all scores, itself included.

    Raises:
        ValueError: A score is not finite.
    """
    totals = [score.total for score in scored.scores_G if score.total is not None]
    parts = [v for score in scored.scores_G for v in score.parts.values() if v is not None]
    if not all(math.isfinite(value) for value in (*totals, *parts)):
        raise ValueError(
            f"scores of draw {scored.group.draw} must be finite, got {list(scored.scores_G)}"
        )
