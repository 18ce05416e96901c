"""Advantage estimators: from token rewards (and values) to one advantage an action token.

An estimator is given the whole step's sequences, those of all ranks: groups must be complete and
means and deviations global. The group methods see one number a sequence, the sum of its token
rewards (`gdpo`: several; `turn_grpo`: one a turn as well). In each of them a sequence whose group
has no spread, so also one that is alone in its group, has advantage 0 exactly, and sequences
without action tokens are not part of their group.

Whitening comes last and is one for all: over the action tokens that are trained and, where there
are groups, whose group has spread. The others have nothing to say about the scale, and the shift of
the mean would give them an advantage that no reward is the reason of; theirs stays 0. `reinforce++`
and its variant always whiten, the others where they are asked to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rlhf_ray.algorithms.ragged import masked, num_action_tokens, positions, segment_sum, whiten
from rlhf_ray.algorithms.registry import Registry
from rlhf_ray.config import algorithm_table as table
from rlhf_ray.config.algorithm import AlgorithmConfig

STD_EPSILON = 1e-6
"""Added to a standard deviation (grpo, gdpo), in units of the reward; TRL's is 1e-4."""


@dataclass(frozen=True, kw_only=True)
class AdvantageInputs:
    """All sequences of a step.

    Attributes:
        token_rewards_T: float[T]; see `token_rewards`.
        values_T: float[T], or None where the estimator has `needs_values` False.
        mask_T: bool[T].
        segments_T: int64[T].
        groups_B: int64[B], the same number for the samples of one draw.
        last_values_B: float[B], value of the state after each sequence's last token where its
            return goes on from there (gae); 0, as None for all, where the sequence ended.
        trained_T: bool[T], action tokens that enter the loss; None for all of them. The others
            count in their group, but not in the whitening.
        rewards_BK: float[B, K], each reward alone; None where the estimator has `needs_parts`
            False.
        applies_BK: bool[B, K], where a reward has a value.
        weights_K: float[K], of the rewards.
        turns_T: int64[T], the number of each action token's turn, from 0 in each sequence; None
            where all are one turn.
    """

    token_rewards_T: Tensor
    values_T: Tensor | None
    mask_T: Tensor
    segments_T: Tensor
    groups_B: Tensor
    last_values_B: Tensor | None = None
    trained_T: Tensor | None = None
    rewards_BK: Tensor | None = None
    applies_BK: Tensor | None = None
    weights_K: Tensor | None = None
    turns_T: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class AdvantageOutputs:
    """What an estimator found.

    Attributes:
        advantages_T: float[T]; 0 in slots that are masked out.
        returns_T: float[T], the critic's targets; None for estimators without a critic.
        compared_T: bool[T], action tokens of sequences that were compared with others: all of them,
            but for groups without spread.
    """

    advantages_T: Tensor
    returns_T: Tensor | None
    compared_T: Tensor


AdvantageFn = Callable[[AdvantageInputs, AlgorithmConfig], AdvantageOutputs]


ADVANTAGES: Registry[AdvantageFn] = Registry("advantage estimator", table.ADVANTAGES)
"""Before whitening; `estimate_advantages` calls one as a whole."""


def estimate_advantages(
    name: str, inputs: AdvantageInputs, params: AlgorithmConfig
) -> AdvantageOutputs:
    """Computes the advantages by the estimator of that name.

    Raises:
        ValueError: There is none, or `values_T` or the rewards' parts are needed and missing.
    """
    compute, row = ADVANTAGES[name], table.ADVANTAGES[name]
    if row.needs_values and inputs.values_T is None:
        raise ValueError("values_T must be given for an estimator that needs values, got None")
    if row.needs_parts and inputs.rewards_BK is None:
        raise ValueError("rewards_BK must be given for an estimator that needs parts, got None")
    outputs = compute(inputs, params)
    if not (row.whitens or params.whiten_advantages):
        return outputs
    trained_T = outputs.compared_T if inputs.trained_T is None else inputs.trained_T
    white_T = whiten(outputs.advantages_T, outputs.compared_T & trained_T)
    return replace(outputs, advantages_T=white_T)


@ADVANTAGES.register("gae")
def gae(inputs: AdvantageInputs, params: AlgorithmConfig) -> AdvantageOutputs:
    """Generalised advantage estimation; see `generalized_advantages`. Returns are A + V."""
    assert inputs.values_T is not None
    values_T = masked(inputs.values_T.detach(), inputs.mask_T)
    advantages_T = generalized_advantages(
        inputs.token_rewards_T,
        values_T,
        inputs.mask_T,
        inputs.segments_T,
        gamma=params.gamma,
        lam=params.lam,
        last_values_B=inputs.last_values_B,
    )
    return AdvantageOutputs(
        advantages_T=advantages_T, returns_T=advantages_T + values_T, compared_T=inputs.mask_T
    )


@ADVANTAGES.register("grpo")
def grpo(inputs: AdvantageInputs, params: AlgorithmConfig) -> AdvantageOutputs:
    """(R - mean) / (std + ε) within the group, with the unbiased deviation that TRL uses.

    Source: DeepSeekMath, https://arxiv.org/abs/2402.03300, section 4.1.2.
    """
    groups = _groups(inputs)
    return _broadcast(_standardized(groups), groups.has_spread_B, inputs)


@ADVANTAGES.register("turn_grpo")
def turn_grpo(inputs: AdvantageInputs, params: AlgorithmConfig) -> AdvantageOutputs:
    """GRPO's advantage of the whole sequence, mixed with that of the turn.

        A = (1 - share) (R - mean) / (std + ε) + share (R_k - mean_k) / (std_k + ε)

    R_k is the sum of the rewards from turn k on, compared with those of the group's sequences that
    have a turn k. Where all sequences are one turn it is `grpo`.

    Source: GiGPO, https://arxiv.org/abs/2505.10978, section 4, which adds the two. It compares
    actions in states that recur; here the state is the turn's number, and the sum has weights that
    add up to 1.
    """
    mask_T, segments_T, num = inputs.mask_T, inputs.segments_T, len(inputs.groups_B)
    turns_T = torch.zeros_like(segments_T) if inputs.turns_T is None else inputs.turns_T
    turns_T = torch.where(mask_T, turns_T, 0)
    num_turns = int(turns_T.max()) + 1 if len(turns_T) else 1
    place_T = segments_T * num_turns + turns_T
    rewards_T = masked(inputs.token_rewards_T, mask_T).double()
    of_turn_BK = segment_sum(rewards_T, place_T, num * num_turns).view(num, num_turns)
    to_go_BK = of_turn_BK.flip(1).cumsum(1).flip(1)
    is_member_BK = num_action_tokens(mask_T, place_T, num * num_turns).view(num, num_turns) > 0
    whole = _groups(inputs)
    advantages_BK = ((1.0 - params.turn_share) * _standardized(whole))[:, None].repeat(1, num_turns)
    has_spread_BK = whole.has_spread_B[:, None].repeat(1, num_turns)
    for turn in range(num_turns):
        groups = Groups(to_go_BK[:, turn], is_member_BK[:, turn], inputs.groups_B)
        advantages_BK[:, turn] += params.turn_share * _standardized(groups)
        has_spread_BK[:, turn] |= groups.has_spread_B & is_member_BK[:, turn]
    advantages_T = advantages_BK.view(-1)[place_T].to(inputs.token_rewards_T.dtype)
    return AdvantageOutputs(
        advantages_T=masked(advantages_T, mask_T),
        returns_T=None,
        compared_T=mask_T & has_spread_BK.view(-1)[place_T],
    )


@ADVANTAGES.register("gdpo")
def gdpo(inputs: AdvantageInputs, params: AlgorithmConfig) -> AdvantageOutputs:
    """Each reward standardised within its group, then their weighted sum divided by its deviation.

        A_k = (r_k - mean) / (std + ε) over the group's samples that reward k applies to, else 0
        A = Σ w_k A_k, divided by its standard deviation over the step's sequences (+ ε)

    Rewards of different scale or spread do not drown each other, and sums that tie keep apart. The
    paper's last step also subtracts the step's mean, which is 0: that of every A_k is 0 within
    every group. `token_rewards_T` is not looked at.

    Source: GDPO, https://arxiv.org/abs/2601.05242, section 3.1, with weights as in section 3.2.
    """
    assert inputs.rewards_BK is not None
    assert inputs.applies_BK is not None and inputs.weights_K is not None
    num_sequences = len(inputs.groups_B)
    is_member_B = num_action_tokens(inputs.mask_T, inputs.segments_T, num_sequences) > 0
    sum_B = inputs.rewards_BK.new_zeros(num_sequences, dtype=torch.float64)
    has_spread_B = torch.zeros_like(is_member_B)
    for number, weight in enumerate(inputs.weights_K.tolist()):
        applies_B = is_member_B & inputs.applies_BK[:, number]
        groups = Groups(inputs.rewards_BK[:, number], applies_B, inputs.groups_B)
        sum_B = sum_B + weight * _standardized(groups)
        has_spread_B = has_spread_B | groups.has_spread_B
    sums_N = sum_B[is_member_B & inputs.applies_BK.any(dim=1)]
    std = sums_N.std() if len(sums_N) > 1 else sums_N.new_zeros(())
    return _broadcast(sum_B / (std + STD_EPSILON), has_spread_B, inputs)


@ADVANTAGES.register("dr_grpo")
def dr_grpo(inputs: AdvantageInputs, params: AlgorithmConfig) -> AdvantageOutputs:
    """R - mean within the group; no division by the deviation, which favours easy and hard prompts.

    Source: Dr. GRPO, https://arxiv.org/abs/2503.20783, section 3.2.
    """
    groups = _groups(inputs)
    return _broadcast(groups.centered_B, groups.has_spread_B, inputs)


@ADVANTAGES.register("rloo")
def rloo(inputs: AdvantageInputs, params: AlgorithmConfig) -> AdvantageOutputs:
    """R minus the mean of the *other* samples, which is n / (n - 1) (R - mean).

    Source: https://arxiv.org/abs/2402.14740, section 3.
    """
    groups = _groups(inputs)
    factor_B = groups.size_B / (groups.size_B - 1).clamp(min=1)
    return _broadcast(factor_B * groups.centered_B, groups.has_spread_B, inputs)


@ADVANTAGES.register("reinforce++")
def reinforce_plus_plus(inputs: AdvantageInputs, params: AlgorithmConfig) -> AdvantageOutputs:
    """Discounted returns of tokens, whitened over the step.

    Source: REINFORCE++, https://arxiv.org/abs/2501.03262, section 3.
    """
    returns_T = generalized_advantages(
        inputs.token_rewards_T,
        torch.zeros_like(inputs.token_rewards_T),
        inputs.mask_T,
        inputs.segments_T,
        gamma=params.gamma,
        lam=1.0,
    )
    return AdvantageOutputs(advantages_T=returns_T, returns_T=None, compared_T=inputs.mask_T)


@ADVANTAGES.register("reinforce++_baseline")
def reinforce_plus_plus_baseline(
    inputs: AdvantageInputs, params: AlgorithmConfig
) -> AdvantageOutputs:
    """R - mean within the group, whitened over the step.

    Source: REINFORCE++ with baseline, https://arxiv.org/abs/2501.03262, section 3.
    """
    return dr_grpo(inputs, params)


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


class Groups:
    """Each sequence's score against those of its group. All in float64.

    Attributes:
        size_B: How many members the sequence's group has.
        has_spread_B: bool[B], whether the members of the sequence's group differ; the sequence
            itself need not be one.
        centered_B: Score minus the group's mean; exactly 0 in a group without spread, where the
            rounding of the mean could otherwise be divided by a deviation just as small.
        std_B: Unbiased standard deviation of the group's scores.
    """

    def __init__(self, scores_B: Tensor, is_member_B: Tensor, groups_B: Tensor) -> None:
        """Compares scores, float[B], of the members, bool[B]; `groups_B` is int64[B], any numbers.

        What stands in the place of a score that is no member's is not looked at.
        """
        scores_B = masked(scores_B.double(), is_member_B)
        self._is_member_B = is_member_B
        _, self._group_B = torch.unique(groups_B, return_inverse=True)
        self.size_B = self.sum(torch.ones_like(scores_B))
        mean_B = self.sum(scores_B) / self.size_B.clamp(min=1)
        # Written so that a score that is not a number has spread, and is not hidden.
        self.has_spread_B = (self.size_B > 1) & (self._max(scores_B) != -self._max(-scores_B))
        self.centered_B = masked(scores_B - mean_B, is_member_B & self.has_spread_B)
        variance_B = self.sum(self.centered_B.square()) / (self.size_B - 1).clamp(min=1)
        self.std_B = variance_B.sqrt()

    def sum(self, values_B: Tensor) -> Tensor:
        """Sums over each sequence's group: float64[B]."""
        members_B = masked(values_B, self._is_member_B)
        return segment_sum(members_B, self._group_B, len(values_B))[self._group_B]

    def _max(self, values_B: Tensor) -> Tensor:
        members_B = torch.where(self._is_member_B, values_B, -torch.inf)
        none_B = torch.full_like(values_B, -torch.inf)
        return none_B.scatter_reduce(0, self._group_B, members_B, "amax")[self._group_B]


def _groups(inputs: AdvantageInputs) -> Groups:
    """Compares each sequence's sum of token rewards; one without action tokens is in no group."""
    mask_T, segments_T, num = inputs.mask_T, inputs.segments_T, len(inputs.groups_B)
    totals_B = segment_sum(masked(inputs.token_rewards_T, mask_T).double(), segments_T, num)
    return Groups(totals_B, num_action_tokens(mask_T, segments_T, num) > 0, inputs.groups_B)


def _standardized(groups: Groups) -> Tensor:
    return groups.centered_B / (groups.std_B + STD_EPSILON)


def _broadcast(
    advantages_B: Tensor, has_spread_B: Tensor, inputs: AdvantageInputs
) -> AdvantageOutputs:
    """Gives every action token its sequence's advantage."""
    advantages_T = advantages_B[inputs.segments_T].to(inputs.token_rewards_T.dtype)
    return AdvantageOutputs(
        advantages_T=masked(advantages_T, inputs.mask_T),
        returns_T=None,
        compared_T=inputs.mask_T & has_spread_B[inputs.segments_T],
    )
