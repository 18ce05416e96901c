"""The frozen reference: one Ray actor a rank, and the group as the loop sees it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from actors.cluster.role_handle import RoleHandle, put
from actors.ranks.forward import Pass, by_row, forward
from actors.ranks.group import RankGroup
from actors.ranks.hosting import HostingRank
from rlhf_ray.config.base import ReferenceConfig, TimeoutConfig
from rlhf_ray.packing import RankedMicroBatches, plan_forward
from rlhf_ray.roles import RolloutGroup, SampleArrays
from rlhf_ray.types import LabelledAnswer, Ranking


class ReferenceRank(HostingRank):
    """One rank of the reference's group."""

    def logprobs(self, work: Pass) -> tuple[int, Any]:
        """How many rows are this rank's, and an array for each, by its sample."""
        scored = self._to_read().logprobs(work.rows(self.fetch(work.refs)), work.plan)
        return len(scored), work.by_sample(self.rank, scored)

    def answer_logps(
        self, rows: Sequence[Ranking | LabelledAnswer], plan: RankedMicroBatches
    ) -> list[tuple[float, ...]]:
        """The log-probability of each answer of this rank's rows, in the order of the plan."""
        logps: list[tuple[float, ...]] = self._to_read().answer_logps(rows, plan)
        return logps


class ReferenceGroup(RankGroup[ReferenceRank]):
    """The reference role on a group of ranks."""

    def __init__(
        self,
        actors: RoleHandle[ReferenceRank],
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
            self.actors, ReferenceRank.logprobs, groups, self.config, timeout_s=self.timeouts.call_s
        )

    async def answer_logps(
        self, rows: Sequence[Ranking | LabelledAnswer]
    ) -> list[tuple[float, ...]]:
        """Log-probability of each of a row's answers, in nats at temperature 1; in row order."""
        plan = plan_forward(
            [row.num_tokens for row in rows],
            data_parallel_size=len(self.actors),
            max_tokens_per_micro_batch=self.config.max_tokens_per_micro_batch,
            padded=self.config.padded,
        )
        call_s = self.timeouts.call_s
        async with self.actors.turn(timeout_s=call_s):
            score = self.actors.call(ReferenceRank.answer_logps, timeout_s=call_s)
            answers = await score(put(list(rows)), plan)
        return by_row(plan, answers)
