"""Do engine and trainer agree? The comparison after each publication, and what it compares."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from rlhf_ray.types import Prompt, Rollout


def probe_sequences(prompts: Iterable[Prompt], num_sequences: int) -> list[Rollout]:
    """The first prompts as sequences to score: all their tokens but the first are the response."""
    chosen = (prompt for prompt in prompts if len(prompt.token_ids_T) > 1)
    return [_as_rollout(prompt) for prompt in itertools.islice(chosen, num_sequences)]


def _as_rollout(prompt: Prompt) -> Rollout:
    first, *rest = prompt.token_ids_T
    return Rollout(
        prompt=Prompt(prompt_id=f"probe/{prompt.prompt_id}", token_ids_T=(first,), text=""),
        draw=0,
        sample=0,
        response_ids_T=np.asarray(rest, dtype=np.int32),
        logprobs_T=np.zeros(len(rest), dtype=np.float32),
        versions_T=np.zeros(len(rest), dtype=np.int32),
        own_T=np.ones(len(rest), dtype=np.bool_),
        finish_reason="stop",
        text="",
    )


def largest_gap(
    trainer_B: Sequence[Any], engine_B: Sequence[Any], tokens_B: Sequence[Any]
) -> tuple[float, list[Mapping[str, float]]]:
    """Largest difference of log-probabilities in nats, and the worst tokens."""
    worst: list[Mapping[str, float]] = []
    for row, (ours, theirs, tokens) in enumerate(zip(trainer_B, engine_B, tokens_B, strict=True)):
        for position, token in enumerate(tokens):
            worst.append(
                {
                    "sequence": row,
                    "position": position,
                    "token": int(token),
                    "trainer": float(ours[position]),
                    "engine": float(theirs[position]),
                }
            )
    worst.sort(key=_gap, reverse=True)
    return (_gap(worst[0]) if worst else 0.0), worst[:5]


def _gap(entry: Mapping[str, float]) -> float:
    gap = abs(entry["trainer"] - entry["engine"])
    return math.inf if math.isnan(gap) else gap  # a sort would leave nan wherever it stands
