"""Each reward alone, for advantages that standardise one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from rlhf_ray.loops.shaped_scores import shape_scores
from rlhf_ray.specs import AssemblySpec
from rlhf_ray.types import Rollout, Score


@dataclass(frozen=True, kw_only=True)
class RewardParts:
    """The rewards of a step, K of them.

    Attributes:
        rewards_BK: float32 [B, K]; 0 where a reward does not apply.
        applies_BK: bool [B, K].
        weights_K: float32 [K].
    """

    rewards_BK: torch.Tensor
    applies_BK: torch.Tensor
    weights_K: torch.Tensor


def reward_parts(
    rollouts_B: Sequence[Rollout], scores_B: Sequence[Score], spec: AssemblySpec
) -> RewardParts:
    """Each scorer's values, and the penalties of shaping as one reward more, of weight 1.

    Raises:
        ValueError: A score lacks a reward that has a weight.
    """
    columns, weights = [], []
    for name, weight in spec.reward_weights.items():
        if lacking := [row for row, score in enumerate(scores_B) if name not in score.parts]:
            raise ValueError(f"row {lacking[0]} has no value of reward {name!r}, not even None")
        columns.append([score.parts[name] for score in scores_B])
        weights.append(weight)
    penalties = shape_scores(
        [0.0] * len(rollouts_B), rollouts_B, spec.shaping, max_new_tokens=spec.max_new_tokens
    )
    if penalties.any():
        columns.append(list(penalties.tolist()))
        weights.append(1.0)
    rows = list(zip(*columns, strict=True))
    return RewardParts(
        rewards_BK=torch.tensor([[0.0 if v is None else v for v in row] for row in rows]),
        applies_BK=torch.tensor([[v is not None for v in row] for row in rows]),
        weights_K=torch.tensor(weights),
    )
