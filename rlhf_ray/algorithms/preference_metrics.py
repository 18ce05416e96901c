"""What preference learning reports, under the names that TRL's users know.

An answer's implicit reward is β log u, u = policy / reference probability, whatever the loss and
the divergence: https://arxiv.org/abs/2305.18290, eq. 5.
"""

import torch
from torch import Tensor

from rlhf_ray.algorithms.divergences import is_score_clamped
from rlhf_ray.algorithms.label_losses import LabelledInputs, LabelledParams
from rlhf_ray.algorithms.metric_sums import Metric, Metrics, difference_of_means, mean_of
from rlhf_ray.algorithms.preference_losses import PairInputs, PairParams


def pair_metrics(inputs: PairInputs, params: PairParams) -> Metrics:
    """Means over pairs of both answers' rewards and log-probabilities, and of the rewards' order.

    A tie counts as out of order. `clamp_share` is the share of answers whose score the divergence
    holds constant (see `divergences`).
    """
    chosen_B = params.beta * inputs.chosen_log_ratios_B
    rejected_B = params.beta * inputs.rejected_log_ratios_B
    log_ratios_B = torch.cat([inputs.chosen_log_ratios_B, inputs.rejected_log_ratios_B])
    is_clamped_B = is_score_clamped(
        log_ratios_B, params.f_divergence_type, params.f_alpha_divergence_coef
    )
    return {
        "rewards/chosen": _mean_of_all(chosen_B),
        "rewards/rejected": _mean_of_all(rejected_B),
        "rewards/accuracies": _mean_of_all(chosen_B > rejected_B),
        "rewards/margins": _mean_of_all(chosen_B - rejected_B),
        "logps/chosen": _mean_of_all(inputs.chosen_logps_B),
        "logps/rejected": _mean_of_all(inputs.rejected_logps_B),
        "clamp_share": _mean_of_all(is_clamped_B),
    }


def labelled_metrics(inputs: LabelledInputs, params: LabelledParams) -> Metrics:
    """The same of single answers, the good ones as chosen; and the reference point as `kl`.

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
        "kl": _mean_of_all(inputs.mismatch_kl.expand_as(rewards_B)),
    }


def _mean_of_all(values_B: Tensor) -> Metric:
    return mean_of(values_B, torch.ones_like(values_B, dtype=torch.bool))
