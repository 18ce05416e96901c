"""Weights for the gap between the engine that sampled and the trainer that learns.

For the same weights, the engine's log-probabilities (behaviour) differ from the trainer's by
kernels and precision, and by more when generation ran ahead of training. The weight of a token is
w = π_old / π_behaviour, bounded in one of two ways; multiply the token loss of the policy with it.

By default its level is that of the policy's loss, so that ratio times weight is the loss's own
ratio to the engine, π_new / π_behaviour: of a token; or, for GSPO, of a sequence, the geometric
mean over its action tokens, the same at each of them. The product over a sequence is what makes a
gradient without bias of older samples, at a variance that grows with their length.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_ray.algorithms.metric_sums import MetricSums, effective_sample_size, max_of, mean_of
from rlhf_ray.algorithms.ragged import masked, segment_mean, segment_sum
from rlhf_ray.algorithms.ratios import clamp_log_ratio, is_clamped, log_ratio
from rlhf_ray.algorithms.registry import Registry
from rlhf_ray.config import algorithm_table as table
from rlhf_ray.config.algorithm import CorrectionConfig
from rlhf_ray.config.algorithm_table import RatioLevel


@dataclass(frozen=True, kw_only=True)
class CorrectionInputs:
    """Any set of whole sequences.

    Attributes:
        old_logprobs_T: float[T], the trainer's at the start of the step.
        behaviour_logprobs_T: float[T], the engine's at the time of sampling.
        mask_T: bool[T].
        segments_T: int64[T].
        num_sequences: B.
        level: Whose a weight is; all tokens of a sequence share its own.
    """

    old_logprobs_T: Tensor
    behaviour_logprobs_T: Tensor
    mask_T: Tensor
    segments_T: Tensor
    num_sequences: int
    level: RatioLevel


@dataclass(frozen=True, kw_only=True)
class Correction:
    """Weights and how bad the mismatch is.

    Attributes:
        weights_T: float[T], without gradient; 0 in slots that are masked out.
        metrics: `ess` (effective sample size as a share of the action tokens), `cut_share` (weights
            that were truncated or set to 0), `clamp_share` (log-ratios beyond ±20),
            `logprob_abs_max` and `logprob_abs_mean` (of old - behaviour of tokens, in nats).
    """

    weights_T: Tensor
    metrics: MetricSums


CorrectionFn = Callable[[CorrectionInputs, CorrectionConfig], Correction]

CORRECTIONS: Registry[CorrectionFn] = Registry("off-policy correction", table.CORRECTIONS)


@CORRECTIONS.register("none")
def none(inputs: CorrectionInputs, params: CorrectionConfig) -> Correction:
    """Weight 1: the mismatch is measured and left alone."""
    log_ratio_T = _log_ratio(inputs, inputs.level)
    cut_T = torch.zeros_like(inputs.mask_T)
    return _correction(inputs, log_ratio_T, torch.ones_like(log_ratio_T), cut_T)


@CORRECTIONS.register("truncated")
def truncated(inputs: CorrectionInputs, params: CorrectionConfig) -> Correction:
    """Truncated importance sampling, min(w, cap).

    Source: Ionides 2008; for engine and trainer, https://fengyao.notion.site/off-policy-rl.
    """
    log_ratio_T = _log_ratio(inputs, inputs.level)
    ratio_T = clamp_log_ratio(log_ratio_T).exp()
    return _correction(inputs, log_ratio_T, ratio_T.clamp(max=params.cap), ratio_T > params.cap)


@CORRECTIONS.register("mask")
def mask(inputs: CorrectionInputs, params: CorrectionConfig) -> Correction:
    """Importance weights with outliers left out: w inside [low, cap], 0 outside.

    Source: IcePop of Ring-1T, https://arxiv.org/abs/2510.18855.
    """
    log_ratio_T = _log_ratio(inputs, inputs.level)
    ratio_T = clamp_log_ratio(log_ratio_T).exp()
    is_in_T = (ratio_T >= params.low) & (ratio_T <= params.cap)
    return _correction(inputs, log_ratio_T, masked(ratio_T, is_in_T), ~is_in_T)


def _log_ratio(inputs: CorrectionInputs, level: RatioLevel) -> Tensor:
    old_T = masked(inputs.old_logprobs_T.detach(), inputs.mask_T)
    log_ratio_T = log_ratio(old_T, masked(inputs.behaviour_logprobs_T.detach(), inputs.mask_T))
    if level == "token":
        return log_ratio_T
    if level == "sequence":
        return segment_sum(log_ratio_T, inputs.segments_T, inputs.num_sequences)[inputs.segments_T]
    return segment_mean(log_ratio_T, inputs.mask_T, inputs.segments_T, inputs.num_sequences)


def _correction(
    inputs: CorrectionInputs, log_ratio_T: Tensor, weights_T: Tensor, cut_T: Tensor
) -> Correction:
    gap_T = _log_ratio(inputs, "token").abs()
    metrics = {
        "ess": effective_sample_size(weights_T, inputs.mask_T),
        "cut_share": mean_of(cut_T, inputs.mask_T),
        "clamp_share": mean_of(is_clamped(log_ratio_T), inputs.mask_T),
        "logprob_abs_max": max_of(gap_T, inputs.mask_T),
        "logprob_abs_mean": mean_of(gap_T, inputs.mask_T),
    }
    return Correction(weights_T=masked(weights_T, inputs.mask_T), metrics=metrics)
