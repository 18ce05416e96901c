"""Changes of scores before they become rewards: scores in, scores out.

A penalty is a positive number that is subtracted. Lengths are in tokens of the response.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from rlhf_ray.algorithms import whitening
from rlhf_ray.config.rewards import ShapingConfig
from rlhf_ray.types import Rollout


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
            torch.tensor([len(r.response_ids_T) for r in rollouts_B]),
            max_length=max_new_tokens,
            buffer_length=config.overlong_buffer_tokens,
            penalty=config.overlong_penalty,
        )
    if config.repetition_penalty:
        scores = repetition_penalty(
            scores,
            [r.response_ids_T.tolist() for r in rollouts_B],
            ngram=config.repetition_ngram,
            max_penalty=config.repetition_penalty,
        )
    return whiten(scores) if config.whiten else scores


def clip(scores_B: Tensor, *, low: float, high: float) -> Tensor:
    """Clamps scores to [low, high].

    Raises:
        ValueError: `low` is above `high`.
    """
    if not low <= high:
        raise ValueError(f"low must not be above high ({high}), got {low}")
    return scores_B.clamp(low, high)


def whiten(scores_B: Tensor) -> Tensor:
    """Shifts and scales the scores of a whole step to mean 0 and variance 1."""
    return whitening.whiten(scores_B, torch.ones_like(scores_B, dtype=torch.bool))


def missing_end_penalty(scores_B: Tensor, truncated_B: Tensor, *, penalty: float) -> Tensor:
    """Subtracts `penalty` where a response was cut off before its end.

    Args:
        scores_B: float[B].
        truncated_B: bool[B].
        penalty: At least 0 (ValueError).
    """
    _check_penalty(penalty)
    return torch.where(truncated_B, scores_B - penalty, scores_B)


def overlong_penalty(
    scores_B: Tensor,
    lengths_B: Tensor,
    *,
    max_length: int,
    buffer_length: int,
    penalty: float,
) -> Tensor:
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
    scores_B: Tensor,
    token_ids_B: Sequence[Sequence[int]],
    *,
    ngram: int,
    max_penalty: float,
) -> Tensor:
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
