"""The critic: one Ray actor a rank, and the group as the loop sees it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from actors.ranks.forward import forward
from actors.ranks.hosting import HostingRank
from actors.ranks.trained import TrainedGroup
from rlhf_ray.packing import RankedMicroBatches, UpdatePlan
from rlhf_ray.roles import Metrics, Ref, RolloutBatch, Shard


class ValueRank(HostingRank):
    """One rank of the critic's group."""

    def values(self, batch: RolloutBatch, plan: RankedMicroBatches) -> tuple[int, Any]:
        """How many rows, and this rank's rows in the order in which the plan names them."""
        scored = self._to_read().values(self.rows(batch), plan)
        return len(scored), scored


class ValueGroup(TrainedGroup):
    """The value role on a group of ranks."""

    async def values(self, batch: RolloutBatch) -> Sequence[Shard]:
        """The expected return before each response token and after the last: [T + 1] a row."""
        return await forward(
            self.actors, "values", batch, self.config, timeout_s=self.timeouts.call_s
        )

    async def update(self, experience: Ref, plan: UpdatePlan) -> Metrics:
        """Epochs times minibatches of the value loss."""
        return await self._update(experience, plan)
