"""Rewards as estimators take them: of tokens, and each alone where they are told apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from rlhf_ray.algorithms.ragged import last_own_token, own
from rlhf_ray.experience.shaping import shape_scores
from rlhf_ray.specs import ExperienceSpec
from rlhf_ray.types import Rollout, Score


def token_rewards(
    scores_B: torch.Tensor,
    kl_T: torch.Tensor | None,
    *,
    kl_coefficient: float,
    mask_T: torch.Tensor,
    segments_T: torch.Tensor,
) -> torch.Tensor:
    """Puts each score on its sequence's last own token and a KL penalty on every own token.

    Source: Ziegler et al. 2019, https://arxiv.org/abs/1909.08593, eq. 2. The place of the score is
    TRL 0.11's; later ones put it one past the last token.

    Args:
        scores_B: float[B], after shaping.
        kl_T: float[T], nats per token, or None for no penalty.
        kl_coefficient: Weight of the penalty.
        mask_T: bool[T].
        segments_T: int64[T].

    Returns:
        float[T] in the dtype of `scores_B`; 0 in slots that are not the policy's own. A sequence
        without own tokens has no place for its score.
    """
    rewards_T = scores_B.new_zeros(len(mask_T))
    if kl_T is not None:
        rewards_T = -kl_coefficient * own(kl_T.detach(), mask_T).to(scores_B.dtype)
    last_B = last_own_token(mask_T, segments_T, len(scores_B))
    has_own_B = last_B >= 0
    return torch.index_add(rewards_T, 0, last_B[has_own_B], scores_B[has_own_B])


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
    rollouts_B: Sequence[Rollout], scores_B: Sequence[Score], spec: ExperienceSpec
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
