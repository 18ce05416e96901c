"""Configurations, plans, weights and gradients for the tests of learners."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.gradients import first_moments
from rlhf_ray.config.learners import LearnerConfig
from rlhf_ray.learner.build import Spec, make_learner, section_of
from rlhf_ray.learner.deepspeed.engine import DeepSpeedBuilder
from rlhf_ray.packing import RankedMicroBatches, UpdatePlan, plan_forward, plan_update

# Adam's division with a gradient's own size in it: without, rounding of a gradient near 0 becomes a
# whole step, and two ways of computing the same part on one processor or another.
SMOOTH = {"eps": 1e-2}


def hosted(spec: Spec, builder: Any = DeepSpeedBuilder) -> Any:
    """The learner of a specification, as a rank without a GPU hosts it."""
    return make_learner(spec, builder(section_of(spec), torch.device("cpu")))


def learner_config(path: Path, settings: dict[str, Any]) -> LearnerConfig:
    model = {"path": str(path), "dtype": "float32", **settings.pop("model", {})}
    optim = {"lr": 1e-2, **settings.pop("optim", {})}
    budget = {"max_tokens_per_micro_batch": 60, "logits_chunk_tokens": 16}
    return LearnerConfig.model_validate({"model": model, "optim": optim, **budget, **settings})


def plan_of(rows: Sequence[Any], *, minibatches: int = 2, padded: bool = False) -> UpdatePlan:
    return plan_update(
        [row.rollout.num_tokens for row in rows],
        [int(row.rollout.action_mask_T.sum()) for row in rows],
        data_parallel_size=1,
        max_tokens_per_micro_batch=60,
        num_minibatches=minibatches,
        num_epochs=1,
        seed=5,
        padded=padded,
    )


def plan_rows(
    rows: Sequence[Any], *, budget: int = 60, padded: bool = False, num_ranks: int = 1
) -> UpdatePlan:
    """One optimiser step over rows of a data set, each with `num_tokens`."""
    return plan_update(
        [row.num_tokens for row in rows],
        [row.num_trained_tokens for row in rows],
        data_parallel_size=num_ranks,
        max_tokens_per_micro_batch=budget,
        num_minibatches=1,
        num_epochs=1,
        seed=0,
        padded=padded,
    )


def plan_evaluation(
    rows: Sequence[Any], *, budget: int = 60, padded: bool = False, num_ranks: int = 1
) -> RankedMicroBatches:
    """One pass over rows of a data set."""
    return plan_forward(
        [row.num_tokens for row in rows],
        data_parallel_size=num_ranks,
        max_tokens_per_micro_batch=budget,
        padded=padded,
    )


def gradients_of(learner: Any) -> dict[str, torch.Tensor]:
    """The gradient of the first optimiser step, from Adam's first moment: it was not clipped."""
    beta1 = learner.engine.config.optim.betas[0]
    return {
        name: moment.view(-1) / (1 - beta1)
        for name, moment in first_moments(learner.engine).items()
    }


def largest_gap(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """The distance of two sets of tensors, as a share of their size."""
    assert ours.keys() == theirs.keys()
    gap = sum(
        float((ours[n].double().view(-1) - theirs[n].double().reshape(-1)).square().sum())
        for n in ours
    )
    size = sum(float(theirs[n].double().square().sum()) for n in ours)
    return float((gap / size) ** 0.5)


def logprobs_of(learner: Any, rows: Sequence[Any], **keywords: Any) -> list[Any]:
    """Row by row, in the order of `rows`."""
    rollouts = [row.rollout for row in rows]
    lens = [rollout.num_tokens for rollout in rollouts]
    plan = plan_forward(lens, data_parallel_size=1, max_tokens_per_micro_batch=60, padded=False)
    scored = learner.logprobs(rollouts, plan, **keywords)
    order = [row for micro_batch in plan[0] for row in micro_batch]
    return [scored[order.index(row)] for row in range(len(rows))]


def parameters_of(learner: Any) -> dict[str, torch.Tensor]:
    return {
        name: parameter.detach().clone()
        for name, parameter in learner.engine.module.named_parameters()
    }
