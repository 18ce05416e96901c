"""Do engine and trainer agree? The comparison after each publication, and what it compares."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlhf_ray.config.publication import EXACT_GAP
from rlhf_ray.types import Prompt, Rollout


@dataclass(frozen=True, kw_only=True)
class Gap:
    """How far apart engine and trainer are on a probe's tokens, in nats.

    Attributes:
        p99: The largest but for one token in a hundred; but for one token, where they are fewer.
        worst: The tokens that are farthest apart.
    """

    mean: float = 0.0
    p99: float = 0.0
    largest: float = 0.0
    num_tokens: int = 0
    worst: tuple[Mapping[str, float], ...] = ()


@dataclass(frozen=True, kw_only=True)
class GapLimits:
    """What is let pass, in nats."""

    mean: float = math.inf
    p99: float = math.inf
    largest: float = math.inf

    def exceeded_by(self, gap: Gap) -> str:
        """By what in words, worst tokens included; empty where nothing is."""
        for value, limit, where in (
            (gap.largest, self.largest, "on the worst token"),
            (gap.mean, self.mean, f"in the mean of {gap.num_tokens} tokens"),
            (gap.p99, self.p99, f"at the 99th percentile of {gap.num_tokens} tokens"),
        ):
            if value > limit:
                tokens = "; ".join(str(token) for token in gap.worst)
                return f"{value:.3g} nats {where} (limit {limit:g}); worst tokens: {tokens}"
        return ""


EXACT = GapLimits(largest=EXACT_GAP)
# bfloat16 keeps 8 bits of each activation, and kernels round in another order, so that single
# tokens of healthy pairs lie far apart: 0.32 nats within 25 tokens (vLLM #18352, Qwen3-1.7B), 0.48
# within 3,916 (TRL #6789, Qwen2.5-0.5B). In the mean they do not: 0.01 to 0.05 in dense models
# (there, Fast-LLM #525 at 0.5 B and 7 B, vime #64 at 4 B), 0.064 in a mixture of experts (verl-omni
# #637); the 99th percentile is some five times the mean. A wrong layout of one of five layers gives
# 0.37 and more in the mean.
ROUNDED = GapLimits(mean=0.15, p99=1.0)


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
        action_mask_T=np.ones(len(rest), dtype=np.bool_),
        finish_reason="stop",
        text="",
    )


def gap_of(trainer_B: Sequence[Any], engine_B: Sequence[Any], tokens_B: Sequence[Any]) -> Gap:
    """Compare the log-probabilities of the same tokens, sequence by sequence."""
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
    gaps = [_gap(entry) for entry in worst]
    if not gaps:
        return Gap()
    return Gap(
        mean=float(np.mean(gaps)),
        # Rounded up: a single token alone is never the 99th percentile of several.
        p99=gaps[math.ceil((len(gaps) - 1) / 100)],
        largest=gaps[0],
        num_tokens=len(gaps),
        worst=tuple(worst[:5]),
    )


def largest_of(gaps: Sequence[Gap]) -> Gap:
    """Each measure where it is largest."""
    return Gap(
        mean=max((gap.mean for gap in gaps), default=0.0),
        p99=max((gap.p99 for gap in gaps), default=0.0),
        largest=max((gap.largest for gap in gaps), default=0.0),
    )


def _gap(entry: Mapping[str, float]) -> float:
    gap = abs(entry["trainer"] - entry["engine"])
    # A sort would leave nan wherever it stands, and nan is above no limit.
    return math.inf if math.isnan(gap) else gap
