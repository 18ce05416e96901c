"""Steps 1 to 3: prompts to rollouts and their scores, with or without dynamic sampling."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial

from rlhf_ray.algorithms.dynamic_sampling import DynamicSamplingExhausted, GroupFilter
from rlhf_ray.config.online import OnlineConfig
from rlhf_ray.data.feed import Feed
from rlhf_ray.deadlines import in_thread
from rlhf_ray.errors import RunError
from rlhf_ray.loops.batches import join, select
from rlhf_ray.loops.clock import StepClock
from rlhf_ray.loops.groups import compared_scores, rows_by_draw, scored_rows
from rlhf_ray.loops.seeds import sample_seeds
from rlhf_ray.roles import GenerationRequest, Reward, RolloutBatch, RolloutEngine, SleepLevel
from rlhf_ray.types import Prompt, Score

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Collected:
    """A step's rollouts.

    Attributes:
        sampled: All of them; groups one after the other.
        scores: Of all rows, perhaps still being computed.
        kept: Rows to train on if a reward applies to them: all, unless dynamic sampling left some
            out.
        num_refilled: Groups that dynamic sampling sampled in place of others.
    """

    sampled: RolloutBatch
    scores: asyncio.Future[Sequence[Score]]
    kept: Sequence[int]
    num_refilled: int

    @cached_property
    def batch(self) -> RolloutBatch:
        """The rows that are kept."""
        return select(self.sampled, self.kept)


class Collector:
    """Draws prompts and has them answered."""

    def __init__(
        self,
        config: OnlineConfig,
        feed: Feed[Prompt],
        *,
        engine: RolloutEngine,
        reward: Reward,
        publishes: bool,
    ) -> None:
        """Draw what `feed` gives; `publishes` says whether each step ends with that."""
        self.config, self.feed = config, feed
        self.rollout, self.reward, self.publishes = engine, reward, publishes

    async def collect(self, step: int, clock: StepClock) -> Collected:
        """The rollouts of one step; the clock is told what is generation and what is scoring.

        Raises:
            RunError: Dynamic sampling found fewer groups with spread than the step needs, where
                that is to be an error.
        """
        if self.config.algorithm.dynamic_sampling.enabled:
            return await self._collect_with_spread(step, clock)
        with clock.phase("generate"):
            sampled = await self._generate(self.config.prompts_per_step)
            await self._make_room(level=2 if self.publishes else 1)
        return Collected(
            sampled=sampled,
            # Scoring goes on beside the model passes that follow.
            scores=asyncio.ensure_future(self.reward.score(sampled)),
            kept=range(len(sampled.summaries_B)),
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
                    batch = await self._generate(num_prompts)
                    await self._make_room(level=1)  # another round may follow
                with clock.phase("score"):
                    scored = await self.reward.score(batch)
                    await self.reward.offload()
                rows = _rows_with_spread(
                    batch, scored, groups, apart=self.config.algorithm.tells_rewards_apart
                )
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
            num_refilled=num_sampled - groups.num_prompts,
        )

    async def _make_room(self, level: SleepLevel) -> None:
        """For a reward model on the engines' GPUs."""
        if self.config.scores_on_engines_gpus:
            await self.rollout.sleep(level)

    async def _generate(self, num_prompts: int) -> RolloutBatch:
        sampling = self.config.rollout
        first_draw = self.feed.position
        drawn = await in_thread(
            partial(self.feed.take, num_prompts),
            timeout_s=self.config.timeouts.call_s,
            actor="the driver",
            operation="reading prompts",
        )
        return await self.rollout.generate(
            [
                GenerationRequest(
                    prompt=prompt,
                    draw=draw,
                    seeds_G=sample_seeds(
                        seed=self.config.seed,
                        draw=draw,
                        prompt_id=prompt.prompt_id,
                        num_samples=self.config.samples_per_prompt,
                    ),
                    temperature=sampling.temperature,
                    max_new_tokens=sampling.max_new_tokens,
                )
                for draw, prompt in enumerate(drawn, start=first_draw)
            ]
        )


def _rows_with_spread(
    batch: RolloutBatch, scores: Sequence[Score], groups: GroupFilter, *, apart: bool
) -> list[int]:
    kept: list[int] = []
    for group in rows_by_draw(batch.summaries_B):
        rows = scored_rows(scores, group)
        compared = compared_scores([scores[row] for row in rows], apart=apart)
        if groups.offer(batch.summaries_B[group[0]].draw, compared):
            kept += rows
    return kept
