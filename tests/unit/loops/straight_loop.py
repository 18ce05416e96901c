"""The oracle of the loop: one step after the other, in rounds; no feed, admission or report."""

from __future__ import annotations

import itertools

from rlhf_ray.loops.publication import publish
from rlhf_ray.roles import GenerationRequest, ScoredGroup
from rlhf_ray.rollouts.seeds import sample_seeds


async def straight_loop(config, roles, prompts):
    """Ask of `roles` what `OnlineLoop` does; prompts come as they stand."""
    await publish(roles, 0)
    dynamic, draws = config.algorithm.dynamic_sampling, itertools.count()
    for step in range(1, config.total_steps + 1):
        kept = []
        for _ in range(dynamic.max_rounds if dynamic.enabled else 1):
            num_missing = config.prompts_per_step - len(kept)
            requests = [request(config, prompts, next(draws)) for _ in range(num_missing)]
            if requests:
                groups = [await answer for answer in await roles.rollout.generate(requests)]
                if dynamic.enabled:
                    groups = await scored(roles, groups)
                    groups = [g for g in groups if len({s.total for s in g.scores_G}) > 1]
                kept += groups
        await roles.rollout.sleep(level=2)
        if kept:
            groups = [group.group for group in kept] if dynamic.enabled else kept
            old = await roles.policy.logprobs(groups)
            reference = await roles.reference.logprobs(groups)
            values = await roles.value.values(groups)
            experience, _ = await roles.experience.build(
                kept if dynamic.enabled else await scored(roles, kept),
                old=old,
                reference=reference,
                values=values,
                kl_coefficient=config.algorithm.kl.coefficient,
            )
            await roles.policy.update(experience, None, config.algorithm.kl.coefficient)
            await roles.value.update(experience, None)
        await publish(roles, step)


async def scored(roles, groups):
    scores = await roles.reward.score(groups)
    return [ScoredGroup(group=g, scores_G=s) for g, s in zip(groups, scores, strict=True)]


def request(config, prompts, draw):
    prompt = prompts[draw % len(prompts)]
    by = {"seed": config.seed, "draw": draw, "prompt_id": prompt.prompt_id}
    return GenerationRequest(
        prompt=prompt,
        draw=draw,
        seeds_G=sample_seeds(**by, num_samples=config.samples_per_prompt),
        temperature=config.rollout.temperature,
        max_new_tokens=config.rollout.max_new_tokens,
    )
