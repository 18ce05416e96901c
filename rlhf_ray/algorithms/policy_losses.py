"""Policy-gradient losses, token by token.

Each takes `PolicyLossInputs` and those keys of `AlgorithmConfig` that its row in the table names,
and returns a `TokenLoss`. They differ in how the ratio r = π_new / π_old weighs the advantage A and
in what happens far from r = 1:

    ppo        -min(r A, clip(r) A): no gradient beyond the clip
    gspo       the same with one ratio a sequence
    cispo      -stop(clip(r)) A log π: beyond the clip the weight stops growing, the gradient stays
    sapo       -(4/τ) σ(τ (r - 1)) A: the gradient fades out smoothly
    reinforce  -A log π: no ratio at all

Every loss reports `clip_share` (0 where nothing is clipped), `clamp_share` (log-ratios beyond ±20),
`ratio_mean` (of the ratio that the loss uses) and `kl_old`, the k3 estimate of KL(old || new).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_ray.algorithms.metric_sums import mean_of
from rlhf_ray.algorithms.ragged import masked, segment_mean
from rlhf_ray.algorithms.ratios import clamp_log_ratio, is_clamped, log_ratio
from rlhf_ray.algorithms.reduction import TokenLoss
from rlhf_ray.algorithms.registry import Registry
from rlhf_ray.config import algorithm_table as table
from rlhf_ray.config.algorithm import AlgorithmConfig


@dataclass(frozen=True, kw_only=True)
class PolicyLossInputs:
    """A micro-batch of whole sequences.

    Attributes:
        logprobs_T: float[T], of the policy being trained; the only one that gets a gradient.
        old_logprobs_T: float[T], of the policy at the start of the step.
        advantages_T: float[T].
        mask_T: bool[T].
        segments_T: int64[T].
        num_sequences: B.
    """

    logprobs_T: Tensor
    old_logprobs_T: Tensor
    advantages_T: Tensor
    mask_T: Tensor
    segments_T: Tensor
    num_sequences: int


PolicyLossFn = Callable[[PolicyLossInputs, AlgorithmConfig], TokenLoss]


POLICY_LOSSES: Registry[PolicyLossFn] = Registry("policy loss", table.POLICY_LOSSES)


@POLICY_LOSSES.register("ppo")
def ppo(inputs: PolicyLossInputs, params: AlgorithmConfig) -> TokenLoss:
    """Clipped surrogate of single tokens, -min(r A, clip(r, 1 - low, 1 + high) A).

    Source: PPO, https://arxiv.org/abs/1707.06347, eq. 7; two different bounds: DAPO,
    https://arxiv.org/abs/2503.14476, eq. 10; dual clip, max(min(...), c A) where A < 0:
    https://arxiv.org/abs/1912.09729, section 3. GRPO and Dr. GRPO use this loss with their own
    advantages and reductions.
    """
    selected = _select(inputs)
    return _clipped_surrogate(selected, selected.log_ratio_T, params)


@POLICY_LOSSES.register("gspo")
def gspo(inputs: PolicyLossInputs, params: AlgorithmConfig) -> TokenLoss:
    """Clipped surrogate with one ratio a sequence, s = exp(mean over action tokens of log r).

    Source: GSPO, https://arxiv.org/abs/2507.18071, eqs. 5 and 7. Every token carries its sequence's
    surrogate; reduction `sequence_mean` gives the paper's loss and, through all the tokens in s,
    the paper's gradient (eq. 10). Sequences must be whole.
    """
    selected = _select(inputs)
    log_ratio_T = segment_mean(
        selected.log_ratio_T, inputs.mask_T, inputs.segments_T, inputs.num_sequences
    )
    return _clipped_surrogate(selected, log_ratio_T, params)


@POLICY_LOSSES.register("cispo")
def cispo(inputs: PolicyLossInputs, params: AlgorithmConfig) -> TokenLoss:
    """REINFORCE weighted by a clipped ratio without gradient, -stop(clip(r)) A log π.

    Source: MiniMax-M1, https://arxiv.org/abs/2506.13585, eqs. 4 and 5.
    """
    selected = _select(inputs)
    ratio_T = clamp_log_ratio(selected.log_ratio_T).exp().detach()
    low, high = _bounds(params)
    loss_T = -ratio_T.clamp(low, high) * selected.advantages_T * selected.logprobs_T
    clipped_T = (ratio_T < low) | (ratio_T > high)
    return _token_loss(loss_T, selected, selected.log_ratio_T, ratio_T, clipped_T)


@POLICY_LOSSES.register("sapo")
def sapo(inputs: PolicyLossInputs, params: AlgorithmConfig) -> TokenLoss:
    """Soft gate in place of the clip, -(4/τ) σ(τ (r - 1)) A with τ by the sign of A.

    Source: Soft Adaptive Policy Optimization, https://arxiv.org/abs/2511.20347, section 3. At
    r = 1 the gradient is REINFORCE's. Nothing is clipped, so `clip_share` is 0.
    """
    selected = _select(inputs)
    ratio_T = clamp_log_ratio(selected.log_ratio_T).exp()
    tau_pos = ratio_T.new_full((), params.sapo_temperature_positive)
    tau_neg = ratio_T.new_full((), params.sapo_temperature_negative)
    tau_T = torch.where(selected.advantages_T > 0.0, tau_pos, tau_neg)
    loss_T = -(torch.sigmoid(tau_T * (ratio_T - 1.0)) * (4.0 / tau_T)) * selected.advantages_T
    clipped_T = torch.zeros_like(inputs.mask_T)
    return _token_loss(loss_T, selected, selected.log_ratio_T, ratio_T, clipped_T)


@POLICY_LOSSES.register("reinforce")
def reinforce(inputs: PolicyLossInputs, params: AlgorithmConfig) -> TokenLoss:
    """The plain policy gradient -A log π, for on-policy data; the ratio appears in metrics only.

    Source: Williams 1992, https://doi.org/10.1007/BF00992696. It uses no parameter.
    """
    selected = _select(inputs)
    ratio_T = clamp_log_ratio(selected.log_ratio_T).exp()
    loss_T = -selected.advantages_T * selected.logprobs_T
    clipped_T = torch.zeros_like(inputs.mask_T)
    return _token_loss(loss_T, selected, selected.log_ratio_T, ratio_T, clipped_T)


@dataclass(frozen=True, kw_only=True)
class _Selected:
    """The inputs with 0 in slots that are masked out; `log_ratio_T` is not yet clamped."""

    logprobs_T: Tensor
    log_ratio_T: Tensor
    advantages_T: Tensor
    mask_T: Tensor


def _select(inputs: PolicyLossInputs) -> _Selected:
    logprobs_T = masked(inputs.logprobs_T, inputs.mask_T)
    return _Selected(
        logprobs_T=logprobs_T,
        log_ratio_T=log_ratio(logprobs_T, masked(inputs.old_logprobs_T, inputs.mask_T).detach()),
        advantages_T=masked(inputs.advantages_T, inputs.mask_T).detach(),
        mask_T=inputs.mask_T,
    )


def _bounds(params: AlgorithmConfig) -> tuple[float, float]:
    """Of the ratio: from 1 - clip_low, at least 0, to 1 + clip_high."""
    low = 0.0 if params.clip_low is None else max(1.0 - params.clip_low, 0.0)
    return low, math.inf if params.clip_high is None else 1.0 + params.clip_high


def _clipped_surrogate(
    selected: _Selected, log_ratio_T: Tensor, params: AlgorithmConfig
) -> TokenLoss:
    """PPO's surrogate for ratios of tokens or, the same value at each token, of sequences."""
    advantages_T = selected.advantages_T
    ratio_T = clamp_log_ratio(log_ratio_T).exp()
    low, high = _bounds(params)
    surrogate_T = torch.minimum(ratio_T * advantages_T, ratio_T.clamp(low, high) * advantages_T)
    clipped_T = torch.where(advantages_T > 0.0, ratio_T > high, ratio_T < low)
    if params.dual_clip:
        floor_T = params.dual_clip * advantages_T
        surrogate_T = torch.where(
            advantages_T < 0.0, torch.maximum(surrogate_T, floor_T), surrogate_T
        )
        clipped_T = clipped_T | ((advantages_T < 0.0) & (ratio_T > params.dual_clip))
    clipped_T = clipped_T & (advantages_T != 0.0)
    return _token_loss(-surrogate_T, selected, log_ratio_T, ratio_T, clipped_T)


def _token_loss(
    loss_T: Tensor, selected: _Selected, log_ratio_T: Tensor, ratio_T: Tensor, clipped_T: Tensor
) -> TokenLoss:
    token_log_ratio_T, mask_T = clamp_log_ratio(selected.log_ratio_T.detach()), selected.mask_T
    metrics = {
        "clip_share": mean_of(clipped_T, mask_T),
        "clamp_share": mean_of(is_clamped(log_ratio_T), mask_T),
        "ratio_mean": mean_of(ratio_T, mask_T),
        "kl_old": mean_of(torch.expm1(token_log_ratio_T) - token_log_ratio_T, mask_T),
    }
    return TokenLoss(loss_T=loss_T, metrics=metrics)
