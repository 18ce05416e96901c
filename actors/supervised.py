"""The policy while it learns from examples: the same ranks, another learner."""

from __future__ import annotations

from collections.abc import Sequence

import ray

from actors.trained import TrainedGroup
from rlhf_ray.data.packing import UpdatePlan, plan_forward
from rlhf_ray.roles import Metrics
from rlhf_ray.types import SftExample


class SupervisedGroup(TrainedGroup):
    """Supervised fine-tuning on the policy's group."""

    async def update(self, rows: Sequence[SftExample], plan: UpdatePlan) -> Metrics:
        """One optimiser step a minibatch of the plan."""
        metrics: list[Metrics] = await self.actors.call(
            "update", ray.put(list(rows)), plan, timeout_s=self.timeouts.call_s
        )
        return metrics[0]

    async def evaluate(self, rows: Sequence[SftExample]) -> float:
        """Mean loss of held-out rows, in nats a trained token."""
        plan = plan_forward(
            [len(row.token_ids_T) for row in rows],
            num_ranks=len(self.actors),
            max_tokens_per_micro_batch=self.config.max_tokens_per_micro_batch,
            padded=self.config.padded,
        )
        losses: list[float] = await self.actors.call(
            "evaluate", ray.put(list(rows)), plan, timeout_s=self.timeouts.call_s
        )
        return losses[0]
