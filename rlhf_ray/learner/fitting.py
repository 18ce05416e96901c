"""Plans as the loaded model needs them.

Whoever plans knows the configuration, and takes `layout: auto` for packed. Whether a model needs
rectangles is known where it is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rlhf_ray.config.base import ForwardConfig
from rlhf_ray.models.checked import CheckedModel
from rlhf_ray.packing import RankedMicroBatches, UpdatePlan, cut_to_rectangles


def fitted(
    plan: RankedMicroBatches, lengths_B: Sequence[int], config: ForwardConfig, model: CheckedModel
) -> RankedMicroBatches:
    """The plan, its micro-batches cut where the model pads them beyond the token budget.

    Args:
        plan: Rank -> micro-batch -> row.
        lengths_B: Tokens of each row.
        config: What the plan was made by.
        model: What runs it.
    """
    if config.padded or not model.padded:
        return plan
    budget = config.max_tokens_per_micro_batch
    return cut_to_rectangles(plan, lengths_B, max_tokens_per_micro_batch=budget)


def fitted_update(
    plan: UpdatePlan, lengths_B: Sequence[int], config: ForwardConfig, model: CheckedModel
) -> UpdatePlan:
    """The same of every optimiser step."""
    return UpdatePlan(
        minibatches=tuple(
            replace(
                minibatch,
                micro_batches_by_rank=fitted(
                    minibatch.micro_batches_by_rank, lengths_B, config, model
                ),
            )
            for minibatch in plan.minibatches
        )
    )
