"""Plans and weights for the tests of learners."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from rlhf_ray.data.packing import UpdatePlan, plan_forward, plan_update


def plan_of(rows: Sequence[Any], *, minibatches: int = 2, padded: bool = False) -> UpdatePlan:
    return plan_update(
        [row.rollout.num_tokens for row in rows],
        [int(row.rollout.own_T.sum()) for row in rows],
        num_ranks=1,
        max_tokens_per_micro_batch=60,
        num_minibatches=minibatches,
        num_epochs=1,
        seed=5,
        padded=padded,
    )


def logprobs_of(learner: Any, rows: Sequence[Any], **keywords: Any) -> list[Any]:
    """Row by row, in the order of `rows`."""
    rollouts = [row.rollout for row in rows]
    lens = [rollout.num_tokens for rollout in rollouts]
    plan = plan_forward(lens, num_ranks=1, max_tokens_per_micro_batch=60, padded=False)
    scored = learner.logprobs(rollouts, plan, **keywords)
    order = [row for micro_batch in plan[0] for row in micro_batch]
    return [scored[order.index(row)] for row in range(len(rows))]


def parameters_of(learner: Any) -> dict[str, torch.Tensor]:
    return {
        name: parameter.detach().clone()
        for name, parameter in learner.engine.module.named_parameters()
    }
