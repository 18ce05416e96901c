"""A role while it learns from the rows of a data set: the same ranks, another learner."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray

from actors.ranks.trained import TrainedGroup
from rlhf_ray.packing import UpdatePlan, plan_forward
from rlhf_ray.roles import Evaluated, Metrics
from rlhf_ray.types import Ranking


class SupervisedGroup(TrainedGroup):
    """SFT and DPO on the policy's ranks, a reward model on the reward's."""

    async def update(self, rows: Sequence[Any], plan: UpdatePlan) -> Metrics:
        """One optimiser step a minibatch of the plan."""
        return await self._update(ray.put(list(rows)), plan)

    async def evaluate(self, rows: Sequence[Any]) -> Evaluated:
        """Metrics and outcomes of held-out rows."""
        evaluated: Evaluated = await self._forward("evaluate", rows)
        return evaluated

    async def score_answers(self, rows: Sequence[Ranking]) -> Sequence[tuple[float, ...]]:
        """The scores that a reward model in training gives each row's answers."""
        scores: Sequence[tuple[float, ...]] = await self._forward("score_answers", rows)
        return scores

    async def _forward(self, method: str, rows: Sequence[Any]) -> Any:
        """What the first rank says of all rows."""
        plan = plan_forward(
            [row.num_tokens for row in rows],
            data_parallel_size=len(self.actors),
            max_tokens_per_micro_batch=self.config.max_tokens_per_micro_batch,
            padded=self.config.padded,
        )
        answers = await self.actors.compute(
            method, ray.put(list(rows)), plan, timeout_s=self.timeouts.call_s
        )
        return answers[0]

    async def continuations(
        self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, end_ids: Sequence[int]
    ) -> list[list[int]]:
        """What the model writes after each prompt, greedily, up to an end token."""
        written: list[list[list[int]]] = await self.actors.compute(
            "continuations",
            list(prompts),
            max_new_tokens,
            end_ids,
            timeout_s=self.timeouts.call_s,
        )
        return written[0]
