"""Losses of single answers that were found good or bad."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_ray.algorithms.metric_sums import MetricSums, difference_of_means, mean_of, mean_of_all
from rlhf_ray.algorithms.registry import Registry
from rlhf_ray.config.algorithm_table import PREFERENCE_LOSSES


@dataclass(frozen=True, kw_only=True)
class LabelledInputs:
    """The answers of a micro-batch.

    Attributes:
        logps_B: float[B], sum of the log-probabilities (nats) of each answer's tokens under the
            policy being trained.
        reference_logps_B: float[B], under the reference.
        mismatch_kl: float[], the reference point z0: the mean over all of the step's mismatched
            answers (those of another prompt) of policy minus reference log-probability, at least 0.
        desirable_B: bool[B], which answers were found good.
    """

    logps_B: Tensor
    reference_logps_B: Tensor
    mismatch_kl: Tensor
    desirable_B: Tensor

    @property
    def log_ratios_B(self) -> Tensor:
        """Log u, u = policy / reference probability of an answer."""
        return self.logps_B - self.reference_logps_B.detach()


@dataclass(frozen=True, kw_only=True)
class LabelledParams:
    """Parameters of all label losses.

    Attributes:
        beta: Temperature β.
        desirable_weight: λ_D, of good answers.
        undesirable_weight: λ_U, of bad ones.
    """

    beta: float
    desirable_weight: float
    undesirable_weight: float


LabelLoss = Callable[[LabelledInputs, LabelledParams], Tensor]
"""(inputs, params) -> loss_B; a step's loss is its mean over all answers of the step."""

LABEL_LOSSES: Registry[LabelLoss] = Registry("label loss", PREFERENCE_LOSSES)


@LABEL_LOSSES.register("kto")
def kto(inputs: LabelledInputs, params: LabelledParams) -> Tensor:
    """λ_D (1 - σ(β (log u - z0))) of a good answer, λ_U (1 - σ(β (z0 - log u))) of a bad one.

    Source: KTO, https://arxiv.org/abs/2402.01306, eqs. 7 and 8. z0 gets no gradient.
    """
    gaps_B = params.beta * (inputs.log_ratios_B - inputs.mismatch_kl.detach())
    good_B = params.desirable_weight * torch.sigmoid(-gaps_B)
    bad_B = params.undesirable_weight * torch.sigmoid(gaps_B)
    return torch.where(inputs.desirable_B, good_B, bad_B)


def labelled_metrics(inputs: LabelledInputs, params: LabelledParams) -> MetricSums:
    """As `pair_metrics`, of single answers, the good ones as chosen; the reference point is `kl`.

    `rewards/margins` is the difference of the two sides' means. There is no accuracy.
    """
    is_good_B = inputs.desirable_B
    rewards_B = params.beta * inputs.log_ratios_B
    return {
        "rewards/chosen": mean_of(rewards_B, is_good_B),
        "rewards/rejected": mean_of(rewards_B, ~is_good_B),
        "rewards/margins": difference_of_means(rewards_B, is_good_B),
        "logps/chosen": mean_of(inputs.logps_B, is_good_B),
        "logps/rejected": mean_of(inputs.logps_B, ~is_good_B),
        "kl": mean_of_all(inputs.mismatch_kl.expand_as(rewards_B)),
    }
