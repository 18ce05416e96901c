"""The frozen reference: one Ray actor a rank, and the group as the loop sees it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray

from actors.cluster.role import RoleHandle
from actors.ranks.forward import by_row, forward
from actors.ranks.group import RankGroup
from actors.ranks.hosting import HostingRank
from rlhf_ray.config.base import ReferenceConfig, TimeoutConfig
from rlhf_ray.packing import RankedMicroBatches, plan_forward
from rlhf_ray.roles import RolloutBatch, Shard
from rlhf_ray.types import LabelledAnswer, Ranking


class ReferenceRank(HostingRank):
    """One rank of the reference's group."""

    def logprobs(self, batch: RolloutBatch, plan: RankedMicroBatches) -> tuple[int, Any]:
        """How many rows, and this rank's rows in the order in which the plan names them."""
        scored = self._to_read().logprobs(self.rows(batch), plan)
        return len(scored), scored

    def answer_logps(
        self, rows: Sequence[Ranking | LabelledAnswer], plan: RankedMicroBatches
    ) -> list[tuple[float, ...]]:
        """The same order: the log-probability of each of a row's answers."""
        logps: list[tuple[float, ...]] = self._to_read().answer_logps(rows, plan)
        return logps


class ReferenceGroup(RankGroup):
    """The reference role on a group of ranks."""

    def __init__(
        self,
        actors: RoleHandle[Any],
        reference: ReferenceConfig,
        timeouts: TimeoutConfig,
        *,
        leaves: bool = False,
    ) -> None:
        """Wrap started ranks with a loaded model; `leaves` as in any `RankGroup`."""
        super().__init__(actors, timeouts, leaves=leaves)
        self.config = reference

    async def logprobs(self, batch: RolloutBatch) -> Sequence[Shard]:
        """Log-probabilities of the response tokens: one float array [T] a row."""
        return await forward(
            self.actors, "logprobs", batch, self.config, timeout_s=self.timeouts.call_s
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
