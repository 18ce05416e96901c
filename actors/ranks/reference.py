"""The frozen reference: one Ray actor a rank, and the group as the loop sees it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from actors.ranks.forward import by_row, forward, over_rows
from actors.ranks.group import RankGroup
from actors.ranks.hosting import HostingRank
from rlhf_ray.config.base import ReferenceConfig
from rlhf_ray.metrics.spans import recorded
from rlhf_ray.packing import RankedMicroBatches
from rlhf_ray.roles import RolloutGroup, SampleArrays
from rlhf_ray.types import LabelledAnswer, Ranking


class ReferenceRank(HostingRank):
    """One rank of the reference's group."""

    @recorded
    def answer_logps(
        self, rows: Sequence[Ranking | LabelledAnswer], plan: RankedMicroBatches
    ) -> list[tuple[float, ...]]:
        """The log-probability of each answer of this rank's rows, in the order of the plan."""
        logps: list[tuple[float, ...]] = self._to_read().answer_logps(rows, plan)
        return logps


@dataclass(kw_only=True, eq=False)
class ReferenceGroup(RankGroup[ReferenceRank]):
    """The reference role on a group of ranks."""

    config: ReferenceConfig

    async def logprobs(self, groups: Sequence[RolloutGroup]) -> SampleArrays:
        """Log-probabilities of the response tokens: a float array [T] a sample."""
        return await forward(
            self.actors, ReferenceRank.logprobs, groups, self.config, timeout_s=self.timeouts.call_s
        )

    async def answer_logps(
        self, rows: Sequence[Ranking | LabelledAnswer]
    ) -> list[tuple[float, ...]]:
        """Log-probability of each of a row's answers, in nats at temperature 1; in row order."""
        score, call_s = ReferenceRank.answer_logps, self.timeouts.call_s
        return by_row(*await over_rows(self.actors, score, rows, self.config, timeout_s=call_s))
