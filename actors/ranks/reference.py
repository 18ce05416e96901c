"""The frozen reference: one Ray actor a rank, and the group as the loop sees it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from actors.ranks.forward import OwnSamples, Pass, forward
from actors.ranks.group import RankGroup, answer_logps
from actors.ranks.hosting import HostingRank
from rlhf_ray.config.learners import ReferenceConfig
from rlhf_ray.metrics.spans import recorded
from rlhf_ray.roles.groups import RolloutGroup, SampleArrays
from rlhf_ray.types import LabelledAnswer, Ranking


class ReferenceRank(HostingRank):
    """One rank of the reference's group."""

    @recorded
    def logprobs(self, work: Pass, own: OwnSamples) -> tuple[int, Any]:
        """How many rows are this rank's, and an array for each, by its sample."""
        scored = self._to_read().logprobs(own.rows(self.fetch(own.refs), work), work.plan)
        return len(scored), own.answers(scored)


@dataclass(kw_only=True, eq=False)
class ReferenceGroup(RankGroup[ReferenceRank]):
    """The reference role on a group of ranks."""

    config: ReferenceConfig

    async def logprobs(self, groups: Sequence[RolloutGroup]) -> SampleArrays:
        """Log-probabilities of the response tokens: a float array [T] a sample."""
        [logprobs] = await forward(
            self.actors, ReferenceRank.logprobs, groups, self.config, timeout_s=self.timeouts.call_s
        )
        return logprobs

    async def answer_logps(
        self, rows: Sequence[Ranking | LabelledAnswer]
    ) -> list[tuple[float, ...]]:
        """Log-probability of each of a row's answers, in nats at temperature 1; in row order."""
        return await answer_logps(self.actors, rows, self.config, timeout_s=self.timeouts.call_s)
