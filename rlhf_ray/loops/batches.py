"""What a step of an online job trains on: what was scored, and by which plan each role learns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from rlhf_ray.config.learners import LearnerConfig
from rlhf_ray.config.online import OnlineConfig
from rlhf_ray.config.placement import GroupConfig
from rlhf_ray.packing import UpdatePlan, plan_update
from rlhf_ray.roles.groups import Ref, RolloutGroup, ScoredGroup
from rlhf_ray.roles.reports import Metrics
from rlhf_ray.types import RolloutSummary

TrainedRole: TypeAlias = Literal["policy", "value"]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What one role trains on: experience, and a plan of which it is the rows."""

    experience: Ref
    plan: UpdatePlan


@dataclass(frozen=True, kw_only=True)
class Scored:
    """What is known of a step's rollouts before the update.

    Attributes:
        sampled: All groups, with their scores.
        trained: Groups with the samples that are trained. None are left where no reward applied to
            any, where no group has enough of them to be compared, or where all were cut off and
            those are masked.
        batches: Of `trained`, by the roles that learn from it; none where nothing is left.
        metrics: What was measured before the update, of all that was compared.
    """

    sampled: Sequence[ScoredGroup]
    trained: Sequence[RolloutGroup] = ()
    batches: Mapping[TrainedRole, Batch] = field(default_factory=dict)
    metrics: Metrics = field(default_factory=dict)

    @property
    def summaries_B(self) -> list[RolloutSummary]:
        """Of the samples that are trained."""
        return summaries_of(self.trained)


def summaries_of(groups: Sequence[RolloutGroup]) -> list[RolloutSummary]:
    """Of all their samples, in order."""
    return [summary for group in groups for summary in group.summaries_G]


def plan_of(
    config: OnlineConfig, step: int, trained: Sequence[RolloutGroup], role: TrainedRole
) -> UpdatePlan:
    """How a role learns from all samples of groups, which are the rows in their order."""
    learner: LearnerConfig = getattr(config, role)
    group: GroupConfig = getattr(config.placement, role)
    summaries_B = summaries_of(trained)
    return plan_update(
        [summary.num_tokens for summary in summaries_B],
        [summary.num_action_tokens for summary in summaries_B],
        data_parallel_size=group.ranks,
        max_tokens_per_micro_batch=learner.max_tokens_per_micro_batch,
        num_minibatches=config.algorithm.minibatches,
        num_epochs=config.algorithm.epochs,
        seed=config.seed * 1_000_003 + step,
        padded=learner.padded,
        prompts_B=[share for group in trained for share in group.prompts_G]
        if learner.shares_prompts
        else None,
    )
