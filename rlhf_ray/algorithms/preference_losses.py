"""Losses of preferences, DPO and its kin, under TRL's names and with TRL 1.16's readings.

Most compare the two answers of a pair; label losses take single answers that were found good or
bad. Notation: u = policy / reference probability of an answer, r = f'(u) its score
(`divergence_score`; log u under the reverse KL), Δ = r_chosen - r_rejected, β the temperature.
Where a paper's formula is written with log u, so is the loss here, whatever the divergence; TRL
does the same.

A step's loss is the sum over its pairs of `loss_B` / `num_pairs`, however they are split.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlhf_ray.algorithms.metric_sums import MetricSums, difference_of_means, mean_of, mean_of_all
from rlhf_ray.algorithms.ratios import MAX_EXPONENT, divergence_score, is_score_clamped
from rlhf_ray.algorithms.registry import Registry
from rlhf_ray.config.algorithm_table import PREFERENCE_LOSSES
from rlhf_ray.config.dpo import PreferenceLossConfig


@dataclass(frozen=True, kw_only=True)
class PairInputs:
    """The pairs of a micro-batch; for a coupled loss, all pairs of the optimiser step.

    Attributes:
        chosen_logps_B: float[B], sum of the log-probabilities (nats) of the better answer's tokens
            under the policy being trained.
        rejected_logps_B: float[B], the same of the worse answer.
        reference_chosen_logps_B: float[B], under the reference; zeros without one.
        reference_rejected_logps_B: float[B].
        chosen_lens_B: int64[B], tokens of the better answer.
        rejected_lens_B: int64[B].
        num_pairs: Of the whole optimiser step, over all ranks.
        num_chosen_tokens: Tokens of the better answers of the whole step, over all ranks.
    """

    chosen_logps_B: Tensor
    rejected_logps_B: Tensor
    reference_chosen_logps_B: Tensor
    reference_rejected_logps_B: Tensor
    chosen_lens_B: Tensor
    rejected_lens_B: Tensor
    num_pairs: int
    num_chosen_tokens: int

    @property
    def chosen_log_ratios_B(self) -> Tensor:
        """The better answers' log u."""
        return self.chosen_logps_B - self.reference_chosen_logps_B.detach()

    @property
    def rejected_log_ratios_B(self) -> Tensor:
        """The worse answers' log u."""
        return self.rejected_logps_B - self.reference_rejected_logps_B.detach()


PairLoss = Callable[[PairInputs, PreferenceLossConfig], Tensor]
"""(inputs, params) -> loss_B."""

PAIR_LOSSES: Registry[PairLoss] = Registry("pair loss", PREFERENCE_LOSSES)


@PAIR_LOSSES.register("sigmoid")
def sigmoid(inputs: PairInputs, params: PreferenceLossConfig) -> Tensor:
    """-(1-ε) log σ(βΔ) - ε log σ(-βΔ).

    Source: DPO, https://arxiv.org/abs/2305.18290, eq. 7; ε > 0: conservative DPO,
    https://ericmitchell.ai/cdpo.pdf.
    """
    return _smoothed(params.beta * _score_gap(inputs, params), params.label_smoothing)


@PAIR_LOSSES.register("robust")
def robust(inputs: PairInputs, params: PreferenceLossConfig) -> Tensor:
    """(-(1-ε) log σ(βΔ) + ε log σ(-βΔ)) / (1-2ε): unbiased where a share ε of labels is flipped.

    Source: robust DPO, https://arxiv.org/abs/2403.00409, section 3.1.
    """
    logits_B = params.beta * _score_gap(inputs, params)
    epsilon = params.label_smoothing
    clean_B, flipped_B = -logsigmoid(logits_B), -logsigmoid(-logits_B)
    return ((1.0 - epsilon) * clean_B - epsilon * flipped_B) / (1.0 - 2.0 * epsilon)


@PAIR_LOSSES.register("hinge")
def hinge(inputs: PairInputs, params: PreferenceLossConfig) -> Tensor:
    """max(0, 1 - βΔ).

    Source: SLiC-HF, https://arxiv.org/abs/2305.10425, section 2, on likelihoods divided by the
    reference's as in RSO, https://arxiv.org/abs/2309.06657.
    """
    return torch.relu(1.0 - params.beta * _score_gap(inputs, params))


@PAIR_LOSSES.register("ipo")
def ipo(inputs: PairInputs, params: PreferenceLossConfig) -> Tensor:
    """(Δ - 1/(2β))² with each score divided by the answer's length.

    Source: IPO, https://arxiv.org/abs/2310.12036, eq. 17. The paper writes sums; its authors took
    means over tokens, as TRL has it from them.
    """
    return (_mean_score_gap(inputs, params) - 1.0 / (2.0 * params.beta)).square()


@PAIR_LOSSES.register("sigmoid_norm")
def sigmoid_norm(inputs: PairInputs, params: PreferenceLossConfig) -> Tensor:
    """-log σ(βΔ) with each score divided by the answer's length.

    Source: length-normalised DPO of Tülu 3, https://arxiv.org/abs/2411.15124, section 5.
    """
    return -logsigmoid(params.beta * _mean_score_gap(inputs, params))


@PAIR_LOSSES.register("exo_pair")
def exo_pair(inputs: PairInputs, params: PreferenceLossConfig) -> Tensor:
    """KL of (σ(βΔ), σ(-βΔ)) from the label's (1-ε, ε).

    Source: EXO, https://arxiv.org/abs/2402.00856, eq. 16.

    Raises:
        ValueError: ε is 0, whose logarithm is needed.
    """
    if params.label_smoothing == 0.0:
        raise ValueError("label_smoothing must be above 0 for exo_pair, got 0.0")
    logits_B = params.beta * _score_gap(inputs, params)
    right_B = logsigmoid(logits_B) - math.log1p(-params.label_smoothing)
    wrong_B = logsigmoid(-logits_B) - math.log(params.label_smoothing)
    return torch.sigmoid(logits_B) * right_B + torch.sigmoid(-logits_B) * wrong_B


@PAIR_LOSSES.register("discopop")
def discopop(inputs: PairInputs, params: PreferenceLossConfig) -> Tensor:
    """-(1-g) log σ(βΔ) + g exp(-βΔ) with the gate g = σ(βΔ/τ): log-ratio modulated loss.

    Source: DiscoPOP, https://arxiv.org/abs/2406.08414, eq. 5.
    """
    logits_B = params.beta * _score_gap(inputs, params)
    gate_logits_B = logits_B / params.discopop_tau
    logistic_B = -torch.sigmoid(-gate_logits_B) * logsigmoid(logits_B)
    # g exp(-βΔ) in one exponent: apart, they are 0 · inf for a pair far in the wrong order.
    exponent_B = logsigmoid(gate_logits_B) - logits_B
    return logistic_B + exponent_B.clamp(max=MAX_EXPONENT).exp()


@PAIR_LOSSES.register("nca_pair")
def nca_pair(inputs: PairInputs, params: PreferenceLossConfig) -> Tensor:
    """-log σ(β log u_c) - ½ log σ(-β log u_c) - ½ log σ(-β log u_r).

    Source: noise contrastive alignment, https://arxiv.org/abs/2402.05369, section 4.1.
    """
    chosen_B, rejected_B = _rewards(inputs, params)
    return -logsigmoid(chosen_B) - 0.5 * logsigmoid(-chosen_B) - 0.5 * logsigmoid(-rejected_B)


@PAIR_LOSSES.register("bco_pair")
def bco_pair(inputs: PairInputs, params: PreferenceLossConfig) -> Tensor:
    """-log σ(β log u_c) - log σ(-β log u_r): a classifier of good and bad, without reward shift.

    Source: BCO, https://arxiv.org/abs/2404.04656, section 4, with δ = 0 as TRL has it.
    """
    chosen_B, rejected_B = _rewards(inputs, params)
    return -logsigmoid(chosen_B) - logsigmoid(-rejected_B)


@PAIR_LOSSES.register("sppo_hard")
def sppo_hard(inputs: PairInputs, params: PreferenceLossConfig) -> Tensor:
    """(log u_c - 1/(2β))² + (log u_r + 1/(2β))²: the winner's probability taken as 1.

    Source: SPPO, https://arxiv.org/abs/2405.00675, eq. 4.7.
    """
    half = 0.5 / params.beta
    chosen_B, rejected_B = inputs.chosen_log_ratios_B, inputs.rejected_log_ratios_B
    return (chosen_B - half).square() + (rejected_B + half).square()


@PAIR_LOSSES.register("apo_zero")
def apo_zero(inputs: PairInputs, params: PreferenceLossConfig) -> Tensor:
    """1 - σ(β log u_c) + σ(β log u_r), where chosen answers beat the model's own.

    Source: APO, https://arxiv.org/abs/2408.06266, eq. 7.
    """
    chosen_B, rejected_B = _rewards(inputs, params)
    return torch.sigmoid(-chosen_B) + torch.sigmoid(rejected_B)


@PAIR_LOSSES.register("apo_down")
def apo_down(inputs: PairInputs, params: PreferenceLossConfig) -> Tensor:
    """σ(β log u_c) + 1 - σ(β (log u_c - log u_r)), where the model's own beat chosen answers.

    Source: APO, https://arxiv.org/abs/2408.06266, eq. 8.
    """
    chosen_B, rejected_B = _rewards(inputs, params)
    return torch.sigmoid(chosen_B) + torch.sigmoid(rejected_B - chosen_B)


@PAIR_LOSSES.register("aot")
def aot(inputs: PairInputs, params: PreferenceLossConfig) -> Tensor:
    """Smoothed logistic loss between equal quantiles of the policy's and the reference's margins.

    Source: alignment via optimal transport, https://arxiv.org/abs/2406.05882, section 3 (paired).
    Entry i is that of the i-th quantile, not of the i-th pair.
    """
    margins_B = inputs.chosen_logps_B - inputs.rejected_logps_B
    reference_B = inputs.reference_chosen_logps_B - inputs.reference_rejected_logps_B
    gaps_B = margins_B.sort().values - reference_B.detach().sort().values
    return _smoothed(params.beta * gaps_B, params.label_smoothing)


@PAIR_LOSSES.register("aot_unpaired")
def aot_unpaired(inputs: PairInputs, params: PreferenceLossConfig) -> Tensor:
    """Smoothed logistic loss between equal quantiles of log u of chosen and of rejected answers.

    Source: alignment via optimal transport, https://arxiv.org/abs/2406.05882, section 3 (unpaired).
    Entry i is that of the i-th quantile, not of the i-th pair.
    """
    chosen_B, rejected_B = inputs.chosen_log_ratios_B, inputs.rejected_log_ratios_B
    gaps_B = chosen_B.sort().values - rejected_B.sort().values
    return _smoothed(params.beta * gaps_B, params.label_smoothing)


@PAIR_LOSSES.register("sft")
def sft(inputs: PairInputs, params: PreferenceLossConfig) -> Tensor:
    """Negative log-likelihood of chosen answers, a mean over all their tokens of the step.

    Source: iterative RPO, https://arxiv.org/abs/2404.19733, eq. 1, with TRL's token mean in place
    of the mean of means. It uses no parameter.
    """
    return -inputs.chosen_logps_B * (inputs.num_pairs / inputs.num_chosen_tokens)


@PAIR_LOSSES.register("simpo")
def simpo(inputs: PairInputs, params: PreferenceLossConfig) -> Tensor:
    """Smoothed logistic loss of β (mean log π_c - mean log π_r) - γ, without a reference.

    Source: SimPO, https://arxiv.org/abs/2405.14734, eq. 6.
    """
    gaps_B = _mean(inputs.chosen_logps_B, inputs.chosen_lens_B) - _mean(
        inputs.rejected_logps_B, inputs.rejected_lens_B
    )
    return _smoothed(params.beta * gaps_B - params.simpo_gamma, params.label_smoothing)


@PAIR_LOSSES.register("orpo")
def orpo(inputs: PairInputs, params: PreferenceLossConfig) -> Tensor:
    """`sft` and -β log σ(log odds_c - log odds_r), odds = p / (1-p) of the mean log p of a token.

    Source: ORPO, https://arxiv.org/abs/2403.07691, eqs. 4, 6 and 7; β is the paper's λ. TRL's
    likelihood term also covers the prompt's tokens; the paper's and this one do not.
    """
    gaps_B = _log_odds(inputs.chosen_logps_B, inputs.chosen_lens_B) - _log_odds(
        inputs.rejected_logps_B, inputs.rejected_lens_B
    )
    return sft(inputs, params) - params.beta * logsigmoid(gaps_B)


def pair_metrics(inputs: PairInputs, params: PreferenceLossConfig) -> MetricSums:
    """Means over pairs of both answers' rewards and log-probabilities, and of the rewards' order.

    They have the names that TRL's users know. An answer's implicit reward is β log u, whatever the
    loss and the divergence: https://arxiv.org/abs/2305.18290, eq. 5. A tie counts as out of order.
    `clamp_share` is the share of answers whose score the divergence holds constant.
    """
    chosen_B, rejected_B = _rewards(inputs, params)
    log_ratios_B = torch.cat([inputs.chosen_log_ratios_B, inputs.rejected_log_ratios_B])
    is_clamped_B = is_score_clamped(
        log_ratios_B, params.f_divergence_type, params.f_alpha_divergence_coef
    )
    return {
        "rewards/chosen": mean_of_all(chosen_B),
        "rewards/rejected": mean_of_all(rejected_B),
        "rewards/accuracies": mean_of_all(chosen_B > rejected_B),
        "rewards/margins": mean_of_all(chosen_B - rejected_B),
        "logps/chosen": mean_of_all(inputs.chosen_logps_B),
        "logps/rejected": mean_of_all(inputs.rejected_logps_B),
        "clamp_share": mean_of_all(is_clamped_B),
    }


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


LabelLoss = Callable[[LabelledInputs, PreferenceLossConfig], Tensor]
"""(inputs, params) -> loss_B; a step's loss is its mean over all answers of the step."""

LABEL_LOSSES: Registry[LabelLoss] = Registry("label loss", PREFERENCE_LOSSES)


@LABEL_LOSSES.register("kto")
def kto(inputs: LabelledInputs, params: PreferenceLossConfig) -> Tensor:
    """λ_D (1 - σ(β (log u - z0))) of a good answer, λ_U (1 - σ(β (z0 - log u))) of a bad one.

    Source: KTO, https://arxiv.org/abs/2402.01306, eqs. 7 and 8. z0 gets no gradient.
    """
    gaps_B = params.beta * (inputs.log_ratios_B - inputs.mismatch_kl.detach())
    good_B = params.desirable_weight * torch.sigmoid(-gaps_B)
    bad_B = params.undesirable_weight * torch.sigmoid(gaps_B)
    return torch.where(inputs.desirable_B, good_B, bad_B)


def labelled_metrics(inputs: LabelledInputs, params: PreferenceLossConfig) -> MetricSums:
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


def _smoothed(logits_B: Tensor, label_smoothing: float) -> Tensor:
    """Cross-entropy of the logits from the label's (1-ε, ε)."""
    right_B, wrong_B = -logsigmoid(logits_B), -logsigmoid(-logits_B)
    return (1.0 - label_smoothing) * right_B + label_smoothing * wrong_B


def _rewards(inputs: PairInputs, params: PreferenceLossConfig) -> tuple[Tensor, Tensor]:
    """β log u of chosen and rejected answers."""
    return params.beta * inputs.chosen_log_ratios_B, params.beta * inputs.rejected_log_ratios_B


def _scores(inputs: PairInputs, params: PreferenceLossConfig) -> tuple[Tensor, Tensor]:
    """f'(u) of chosen and rejected answers."""
    kind, alpha = params.f_divergence_type, params.f_alpha_divergence_coef
    return (
        divergence_score(inputs.chosen_log_ratios_B, kind, alpha),
        divergence_score(inputs.rejected_log_ratios_B, kind, alpha),
    )


def _score_gap(inputs: PairInputs, params: PreferenceLossConfig) -> Tensor:
    chosen_B, rejected_B = _scores(inputs, params)
    return chosen_B - rejected_B


def _mean_score_gap(inputs: PairInputs, params: PreferenceLossConfig) -> Tensor:
    chosen_B, rejected_B = _scores(inputs, params)
    return _mean(chosen_B, inputs.chosen_lens_B) - _mean(rejected_B, inputs.rejected_lens_B)


def _mean(sums_B: Tensor, lens_B: Tensor) -> Tensor:
    return sums_B / lens_B.clamp(min=1)


def _log_odds(logps_B: Tensor, lens_B: Tensor) -> Tensor:
    """Log p - log(1-p) of p, the geometric mean of an answer's token probabilities."""
    # A certain answer has infinite odds: keep p below 1 by what float32 can tell.
    means_B = _mean(logps_B, lens_B).clamp(max=-torch.finfo(torch.float32).eps)
    return means_B - torch.log(-torch.expm1(means_B))
