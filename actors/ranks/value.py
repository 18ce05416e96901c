"""The critic: one Ray actor a rank, and the group as the loop sees it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray

from actors.ranks.forward import Pass, forward
from actors.ranks.hosting import HostingRank
from actors.ranks.trained import TrainedGroup
from rlhf_ray.packing import UpdatePlan
from rlhf_ray.roles import Metrics, Ref, RolloutGroup, SampleArrays


@ray.remote(concurrency_groups={"control": 2})  # type: ignore[call-overload]
class ValueRank(HostingRank):
    """One rank of the critic's group."""

    def values(self, told: Pass) -> tuple[int, Any]:
        """How many rows are this rank's, and an array for each, by its sample."""
        scored = self._to_read().values(told.rows(self.fetch(told.refs)), told.plan)
        return len(scored), told.by_sample(self.rank, scored)


class ValueGroup(TrainedGroup):
    """The value role on a group of ranks."""

    async def values(self, groups: Sequence[RolloutGroup]) -> SampleArrays:
        """The expected return before each response token and after the last: [T + 1] a sample."""
        return await forward(
            self.actors, "values", groups, self.config, timeout_s=self.timeouts.call_s
        )

    async def update(self, experience: Ref, plan: UpdatePlan) -> Metrics:
        """Epochs times minibatches of the value loss."""
        return await self._update(experience, ray.put(plan))
