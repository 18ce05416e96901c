"""The frozen reference: one Ray actor a rank, and the group as the loop sees it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import ray

from actors.forward import forward
from actors.pool import ActorSet
from actors.rank import Rank, free_memory
from rlhf_ray.config.base import TimeoutConfig
from rlhf_ray.config.online import ReferenceConfig
from rlhf_ray.data.packing import RankedMicroBatches
from rlhf_ray.roles import RolloutBatch, Shard

if TYPE_CHECKING:
    from rlhf_ray.specs import ReferenceSpec


@ray.remote(concurrency_groups={"control": 2})  # type: ignore[call-overload]
class ReferenceRank(Rank):
    """One rank of the reference's group."""

    model: Any = None

    def load(self, spec: ReferenceSpec) -> None:
        """Host the model that `spec` describes, in place of the one before."""
        from rlhf_ray.learner.reference import FrozenReference

        if self.model is not None:
            self.model.close()
        self.model = None
        free_memory()
        self.model = FrozenReference(spec, device=self.device)

    def logprobs(self, batch: RolloutBatch, plan: RankedMicroBatches) -> tuple[int, Any]:
        """How many rows, and this rank's rows in the order in which the plan names them."""
        scored = self.model.logprobs(self.rows(batch), plan)
        return len(scored), scored


class ReferenceGroup:
    """The reference role on a group of ranks."""

    def __init__(
        self, actors: ActorSet, reference: ReferenceConfig, timeouts: TimeoutConfig
    ) -> None:
        """Wrap started ranks with a loaded model."""
        self.actors, self.config, self.timeouts = actors, reference, timeouts

    async def logprobs(self, batch: RolloutBatch) -> Sequence[Shard]:
        """Log-probabilities of the response tokens: one float array [T] a row."""
        return await forward(
            self.actors, "logprobs", batch, self.config, timeout_s=self.timeouts.call_s
        )
