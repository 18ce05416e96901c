"""Steps 1 to 3: prompts to rollouts and their scores, with or without dynamic sampling."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from rlhf_ray.algorithms.dynamic_sampling import DynamicSamplingExhausted, GroupFilter
from rlhf_ray.config.online import OnlineConfig
from rlhf_ray.data.loader import ResumableOrder
from rlhf_ray.errors import RunError
from rlhf_ray.loops.batches import join, select
from rlhf_ray.loops.seeds import sample_seeds
from rlhf_ray.roles import GenerationRequest, Reward, RolloutBatch, RolloutEngine
from rlhf_ray.types import Prompt, Score


@dataclass(frozen=True, kw_only=True)
class Collected:
    """A step's rollouts.

    Attributes:
        batch: Groups one after the other, G rows each.
        scores: Of its rows, perhaps still being computed.
        num_refilled: Groups that dynamic sampling replaced.
    """

    batch: RolloutBatch
    scores: asyncio.Future[Sequence[Score]]
    num_refilled: int


class Collector:
    """Draws prompts and has them answered."""

    def __init__(
        self,
        config: OnlineConfig,
        prompts: Sequence[Prompt],
        order: ResumableOrder,
        *,
        engine: RolloutEngine,
        reward: Reward,
    ) -> None:
        """Draw from `prompts` in `order`."""
        self.config, self.prompts, self.order = config, prompts, order
        self.engine, self.reward = engine, reward

    async def collect(self, step: int) -> Collected:
        """The rollouts of one step.

        Raises:
            RunError: Dynamic sampling found no group with spread in all its rounds.
        """
        if self.config.algorithm.dynamic_sampling.enabled:
            return await self._collect_with_spread(step)
        batch = await self._generate(step, self.config.prompts_per_step)
        # Scoring goes on beside the model passes that follow.
        return Collected(
            batch=batch, scores=asyncio.ensure_future(self.reward.score(batch)), num_refilled=0
        )

    async def _collect_with_spread(self, step: int) -> Collected:
        groups = GroupFilter(
            num_prompts=self.config.prompts_per_step,
            max_rounds=self.config.algorithm.dynamic_sampling.max_rounds,
            on_exhausted="partial",
        )
        batches: list[RolloutBatch] = []
        scores: list[Score] = []
        try:
            while num_prompts := groups.next_round():
                batch = await self._generate(step, num_prompts)
                scored = await self.reward.score(batch)
                kept = _rows_with_spread(batch, scored, groups, self.config.samples_per_prompt)
                batches.append(select(batch, kept))
                scores += [scored[row] for row in kept]
        except DynamicSamplingExhausted as error:
            raise RunError(f"step {step}: {error}") from error
        done: asyncio.Future[Sequence[Score]] = asyncio.get_running_loop().create_future()
        done.set_result(scores)
        return Collected(batch=join(batches), scores=done, num_refilled=len(groups.filtered))

    async def _generate(self, step: int, num_prompts: int) -> RolloutBatch:
        rollout = self.config.rollout
        first_draw = self.order.position
        drawn = [self.prompts[row] for row in self.order.take(num_prompts)]
        return await self.engine.generate(
            [
                GenerationRequest(
                    prompt=prompt,
                    seeds_G=sample_seeds(
                        seed=self.config.seed,
                        draw=draw,
                        prompt_id=prompt.prompt_id,
                        num_samples=self.config.samples_per_prompt,
                    ),
                    temperature=rollout.temperature,
                    max_new_tokens=rollout.max_new_tokens,
                )
                for draw, prompt in enumerate(drawn, start=first_draw)
            ]
        )


def _rows_with_spread(
    batch: RolloutBatch, scores: Sequence[Score], groups: GroupFilter, num_samples: int
) -> list[int]:
    kept: list[int] = []
    for first in range(0, len(scores), num_samples):
        rows = range(first, first + num_samples)
        prompt_id = batch.summaries_B[first].prompt_id
        if groups.offer(prompt_id, [scores[row].total for row in rows]):
            kept += rows
    return kept
