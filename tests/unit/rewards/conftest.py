"""Batches to score, and the folder of real data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from rlhf_ray.rewards.batch import ScoringBatch
from rlhf_ray.types import Prompt, Rollout


def rollout(number: int, prompt: Any, completion: str, columns: dict[str, Any]) -> Rollout:
    ids_T = np.arange(len(completion), dtype=np.int32)
    return Rollout(
        prompt=Prompt(
            prompt_id=f"train:{number}", token_ids_T=(1, 2), text=prompt, columns=columns
        ),
        draw=number,
        sample=0,
        response_ids_T=ids_T,
        logprobs_T=np.zeros(len(ids_T), dtype=np.float32),
        versions_T=np.zeros(len(ids_T), dtype=np.int32),
        action_mask_T=np.ones(len(ids_T), dtype=np.bool_),
        finish_reason="stop",
        text=completion,
    )


def scoring_batch(*completions: str, **columns: list[Any]) -> ScoringBatch:
    return ScoringBatch.from_rollouts(
        [
            rollout(
                number, f"p{number}", completion, {key: columns[key][number] for key in columns}
            )
            for number, completion in enumerate(completions)
        ]
    )


@pytest.fixture
def make_batch() -> Callable[..., ScoringBatch]:
    return scoring_batch


@pytest.fixture
def make_rollout() -> Callable[..., Rollout]:
    return rollout
