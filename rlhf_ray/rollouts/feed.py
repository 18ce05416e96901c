"""Steps 1 to 3 of a training step: prompts to groups with scores, as many as the step wants."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from rlhf_ray.config.online import OnlineConfig
from rlhf_ray.data.order import DataOrder
from rlhf_ray.deadlines import in_thread, side_by_side
from rlhf_ray.errors import RunError
from rlhf_ray.metrics.clock import StepClock
from rlhf_ray.roles import GenerationRequest, Reward, RolloutEngine, RolloutGroup, ScoredGroup
from rlhf_ray.rollouts.admission import Admission, StepDraws
from rlhf_ray.rollouts.groups import has_spread, require_finite, with_scores
from rlhf_ray.rollouts.seeds import sample_seeds
from rlhf_ray.types import Prompt

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Collected:
    """A step's groups, in the order of their draws.

    Attributes:
        sampled: All of them.
        scored: The same with their scores, which are perhaps still being computed.
        groups: To train on if a reward applies to them: all, unless dynamic sampling left some out.
        num_refilled: Groups that dynamic sampling sampled in place of others.
    """

    sampled: Sequence[RolloutGroup]
    scored: asyncio.Future[Sequence[ScoredGroup]]
    groups: Sequence[RolloutGroup]
    num_refilled: int


class Feed:
    """Draws prompts, has them answered and scored, and decides which groups make a step."""

    def __init__(
        self,
        config: OnlineConfig,
        order: DataOrder[Prompt],
        *,
        engine: RolloutEngine,
        reward: Reward,
        publishes: bool,
    ) -> None:
        """Draw what `order` gives; `publishes` says whether each step ends with that."""
        self.config, self.order = config, order
        self.rollout, self.reward, self.publishes = engine, reward, publishes
        self.filters = config.algorithm.dynamic_sampling.enabled
        self.begin_behind(0)

    def begin_behind(self, steps: int) -> None:
        """Go on behind so many steps, from where the order is."""
        self.admission = Admission(
            groups_per_step=self.config.prompts_per_step,
            max_rounds=self.config.algorithm.dynamic_sampling.max_rounds if self.filters else 1,
            frontier=self.order.position,
            steps=steps,
        )
        self._prompts: dict[int, Prompt] = {}
        self._sampled: dict[int, RolloutGroup] = {}
        self._kept: dict[int, RolloutGroup] = {}
        self._scoring: list[asyncio.Future[list[ScoredGroup]]] = []

    async def take(self, step: int, clock: StepClock) -> Collected:
        """The groups of the next step; the clock is told what is generation and what is scoring.

        The engines have the weights of the step before. What a call that failed was sampling is
        sampled again by the next.

        Raises:
            RunError: Dynamic sampling found fewer groups with spread than the step needs, where
                that is to be an error.
        """
        self.admission.moved_to(step - 1)
        while self.admission.step_draws() is None:
            await self._sample(self.admission.admit(), clock)
        draws = self.admission.consume()
        self._require_enough(step, draws)
        of_step = sorted((*draws.accepted, *draws.rejected))
        for draw in of_step:
            del self._prompts[draw]
        scoring, self._scoring = self._scoring, []
        return Collected(
            sampled=[self._sampled.pop(draw) for draw in of_step],
            scored=asyncio.ensure_future(_in_order(scoring)),
            groups=[self._kept.pop(draw) for draw in draws.accepted],
            num_refilled=len(of_step) - self.config.prompts_per_step,
        )

    async def _sample(self, draws: Sequence[int], clock: StepClock) -> None:
        """Have draws answered together, and decide about each."""
        try:
            with clock.phase("generate"):
                groups = await sample_all(self.rollout, await self._requests(draws))
                if self.config.scores_on_engines_gpus:
                    # Another round may follow where groups are filtered.
                    await self.rollout.sleep(2 if self.publishes and not self.filters else 1)
            # Where nothing is filtered, scoring goes on beside the model passes that follow.
            scoring = asyncio.ensure_future(self._score(groups))
            kept = await self._with_spread(scoring, clock) if self.filters else groups
        except BaseException:
            for draw in draws:
                self.admission.lost(draw)
            raise
        self._scoring.append(scoring)
        self._sampled |= {group.draw: group for group in groups}
        self._kept |= {group.draw: group for group in kept}
        for draw in draws:
            self.admission.decided(draw, accepted=draw in self._kept)

    async def _score(self, groups: Sequence[RolloutGroup]) -> list[ScoredGroup]:
        scores = await side_by_side(self.reward.score(group) for group in groups)
        return [
            ScoredGroup(group=group, scores_G=scores_G)
            for group, scores_G in zip(groups, scores, strict=True)
        ]

    async def _with_spread(
        self, scoring: asyncio.Future[list[ScoredGroup]], clock: StepClock
    ) -> list[RolloutGroup]:
        """The groups whose scores differ, each with the samples that have one."""
        with clock.phase("score"):
            scored_groups = await scoring
            await self.reward.offload()
        apart = self.config.algorithm.tells_rewards_apart
        for scored in scored_groups:
            require_finite(scored)
        left = [with_scores(scored) for scored in scored_groups]
        return [scored.group for scored in left if has_spread(scored.scores_G, apart=apart)]

    async def _requests(self, draws: Sequence[int]) -> list[GenerationRequest]:
        new = [draw for draw in draws if draw not in self._prompts]
        if new:
            assert new[0] == self.order.position, (new, self.order.position)
            prompts = await in_thread(
                partial(self.order.take, len(new)),
                timeout_s=self.config.timeouts.call_s,
                actor="the driver",
                operation="reading prompts",
            )
            self._prompts.update(zip(new, prompts, strict=True))
        return [
            GenerationRequest(
                prompt=self._prompts[draw],
                draw=draw,
                seeds_G=sample_seeds(
                    seed=self.config.seed,
                    draw=draw,
                    prompt_id=self._prompts[draw].prompt_id,
                    num_samples=self.config.samples_per_prompt,
                ),
                temperature=self.config.rollout.temperature,
                max_new_tokens=self.config.rollout.max_new_tokens,
            )
            for draw in draws
        ]

    def _require_enough(self, step: int, draws: StepDraws) -> None:
        num_found, num_wanted = len(draws.accepted), self.config.prompts_per_step
        if num_found == num_wanted:
            return
        settings = self.config.algorithm.dynamic_sampling
        if settings.on_exhausted == "error":
            raise RunError(
                f"step {step}: {num_found} of {num_wanted} groups have scores that differ after "
                f"{settings.max_rounds} rounds ({len(draws.rejected)} filtered); the prompts are "
                "too easy or too hard, or max_rounds is too low"
            )
        logger.warning(
            "step %d trains %d of %d groups: in %d rounds no more had scores that differ",
            step, num_found, num_wanted, settings.max_rounds,
        )  # fmt: skip


async def sample_all(
    rollout: RolloutEngine, requests: Sequence[GenerationRequest]
) -> list[RolloutGroup]:
    """Have requests answered together; the first that fails ends the others."""
    answers = [asyncio.ensure_future(answer) for answer in await rollout.generate(requests)]
    try:
        return await asyncio.gather(*answers)
    except BaseException:
        for answer in answers:
            answer.cancel()
        raise


async def _in_order(scoring: Sequence[asyncio.Future[list[ScoredGroup]]]) -> list[ScoredGroup]:
    scored = [group for wave in scoring for group in await wave]
    return sorted(scored, key=lambda one: one.group.draw)
