"""Turns of rollouts as arrays: which turn a token belongs to, and what each turn was given."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from rlhf_ray.types import FloatArray, Rollout


def turn_numbers(rollout: Rollout) -> npt.NDArray[np.int64]:
    """The number of each own token's turn, from 0; 0 for tokens that are not own: [T].

    A rollout without turns is one turn.

    Raises:
        ValueError: Its turns have more or fewer tokens than are own.
    """
    numbers_T = np.zeros(len(rollout.response_ids_T), dtype=np.int64)
    if rollout.turns:
        lens = [turn.num_tokens for turn in rollout.turns]
        _check(rollout, sum(lens))
        numbers_T[rollout.action_mask_T] = np.repeat(np.arange(len(lens)), lens)
    return numbers_T


def turn_rewards(rollout: Rollout) -> FloatArray:
    """The reward of each turn on its last own token, 0 elsewhere and for turns without one: [T].

    Raises:
        ValueError: As `turn_numbers`.
    """
    rewards_T = np.zeros(len(rollout.response_ids_T), dtype=np.float32)
    if rollout.turns:
        ends = np.cumsum([turn.num_tokens for turn in rollout.turns])
        _check(rollout, int(ends[-1]))
        last = np.flatnonzero(rollout.action_mask_T)[ends - 1]
        rewards_T[last] = [turn.reward or 0.0 for turn in rollout.turns]
    return rewards_T


def _check(rollout: Rollout, num_tokens: int) -> None:
    num_own = int(rollout.action_mask_T.sum())
    if num_tokens != num_own:
        raise ValueError(
            f"turns of draw {rollout.draw}, sample {rollout.sample} must have the {num_own} own "
            f"tokens of the rollout, got {num_tokens}"
        )
