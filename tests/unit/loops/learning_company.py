"""A company whose roles learn: the learners of a rank over an engine of PyTorch alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fakes import Company, FakeReference, FakeValue, make_config, resolve
from plain_engine import PlainBuilder

from rlhf_ray.config.algorithm_table import ScoredModel
from rlhf_ray.config.learners import ForwardConfig
from rlhf_ray.experience.build import build_experience
from rlhf_ray.learner.build import make_learner, section_of
from rlhf_ray.own_rows import dealt
from rlhf_ray.packing import RankedMicroBatches, UpdatePlan, plan_forward
from rlhf_ray.rewards.scorers import Scorers
from rlhf_ray.roles.groups import Ref, RolloutGroup, SampleArrays, ScoredGroup
from rlhf_ray.roles.protocols import Roles
from rlhf_ray.roles.reports import Metrics
from rlhf_ray.specs import ExperienceSpec, PolicySpec, ReferenceSpec, RewardSpec, ValueSpec
from rlhf_ray.types import Rollout, Score

Scoring = Callable[[Sequence[Rollout], RankedMicroBatches], list[Any]]


@dataclass(frozen=True, kw_only=True)
class Specs:
    """What its roles are made from."""

    policy: PolicySpec
    value: ValueSpec
    reference: ReferenceSpec
    reward: RewardSpec
    experience: ExperienceSpec


def specs_of(run_dir: Path, model: Path, **settings: Any) -> tuple[Any, Specs]:
    """The configuration of PPO on a model of at least 10 tokens, and the roles'."""
    learner = {"model": {"path": str(model), "dtype": "float32"}}
    config = make_config(
        run_dir,
        policy=learner,
        value=learner,
        reward={
            "functions": [
                {"path": "rlhf_ray.rewards.contains:contains_word", "arguments": {"word": "0"}}
            ]
        },
        **settings,
    )
    of_learners: dict[str, Any] = {
        "algorithm": config.algorithm,
        "max_new_tokens": config.rollout.max_new_tokens,
        "total_steps": config.total_steps,
        "replay_folder": "",
        "seed": config.seed,
    }
    reference = config.reference.model_copy(update={"model": config.policy.model})
    return config, Specs(
        policy=PolicySpec(
            learner=config.policy,
            old_logprobs=config.old_logprobs,
            temperature=1.0,
            **of_learners,
        ),
        value=ValueSpec(learner=config.value, **of_learners),
        reference=ReferenceSpec(reference=reference, temperature=1.0),
        reward=RewardSpec(
            reward=config.reward,
            timeout_s=config.timeouts.reward_s,
            vocabulary="",
            end_token_ids=(),
            seed=config.seed,
        ),
        experience=ExperienceSpec(
            algorithm=config.algorithm,
            old_logprobs=config.old_logprobs,
            shaping=config.reward.shaping,
            max_new_tokens=config.rollout.max_new_tokens,
            reward_weights={"contains_word": 1.0},
        ),
    )


class LearningCompany(Company):
    """Its engine makes answers up; all that is computed of them is what ranks compute."""

    def __init__(self, config: Any, specs: Specs) -> None:
        super().__init__(config, lambda prompt_id, sample: None)
        self.specs = specs
        self.policy, self.critic = hosted(specs.policy), hosted(specs.value)
        self.frozen = hosted(specs.reference)
        self.scorers = Scorers(specs.reward)

    def roles(self, *, value: bool = True, reference: bool = True) -> Roles:
        return Roles(
            rollout=self, policy=self, reward=self, experience=self, store=self,
            reference=LearnedReference(self) if reference else None,
            value=LearnedValue(self) if value else None,
        )  # fmt: skip

    async def score(self, group: RolloutGroup) -> tuple[Score, ...]:
        [(name, values)] = (
            await self.scorers.score({"contains_word": group.draw}, resolve([group]))
        ).items()
        return tuple(Score(total=value, parts={name: value}) for value in values)

    async def logprobs(
        self, groups: Sequence[RolloutGroup], models: Sequence[ScoredModel]
    ) -> Sequence[SampleArrays]:
        assert models == ("policy",)
        return [passed(self.policy.logprobs, groups, self.specs.policy.learner)]

    async def build(
        self,
        groups: Sequence[ScoredGroup],
        *,
        old: SampleArrays | None,
        reference: SampleArrays | None,
        values: SampleArrays | None,
        kl_coefficient: float,
        plans: Sequence[UpdatePlan],
    ) -> tuple[Sequence[Ref], Metrics]:
        rollouts_B = resolve([scored.group for scored in groups])

        def of_rows(arrays: SampleArrays | None) -> list[Any] | None:
            return [arrays[0][r.draw, r.sample] for r in rollouts_B] if arrays else None

        built = build_experience(
            rollouts_B,
            [score for scored in groups for score in scored.scores_G],
            old_logprobs_B=of_rows(old),
            reference_logprobs_B=of_rows(reference),
            values_B=of_rows(values),
            kl_coefficient=kl_coefficient,
            spec=self.specs.experience,
        )
        return [dealt(built.experience_B, plan)[0] for plan in plans], built.metrics

    async def update(self, experience: Ref, plan: UpdatePlan, kl_coefficient: float) -> Metrics:
        metrics: Metrics = self.policy.update(experience, plan, kl_coefficient)
        return metrics


class LearnedReference(FakeReference):
    company: LearningCompany

    async def logprobs(self, groups: Sequence[RolloutGroup]) -> SampleArrays:
        frozen = self.company.frozen
        return passed(frozen.logprobs, groups, frozen.config)


class LearnedValue(FakeValue):
    company: LearningCompany

    async def values(self, groups: Sequence[RolloutGroup]) -> SampleArrays:
        critic = self.company.critic
        return passed(critic.values, groups, critic.config)

    async def update(self, experience: Ref, plan: UpdatePlan) -> Metrics:
        metrics: Metrics = self.company.critic.update(experience, plan)
        return metrics


def hosted(spec: PolicySpec | ValueSpec | ReferenceSpec) -> Any:
    """Its learner, as a rank hosts it."""
    section: Any = section_of(spec)
    return make_learner(spec, PlainBuilder(section, torch.device("cpu")))


def passed(
    score: Scoring, groups: Sequence[RolloutGroup], config: ForwardConfig
) -> list[Mapping[tuple[int, int], np.ndarray[Any, Any]]]:
    """A pass over all samples of groups on one rank: an array each, by its sample."""
    rollouts = resolve(groups)
    plan = plan_forward(
        [rollout.num_tokens for rollout in rollouts],
        data_parallel_size=1,
        max_tokens_per_micro_batch=config.max_tokens_per_micro_batch,
        padded=config.padded,
    )
    rows = [row for micro_batch in plan[0] for row in micro_batch]
    samples = [(rollouts[row].draw, rollouts[row].sample) for row in rows]
    return [dict(zip(samples, score(rollouts, plan), strict=True))]
