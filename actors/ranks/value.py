"""The critic: one Ray actor a rank, and the group as the loop sees it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from actors.cluster.role_handle import each_own, put
from actors.ranks.forward import OwnSamples, Pass, forward
from actors.ranks.group import TrainedGroup
from actors.ranks.hosting import HostingRank
from rlhf_ray.metrics.spans import recorded
from rlhf_ray.packing import UpdatePlan
from rlhf_ray.roles.groups import Ref, RolloutGroup, SampleArrays
from rlhf_ray.roles.reports import Metrics


class ValueRank(HostingRank):
    """One rank of the critic's group."""

    @recorded
    def values(self, work: Pass, own: OwnSamples) -> tuple[int, Any]:
        """How many rows are this rank's, and an array for each, by its sample."""
        scored = self._to_read().values(own.rows(self.fetch(own.refs), work), work.plan)
        return len(scored), own.answers(scored)


class ValueGroup(TrainedGroup[ValueRank]):
    """The value role on a group of ranks."""

    async def values(self, groups: Sequence[RolloutGroup]) -> SampleArrays:
        """The expected return before each response token and after the last: [T + 1] a sample."""
        [values] = await forward(
            self.actors, ValueRank.values, groups, self.config, timeout_s=self.timeouts.call_s
        )
        return values

    async def update(self, experience: Sequence[Ref], plan: UpdatePlan) -> Metrics:
        """Epochs times minibatches of the value loss."""
        return await self._update(each_own(experience), put(plan))
