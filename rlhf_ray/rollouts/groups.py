"""The scores of a group, what of it is compared, and what of it can be trained."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from rlhf_ray.config.fault_tolerance import RowFailureConfig
from rlhf_ray.errors import FailureCause, GroupFailed, RunError
from rlhf_ray.roles.groups import RolloutGroup, ScoredGroup
from rlhf_ray.roles.protocols import Reward
from rlhf_ray.types import FinishReason, Score

logger = logging.getLogger(__name__)

# Groups whose share counts.
WINDOW = 1000
# A share of fewer says little: a run must not end by the first of ten.
FEWEST = 100


class Scoring:
    """Asks the reward role; what a user's code fails at costs its group, not the run."""

    def __init__(self, reward: Reward, config: RowFailureConfig) -> None:
        """No group is scored."""
        self.reward, self.config = reward, config
        self._skipped = deque[bool](maxlen=WINDOW)

    async def score(self, group: RolloutGroup) -> ScoredGroup:
        """The group with its scores, or without any once all tries failed.

        Raises:
            RunError: The role failed; or so did all tries, where that ends a run, or too many
                groups were left out.
        """
        failed: list[FailureCause] = []
        for number in range(1, self.config.retries + 2):
            try:
                scores_G = await self.reward.score(group)
            except GroupFailed as failure:
                failed.append(failure.cause)
                last = failure
                logger.warning("%s (try %d of %d)", failure, number, self.config.retries + 1)
            else:
                self._skipped.append(False)
                return ScoredGroup(group=group, scores_G=scores_G, failed=tuple(failed))
        self._leave_out(last)
        return ScoredGroup.skipped(group, tuple(failed))

    def _leave_out(self, failure: GroupFailed) -> None:
        """Count one more that is left out.

        Raises:
            RunError: None may be, or these are too many.
        """
        if self.config.then == "stop":
            raise RunError(str(failure)) from failure
        self._skipped.append(True)
        num_skipped, num_scored = sum(self._skipped), len(self._skipped)
        share = self.config.most_skipped_share
        if num_skipped > share * max(num_scored, FEWEST):
            raise RunError(
                f"{failure}; {num_skipped} of the last {num_scored} groups could not be scored, "
                f"more than failures.row.most_skipped_share ({share:g}) lets pass"
            ) from failure


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
