"""The critic: one Ray actor a rank, and the group as the loop sees it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from actors.forward import forward
from actors.rank import Rank, free_memory
from actors.trained import TrainedGroup
from rlhf_ray.data.packing import RankedMicroBatches, UpdatePlan
from rlhf_ray.roles import Metrics, Ref, RolloutBatch, Shard

if TYPE_CHECKING:
    from rlhf_ray.specs import ValueSpec


@ray.remote(concurrency_groups={"control": 2})  # type: ignore[call-overload]
class ValueRank(Rank):
    """One rank of the critic's group."""

    learner: Any = None

    def load(self, spec: ValueSpec) -> None:
        """Host the critic that `spec` describes, in place of the one before."""
        from rlhf_ray.learner.value import ValueLearner

        self.unload()
        self.learner = ValueLearner(spec, device=self.device)

    def unload(self) -> None:
        """Release the model that is held, before another takes its memory."""
        if self.learner is not None:
            self.learner.close()
        self.learner = None
        free_memory()

    def values(self, batch: RolloutBatch, plan: RankedMicroBatches) -> tuple[int, Any]:
        """How many rows, and this rank's rows in the order in which the plan names them."""
        scored = self.learner.values(self.rows(batch), plan)
        return len(scored), scored

    def update(self, rows: Sequence[Any], plan: UpdatePlan) -> Metrics:
        """Every optimiser step of a plan."""
        metrics: Metrics = self.learner.update(rows, plan)
        return metrics

    def save(self, folder: str) -> None:
        """Write what training goes on from."""
        self.learner.save(Path(folder))

    def restore(self, folder: str) -> None:
        """Read what `save` wrote."""
        self.learner.load(Path(folder))


class ValueGroup(TrainedGroup):
    """The value role on a group of ranks."""

    async def values(self, batch: RolloutBatch) -> Sequence[Shard]:
        """The expected return before each response token: one float array [T] a row."""
        return await forward(
            self.actors, "values", batch, self.config, timeout_s=self.timeouts.call_s
        )

    async def update(self, experience: Ref, plan: UpdatePlan) -> Metrics:
        """Epochs times minibatches of the value loss."""
        metrics: list[Metrics] = await self.actors.call(
            "update", experience, plan, timeout_s=self.timeouts.call_s
        )
        return metrics[0]
