"""The frozen reference: one Ray actor a rank, and the group as the loop sees it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray

from actors.cluster.actor_set import ActorSet
from actors.ranks.forward import Pass, by_row, forward
from actors.ranks.group import RankGroup
from actors.ranks.hosting import HostingRank
from rlhf_ray.config.base import ReferenceConfig, TimeoutConfig
from rlhf_ray.packing import RankedMicroBatches, plan_forward
from rlhf_ray.roles import RolloutGroup, SampleArrays
from rlhf_ray.types import LabelledAnswer, Ranking


@ray.remote(concurrency_groups={"control": 2})  # type: ignore[call-overload]
class ReferenceRank(HostingRank):
    """One rank of the reference's group."""

    def logprobs(self, told: Pass) -> tuple[int, Any]:
        """How many rows are this rank's, and an array for each, by its sample."""
        scored = self._to_read().logprobs(told.rows(self.fetch(told.refs)), told.plan)
        return len(scored), told.by_sample(self.rank, scored)

    def answer_logps(
        self, rows: Sequence[Ranking | LabelledAnswer], plan: RankedMicroBatches
    ) -> list[tuple[float, ...]]:
        """The log-probability of each answer of this rank's rows, in the order of the plan."""
        logps: list[tuple[float, ...]] = self._to_read().answer_logps(rows, plan)
        return logps


class ReferenceGroup(RankGroup):
    """The reference role on a group of ranks."""

    def __init__(
        self,
        actors: ActorSet,
        reference: ReferenceConfig,
        timeouts: TimeoutConfig,
        *,
        leaves: bool = False,
    ) -> None:
        """Wrap started ranks with a loaded model; `leaves` as in any `RankGroup`."""
        super().__init__(actors, timeouts, leaves=leaves)
        self.config = reference

    async def logprobs(self, groups: Sequence[RolloutGroup]) -> SampleArrays:
        """Log-probabilities of the response tokens: a float array [T] a sample."""
        return await forward(
            self.actors, "logprobs", groups, self.config, timeout_s=self.timeouts.call_s
        )

    async def answer_logps(
        self, rows: Sequence[Ranking | LabelledAnswer]
    ) -> list[tuple[float, ...]]:
        """Log-probability of each of a row's answers, in nats at temperature 1; in row order."""
        plan = plan_forward(
            [row.num_tokens for row in rows],
            num_ranks=len(self.actors),
            max_tokens_per_micro_batch=self.config.max_tokens_per_micro_batch,
            padded=self.config.padded,
        )
        answers: list[list[tuple[float, ...]]] = await self.actors.compute(
            "answer_logps", ray.put(list(rows)), plan, timeout_s=self.timeouts.call_s
        )
        return by_row(plan, answers)
