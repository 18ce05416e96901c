"""From the reward role's scores to those that are trained on."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rlhf_ray.algorithms import shaping
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
        scores = shaping.clip(scores, low=-config.clip, high=config.clip)
    if config.missing_end_penalty:
        truncated = torch.tensor([r.finish_reason == "length" for r in rollouts_B])
        scores = shaping.missing_end_penalty(scores, truncated, penalty=config.missing_end_penalty)
    if config.overlong_buffer_tokens:
        scores = shaping.overlong_penalty(
            scores,
            torch.tensor([len(r.response_ids_T) for r in rollouts_B]),
            max_length=max_new_tokens,
            buffer_length=config.overlong_buffer_tokens,
            penalty=config.overlong_penalty,
        )
    if config.repetition_penalty:
        scores = shaping.repetition_penalty(
            scores,
            [r.response_ids_T.tolist() for r in rollouts_B],
            ngram=config.repetition_ngram,
            max_penalty=config.repetition_penalty,
        )
    return shaping.whiten(scores) if config.whiten else scores
