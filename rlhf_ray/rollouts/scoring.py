"""Scores of groups, of which some may fail: tried again, then left out and counted."""

from __future__ import annotations

import logging
from collections import deque

from rlhf_ray.config.base import RowFailureConfig
from rlhf_ray.errors import FailureCause, GroupFailed, RunError
from rlhf_ray.roles import Reward, RolloutGroup, ScoredGroup

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
