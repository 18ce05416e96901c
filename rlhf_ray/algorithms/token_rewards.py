"""Rewards of tokens from scores of sequences."""

import torch
from torch import Tensor

from rlhf_ray.algorithms.ragged import last_own_token, own


def token_rewards(
    scores_B: Tensor,
    kl_T: Tensor | None,
    *,
    kl_coefficient: float,
    mask_T: Tensor,
    segments_T: Tensor,
) -> Tensor:
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
