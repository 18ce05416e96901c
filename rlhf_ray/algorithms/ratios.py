"""Log-ratios of two policies and their f-divergences, clamped before they meet `exp`."""

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlhf_ray.config.algorithm_table import Divergence

MAX_LOG_RATIO = 20.0
"""exp(20) is 4.9e8: finite in float32 even when squared, and far beyond any useful ratio."""
MAX_EXPONENT = 40.0
"""exp(40) is 2.4e17: its square, which IPO takes, is finite in float32. Log-ratios of whole answers
often pass the ±20 that bound those of tokens."""
NEAR_ONE = 1e-6
"""Nearer to α = 1 than this, float32 cannot tell (u^(α-1) - 1) / (α - 1) from its limit."""


def log_ratio(logprobs_T: Tensor, others_T: Tensor) -> Tensor:
    """Log π / π', the difference of log-probabilities; 0 where both give a token no chance.

    A head that masks words gives them -inf. Two that mask the same word agree on it, where the
    plain difference, -inf + inf, would be NaN.
    """
    both_T = logprobs_T.isneginf() & others_T.isneginf()
    return logprobs_T.masked_fill(both_T, 0.0) - others_T.masked_fill(both_T, 0.0)


def clamp_log_ratio(log_ratio_T: Tensor) -> Tensor:
    """Clamps log-ratios to ±20; beyond that the gradient is 0. NaN stays NaN."""
    return torch.clamp(log_ratio_T, -MAX_LOG_RATIO, MAX_LOG_RATIO)


def is_clamped(log_ratio_T: Tensor) -> Tensor:
    """Tells where `clamp_log_ratio` changes its argument: bool[T]."""
    return log_ratio_T.detach().abs() > MAX_LOG_RATIO


def divergence_score(log_ratio_B: Tensor, kind: Divergence, alpha: float) -> Tensor:
    """What an answer's log u counts for under an f-divergence from the reference: f'(u), float[B].

    Direct preference optimisation under a divergence D_f replaces log u, u = policy / reference, by
    f'(u): https://arxiv.org/abs/2309.16240, table 1. Three of the four are one family:

        alpha_divergence  f'(u) = (u^(α-1) - 1) / (α - 1)
        reverse_kl        α → 1: log u
        forward_kl        α = 0: 1 - 1/u
        js_divergence     f'(u) = log(2u / (1 + u))

    The paper's own α is 1 minus this one; TRL's is this one. Beyond `MAX_EXPONENT` it stays
    constant.
    """
    if kind == "js_divergence":
        return math.log(2.0) + logsigmoid(log_ratio_B)
    power = _power(kind, alpha)
    if power == 0.0:
        return log_ratio_B
    return torch.expm1((power * log_ratio_B).clamp(max=MAX_EXPONENT)) / power


def is_score_clamped(log_ratio_B: Tensor, kind: Divergence, alpha: float) -> Tensor:
    """Tells where `divergence_score` stays constant: bool[B]."""
    return _power(kind, alpha) * log_ratio_B.detach() > MAX_EXPONENT


def _power(kind: Divergence, alpha: float) -> float:
    """The exponent α - 1 of the ratio, 0 where there is none."""
    power = {"forward_kl": -1.0, "alpha_divergence": alpha - 1.0}.get(kind, 0.0)
    return power if abs(power) >= NEAR_ONE else 0.0
