"""Generalised advantage estimation over action tokens."""

import torch
from torch import Tensor

from rlhf_ray.algorithms.ragged import positions


def generalized_advantages(
    token_rewards_T: Tensor,
    values_T: Tensor,
    mask_T: Tensor,
    segments_T: Tensor,
    *,
    gamma: float,
    lam: float,
    last_values_B: Tensor | None = None,
) -> Tensor:
    """Computes A_t = δ_t + γ λ A_next with δ_t = r_t + γ V_next - V_t.

    "Next" is the sequence's next *action* token: what a tool wrote in between is part of the
    environment, takes no decision and no discount. After the last one, A is 0, and so is V, unless
    the sequence was cut off and its return goes on from the value there. With zero values and λ = 1
    this is the discounted return.

    Source: https://arxiv.org/abs/1506.02438, eqs. 11, 12 and 16; sequences that are cut off:
    Pardo et al. 2018, "Time Limits in Reinforcement Learning", https://arxiv.org/abs/1712.00378,
    section 3.

    Args:
        token_rewards_T: float[T].
        values_T: float[T].
        mask_T: bool[T].
        segments_T: int64[T]; the tokens of a sequence in order of time.
        gamma: Discount of rewards.
        lam: λ: 0 trusts the critic, 1 the rewards.
        last_values_B: float[B], V after each sequence's last token; None for 0 everywhere.

    Returns:
        float[T]; 0 in slots that are masked out.
    """
    segments_N = segments_T[mask_T]
    if not len(segments_N):
        return torch.zeros_like(token_rewards_T)
    # From here on only action tokens (N) exist, padded to one column a step (L).
    positions_N = positions(segments_N)
    shape = (int(segments_N.max()) + 1, int(positions_N.max()) + 1)
    place = (segments_N, positions_N)
    rewards_BL = token_rewards_T.new_zeros(shape).index_put(place, token_rewards_T[mask_T])
    values_BL = torch.zeros_like(rewards_BL).index_put(place, values_T[mask_T].to(rewards_BL.dtype))

    next_values_BL = torch.nn.functional.pad(values_BL[:, 1:], (0, 1))
    if last_values_B is not None:
        last_B = torch.bincount(segments_N, minlength=shape[0]) - 1
        has_action_B = last_B >= 0
        rows_N = torch.arange(shape[0], device=last_B.device)[has_action_B]
        next_values_BL[rows_N, last_B[has_action_B]] = last_values_B[rows_N].to(rewards_BL.dtype)
    deltas_BL = rewards_BL + gamma * next_values_BL - values_BL
    advantages_BL = torch.empty_like(deltas_BL)
    # Columns past a sequence's end have δ = 0 and come first, so they leave its accumulator at 0.
    accumulator_B = deltas_BL.new_zeros(shape[0])
    for column in reversed(range(shape[1])):
        accumulator_B = deltas_BL[:, column] + gamma * lam * accumulator_B
        advantages_BL[:, column] = accumulator_B
    return torch.zeros_like(token_rewards_T).masked_scatter(mask_T, advantages_BL[place])
