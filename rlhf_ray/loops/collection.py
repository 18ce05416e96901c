"""Steps 1 to 3: prompts to rollouts and their scores, with or without dynamic sampling."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from rlhf_ray.algorithms.dynamic_sampling import DynamicSamplingExhausted, GroupFilter
from rlhf_ray.config.online import OnlineConfig
from rlhf_ray.data.loader import ResumableOrder
from rlhf_ray.errors import RunError
from rlhf_ray.loops.batches import join, select
from rlhf_ray.loops.clock import StepClock
from rlhf_ray.loops.seeds import sample_seeds
from rlhf_ray.roles import GenerationRequest, Reward, RolloutBatch, RolloutEngine
from rlhf_ray.types import Prompt, Score

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Collected:
    """A step's rollouts.

    Attributes:
        sampled: All of them; groups one after the other, G rows each.
        scores: Of all rows, perhaps still being computed.
        kept: Rows to train on: all, unless dynamic sampling left groups out.
        num_groups: Groups that are trained.
        num_refilled: Groups that dynamic sampling sampled in place of others.
    """

    sampled: RolloutBatch
    scores: asyncio.Future[Sequence[Score]]
    kept: Sequence[int]
    num_groups: int
    num_refilled: int

    @cached_property
    def batch(self) -> RolloutBatch:
        """What is trained."""
        return select(self.sampled, self.kept)


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

    async def collect(self, step: int, clock: StepClock) -> Collected:
        """The rollouts of one step; the clock is told what is generation and what is scoring.

        Raises:
            RunError: Dynamic sampling found no group with spread in all its rounds, or fewer than
                the step needs where that is to be an error.
        """
        if self.config.algorithm.dynamic_sampling.enabled:
            return await self._collect_with_spread(step, clock)
        num_groups = self.config.prompts_per_step
        with clock.phase("generate"):
            sampled = await self._generate(step, num_groups)
            await self._make_room()
        return Collected(
            sampled=sampled,
            # Scoring goes on beside the model passes that follow.
            scores=asyncio.ensure_future(self.reward.score(sampled)),
            kept=range(len(sampled.summaries_B)),
            num_groups=num_groups,
            num_refilled=0,
        )

    async def _collect_with_spread(self, step: int, clock: StepClock) -> Collected:
        settings = self.config.algorithm.dynamic_sampling
        groups = GroupFilter(
            num_prompts=self.config.prompts_per_step,
            max_rounds=settings.max_rounds,
            on_exhausted=settings.on_exhausted,
        )
        batches: list[RolloutBatch] = []
        scores: list[Score] = []
        kept: list[int] = []
        try:
            while num_prompts := groups.next_round():
                with clock.phase("generate"):
                    batch = await self._generate(step, num_prompts)
                    await self._make_room()
                with clock.phase("score"):
                    scored = await self.reward.score(batch)
                rows = _rows_with_spread(batch, scored, groups, self.config.samples_per_prompt)
                kept += [len(scores) + row for row in rows]
                batches.append(batch)
                scores += scored
        except DynamicSamplingExhausted as error:
            raise RunError(f"step {step}: {error}") from error
        if groups.num_missing:
            logger.warning(
                "step %d trains %d of %d groups: in %d rounds no more had scores that differ",
                step, len(groups.accepted), groups.num_prompts, groups.num_rounds,
            )  # fmt: skip
        done: asyncio.Future[Sequence[Score]] = asyncio.get_running_loop().create_future()
        done.set_result(scores)
        num_sampled = len(groups.accepted) + len(groups.filtered)
        return Collected(
            sampled=join(batches),
            scores=done,
            kept=kept,
            num_groups=len(groups.accepted),
            num_refilled=num_sampled - groups.num_prompts,
        )

    async def _make_room(self) -> None:
        """For a reward model on the engines' GPUs."""
        if self.config.scores_on_engines_gpus:
            await self.engine.sleep()

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
