"""The oracle of the loop: one step after the other, in rounds; no feed, admission or report."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from rlhf_ray.config.online import PpoConfig
from rlhf_ray.loops.publication import publish
from rlhf_ray.packing import UpdatePlan
from rlhf_ray.roles.groups import GenerationRequest, RolloutGroup, ScoredGroup
from rlhf_ray.roles.protocols import Roles
from rlhf_ray.rollouts.seeds import sample_seeds
from rlhf_ray.types import Prompt


async def straight_loop(config: PpoConfig, roles: Roles, prompts: Sequence[Prompt]) -> None:
    """Ask of `roles` what `OnlineLoop` does; prompts come as they stand."""
    assert roles.reference is not None and roles.value is not None
    await publish(roles, 0)
    dynamic, draws = config.algorithm.dynamic_sampling, itertools.count()
    plan = UpdatePlan(minibatches=())
    for step in range(1, config.total_steps + 1):
        groups: list[RolloutGroup] = []
        spread: list[ScoredGroup] = []
        for _ in range(dynamic.max_rounds if dynamic.enabled else 1):
            num_missing = config.prompts_per_step - len(groups)
            requests = [request(config, prompts, next(draws), step) for _ in range(num_missing)]
            if requests:
                found = [await answer for answer in await roles.rollout.generate(requests)]
                if dynamic.enabled:
                    kept = await scored(roles, found)
                    kept = [g for g in kept if len({s.total for s in g.scores_G}) > 1]
                    spread += kept
                    found = [g.group for g in kept]
                groups += found
        await roles.rollout.sleep(level=2)
        if groups:
            models = config.scored_models
            scored_by = await roles.policy.logprobs(groups, models) if models else []
            reference = await roles.reference.logprobs(groups)
            values = await roles.value.values(groups)
            [experience, for_critic], _ = await roles.experience.build(
                spread if dynamic.enabled else await scored(roles, groups),
                old=scored_by[0] if models else None,
                reference=reference,
                values=values,
                kl_coefficient=config.algorithm.kl.coefficient,
                plans=[plan, plan],
            )
            await roles.policy.update(experience, plan, config.algorithm.kl.coefficient)
            await roles.value.update(for_critic, plan)
        await publish(roles, step)


async def scored(roles: Roles, groups: Sequence[RolloutGroup]) -> list[ScoredGroup]:
    return [ScoredGroup(group=g, scores_G=await roles.reward.score(g)) for g in groups]


def request(
    config: PpoConfig, prompts: Sequence[Prompt], draw: int, step: int
) -> GenerationRequest:
    prompt = prompts[draw % len(prompts)]
    return GenerationRequest(
        prompt=prompt,
        draw=draw,
        seeds_G=sample_seeds(
            seed=config.seed,
            draw=draw,
            prompt_id=prompt.prompt_id,
            num_samples=config.samples_per_prompt,
        ),
        temperature=config.rollout.temperature,
        max_new_tokens=config.rollout.max_new_tokens,
        newest_version=step - 1,
    )
