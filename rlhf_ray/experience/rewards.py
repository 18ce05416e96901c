"""From scores to the rewards that estimators take: shaped, of tokens, and each alone.

A penalty is a positive number that is subtracted. Lengths and repetitions are those of the policy's
own tokens: what an environment wrote between them is not its doing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from rlhf_ray.algorithms import ragged
from rlhf_ray.algorithms.ragged import last_action_token, masked
from rlhf_ray.config.rewards import ShapingConfig
from rlhf_ray.specs import ExperienceSpec
from rlhf_ray.types import Rollout, Score


def shape_scores(
    scores_B: Sequence[float],
    rollouts_B: Sequence[Rollout],
    config: ShapingConfig,
    *,
    max_new_tokens: int,
) -> torch.Tensor:
    """Apply clipping, penalties and whitening, in this order; float32 [B]."""
    scores = torch.tensor(list(scores_B), dtype=torch.float32)
    if config.clip:
        scores = clip(scores, low=-config.clip, high=config.clip)
    if config.missing_end_penalty:
        truncated = torch.tensor([r.finish_reason == "length" for r in rollouts_B])
        scores = missing_end_penalty(scores, truncated, penalty=config.missing_end_penalty)
    if config.overlong_buffer_tokens:
        scores = overlong_penalty(
            scores,
            torch.tensor([int(r.action_mask_T.sum()) for r in rollouts_B]),
            max_length=max_new_tokens,
            buffer_length=config.overlong_buffer_tokens,
            penalty=config.overlong_penalty,
        )
    if config.repetition_penalty:
        scores = repetition_penalty(
            scores,
            [r.own_ids_T.tolist() for r in rollouts_B],
            ngram=config.repetition_ngram,
            max_penalty=config.repetition_penalty,
        )
    return whiten(scores) if config.whiten else scores


def clip(scores_B: torch.Tensor, *, low: float, high: float) -> torch.Tensor:
    """Clamps scores to [low, high].

    Raises:
        ValueError: `low` is above `high`.
    """
    if not low <= high:
        raise ValueError(f"low must not be above high ({high}), got {low}")
    return scores_B.clamp(low, high)


def whiten(scores_B: torch.Tensor) -> torch.Tensor:
    """Shifts and scales the scores of a whole step to mean 0 and variance 1."""
    return ragged.whiten(scores_B, torch.ones_like(scores_B, dtype=torch.bool))


def missing_end_penalty(
    scores_B: torch.Tensor, truncated_B: torch.Tensor, *, penalty: float
) -> torch.Tensor:
    """Subtracts `penalty` where a response was cut off before its end.

    Args:
        scores_B: float[B].
        truncated_B: bool[B].
        penalty: At least 0 (ValueError).
    """
    _check_penalty(penalty)
    return torch.where(truncated_B, scores_B - penalty, scores_B)


def overlong_penalty(
    scores_B: torch.Tensor,
    lengths_B: torch.Tensor,
    *,
    max_length: int,
    buffer_length: int,
    penalty: float,
) -> torch.Tensor:
    """Subtracts a penalty that grows from 0 to `penalty` over the last tokens before the limit.

    Source: soft overlong punishment of DAPO, https://arxiv.org/abs/2503.14476, eq. 13.

    Args:
        scores_B: float[B].
        lengths_B: int64[B].
        max_length: Where the penalty is full.
        buffer_length: Tokens before `max_length` over which it grows.
        penalty: At least 0; the paper's is 1.

    Raises:
        ValueError: `buffer_length` is not in 1..max_length, or `penalty` is negative.
    """
    _check_penalty(penalty)
    if not 1 <= buffer_length <= max_length:
        raise ValueError(f"buffer_length must be in 1..{max_length}, got {buffer_length}")
    over_B = (lengths_B - (max_length - buffer_length)).to(scores_B.dtype) / buffer_length
    return scores_B - penalty * over_B.clamp(0.0, 1.0)


def repetition_penalty(
    scores_B: torch.Tensor,
    token_ids_B: Sequence[Sequence[int]],
    *,
    ngram: int,
    max_penalty: float,
) -> torch.Tensor:
    """Subtracts max_penalty · (1 - unique n-grams / all n-grams) of each response.

    Source: https://arxiv.org/abs/2502.03373, appendix C.2.

    Args:
        scores_B: float[B].
        token_ids_B: B responses; one shorter than `ngram` is not penalised.
        ngram: n, at least 1.
        max_penalty: At least 0.

    Raises:
        ValueError: An argument is out of range.
    """
    _check_penalty(max_penalty)
    if ngram < 1:
        raise ValueError(f"ngram must be at least 1, got {ngram}")
    shares = [_repeated_share(ids, ngram) for ids in token_ids_B]
    return scores_B - max_penalty * scores_B.new_tensor(shares)


def _repeated_share(ids: Sequence[int], ngram: int) -> float:
    ngrams = [tuple(ids[i : i + ngram]) for i in range(len(ids) - ngram + 1)]
    return 1.0 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def _check_penalty(penalty: float) -> None:
    if not penalty >= 0.0:
        raise ValueError(f"a penalty must be at least 0, got {penalty}")


def token_rewards(
    scores_B: torch.Tensor,
    kl_T: torch.Tensor | None,
    *,
    kl_coefficient: float,
    mask_T: torch.Tensor,
    segments_T: torch.Tensor,
    turn_rewards_T: torch.Tensor | None = None,
) -> torch.Tensor:
    """Puts each score on its sequence's last own token and a KL penalty on every own token.

    What an environment gave for turns is added where it stands, as it is.

    Source: Ziegler et al. 2019, https://arxiv.org/abs/1909.08593, eq. 2. The place of the score is
    TRL 0.11's; later ones put it one past the last token.

    Args:
        scores_B: float[B], after shaping.
        kl_T: float[T], nats per token, or None for no penalty.
        kl_coefficient: Weight of the penalty.
        mask_T: bool[T].
        segments_T: int64[T].
        turn_rewards_T: float[T], 0 but on the last own token of a turn; None for none.

    Returns:
        float[T] in the dtype of `scores_B`; 0 in slots that are not the policy's own. A sequence
        without own tokens has no place for its score.
    """
    rewards_T = scores_B.new_zeros(len(mask_T))
    if kl_T is not None:
        rewards_T = -kl_coefficient * masked(kl_T.detach(), mask_T).to(scores_B.dtype)
    if turn_rewards_T is not None:
        rewards_T = rewards_T + masked(turn_rewards_T, mask_T).to(rewards_T.dtype)
    last_B = last_action_token(mask_T, segments_T, len(scores_B))
    has_action_B = last_B >= 0
    return torch.index_add(rewards_T, 0, last_B[has_action_B], scores_B[has_action_B])


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
