"""A role while it learns from the rows of a data set: the same ranks, another learner."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from actors.cluster.role_handle import put
from actors.ranks.hosting import HostingRank
from actors.ranks.policy import PolicyRank
from actors.ranks.reward import RewardRank
from actors.ranks.trained import TrainedGroup
from rlhf_ray.packing import RankedMicroBatches, UpdatePlan, plan_forward
from rlhf_ray.roles import Evaluated, Metrics
from rlhf_ray.types import Ranking

T = TypeVar("T")


class SupervisedGroup(TrainedGroup[Any]):
    """SFT and DPO on the policy's ranks, a reward model on the reward's."""

    async def update(self, rows: Sequence[Any], plan: UpdatePlan) -> Metrics:
        """One optimiser step a minibatch of the plan."""
        return await self._update(put(list(rows)), plan)

    async def evaluate(self, rows: Sequence[Any]) -> Evaluated:
        """Metrics and outcomes of held-out rows."""
        [evaluated, *_] = await self._forward(HostingRank.evaluate, rows)
        assert evaluated is not None
        return evaluated

    async def score_answers(self, rows: Sequence[Ranking]) -> Sequence[tuple[float, ...]]:
        """The scores that a reward model in training gives each row's answers."""
        [scores, *_] = await self._forward(RewardRank.score_answers, rows)
        return scores

    async def _forward(
        self, method: Callable[[Any, Sequence[Any], RankedMicroBatches], T], rows: Sequence[Any]
    ) -> list[T]:
        """Each rank's answer about all rows."""
        plan = plan_forward(
            [row.num_tokens for row in rows],
            data_parallel_size=len(self.actors),
            max_tokens_per_micro_batch=self.config.max_tokens_per_micro_batch,
            padded=self.config.padded,
        )
        call_s = self.timeouts.call_s
        async with self.actors.turn(timeout_s=call_s):
            return await self.actors.call(method, timeout_s=call_s)(put(list(rows)), plan)

    async def continuations(
        self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, end_ids: Sequence[int]
    ) -> list[list[int]]:
        """What the model writes after each prompt, greedily, up to an end token."""
        call_s = self.timeouts.call_s
        async with self.actors.turn(timeout_s=call_s):
            write = self.actors.call(PolicyRank.continuations, timeout_s=call_s)
            [written, *_] = await write(list(prompts), max_new_tokens, end_ids)
        return written
