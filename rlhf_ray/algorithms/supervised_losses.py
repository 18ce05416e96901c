"""Losses of supervised fine-tuning, token by token, and of reward models, ranking by ranking."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlhf_ray.algorithms.metric_sums import MetricSums, mean_of
from rlhf_ray.algorithms.ragged import masked
from rlhf_ray.algorithms.registry import Registry
from rlhf_ray.config import algorithm_table as table

SftLoss = Callable[[Tensor], Tensor]
"""logprobs_T of the trained tokens (nats) -> loss_T."""

SFT_LOSSES: Registry[SftLoss] = Registry("SFT loss", table.SFT_LOSSES)


@SFT_LOSSES.register("nll")
def nll(logprobs_T: Tensor) -> Tensor:
    """Negative log-likelihood, -log π. float[T]."""
    return -logprobs_T


@SFT_LOSSES.register("dft")
def dft(logprobs_T: Tensor) -> Tensor:
    """-stop(π) log π: unlikely tokens lose the weight 1/π that likelihood gives them. float[T].

    Source: dynamic fine-tuning, https://arxiv.org/abs/2508.05629.
    """
    # p log p is 0 at p = 0, where the product would be 0 · -inf.
    return -logprobs_T.detach().exp() * logprobs_T.masked_fill(logprobs_T.isneginf(), 0.0)


@dataclass(frozen=True, kw_only=True)
class RankingInputs:
    """The rankings of a micro-batch.

    Attributes:
        scores_BK: float[B, K], the best answer first. A masked slot may hold anything.
        mask_BK: bool[B, K], where there is an answer.
        tiers_BK: int64[B, K], rising from 0 in each row; answers of one tier are ties. A masked
            slot may hold anything.
        margins_B: float[B], by how much the first of a pair is to score higher; it has no say in
            rankings of more than two.
    """

    scores_BK: Tensor
    mask_BK: Tensor
    tiers_BK: Tensor
    margins_B: Tensor


RewardLoss = Callable[[RankingInputs], Tensor]
"""(inputs) -> loss_B, 0 for a row of fewer than two answers; a step's loss is its mean."""

REWARD_LOSSES: Registry[RewardLoss] = Registry("reward loss", table.REWARD_LOSSES)


@REWARD_LOSSES.register("bradley_terry")
def bradley_terry(inputs: RankingInputs) -> Tensor:
    """-log σ(s_i - s_j - margin), a mean over all pairs of a ranking with i better than j.

    Source: InstructGPT, https://arxiv.org/abs/2203.02155, eq. 1; margin: Llama 2,
    https://arxiv.org/abs/2307.09288, eq. 2.
    """
    is_pair_B = inputs.mask_BK.sum(1) == 2
    margins_B = torch.where(is_pair_B, inputs.margins_B, torch.zeros_like(inputs.margins_B))
    return _mean_over_pairs(-logsigmoid(_gaps(inputs) - margins_B[:, None, None]), inputs)


@REWARD_LOSSES.register("logexp")
def logexp(inputs: RankingInputs) -> Tensor:
    """log(1 + exp(s_j - s_i)), a mean over all pairs with i better than j; it takes no margin.

    Source: OpenRLHF's LogExpLoss, after https://arxiv.org/abs/2204.05862; the same function as
    Bradley-Terry, by `logaddexp`, which cannot overflow.
    """
    gaps_BKK = _gaps(inputs)
    return _mean_over_pairs(torch.logaddexp(torch.zeros_like(gaps_BKK), -gaps_BKK), inputs)


@REWARD_LOSSES.register("plackett_luce")
def plackett_luce(inputs: RankingInputs) -> Tensor:
    """-log Π_i exp(s_i) / (exp(s_i) + Σ_{j worse} exp(s_j)): drawn one by one, the best first.

    Source: Plackett 1975, https://doi.org/10.2307/2346567; in preference learning:
    https://arxiv.org/abs/2305.18290, eq. 18. A sum over answers, as a likelihood has it: two give
    Bradley-Terry, and longer rankings weigh more.

    A tied answer is drawn from itself and all that are worse, not from its equals: by Luce's axiom
    that is the model's own probability that it beats them all, and the product over tied answers a
    composite likelihood of the partial order.
    """
    scores_BK = masked(inputs.scores_BK, inputs.mask_BK)
    num_answers = scores_BK.shape[1]
    itself_KK = torch.eye(num_answers, dtype=torch.bool, device=scores_BK.device)
    # An answer stands against itself, in masked slots too: no logarithm of an empty sum.
    remaining_BKK = is_ordered(inputs) | itself_KK
    against_BKK = scores_BK[:, None, :].expand_as(remaining_BKK)
    against_BKK = against_BKK.masked_fill(~remaining_BKK, -torch.inf)
    return masked(against_BKK.logsumexp(2) - scores_BK, inputs.mask_BK).sum(1)


def centering(inputs: RankingInputs) -> Tensor:
    """(s_i + s_j)², a mean over the pairs of a ranking: pulls the scores towards 0 on average.

    Source: https://arxiv.org/abs/2312.09244, eq. 2, for pairs; more answers are taken as their
    pairs, like in `bradley_terry`.

    Returns:
        loss_B, to be weighted and added.
    """
    scores_BK = masked(inputs.scores_BK, inputs.mask_BK)
    sums_BKK = scores_BK[:, :, None] + scores_BK[:, None, :]
    return _mean_over_pairs(sums_BKK.square(), inputs)


def reward_metrics(inputs: RankingInputs) -> MetricSums:
    """Share of pairs in the right order (equal scores are not), their mean gap, means of scores.

    `reward_chosen` is of the best answers, `reward_rejected` of the others.
    """
    gaps_BKK, pairs_BKK = _gaps(inputs), is_ordered(inputs)
    is_best_BK = inputs.mask_BK & (inputs.tiers_BK == 0)
    return {
        "accuracy": mean_of(gaps_BKK > 0.0, pairs_BKK),
        "margin": mean_of(gaps_BKK, pairs_BKK),
        "reward_mean": mean_of(inputs.scores_BK, inputs.mask_BK),
        "reward_chosen": mean_of(inputs.scores_BK, is_best_BK),
        "reward_rejected": mean_of(inputs.scores_BK, inputs.mask_BK & ~is_best_BK),
    }


def is_ordered(inputs: RankingInputs) -> Tensor:
    """Tells where answer i is better than answer j and both exist: bool[B, K, K]."""
    mask_BK, tiers_BK = inputs.mask_BK, inputs.tiers_BK
    is_better_BKK = tiers_BK[:, :, None] < tiers_BK[:, None, :]
    return mask_BK[:, :, None] & mask_BK[:, None, :] & is_better_BKK


def _gaps(inputs: RankingInputs) -> Tensor:
    """s_i - s_j: float[B, K, K]."""
    scores_BK = masked(inputs.scores_BK, inputs.mask_BK)
    return scores_BK[:, :, None] - scores_BK[:, None, :]


def _mean_over_pairs(values_BKK: Tensor, inputs: RankingInputs) -> Tensor:
    pairs_BKK = is_ordered(inputs)
    return masked(values_BKK, pairs_BKK).sum((1, 2)) / pairs_BKK.sum((1, 2)).clamp(min=1)
