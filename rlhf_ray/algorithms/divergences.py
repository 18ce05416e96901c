"""What an answer's log-ratio counts for under an f-divergence from the reference.

Direct preference optimisation under a divergence D_f replaces log u, u = policy / reference, by
f'(u): https://arxiv.org/abs/2309.16240, table 1. Three of the four are one family:

    alpha_divergence  f'(u) = (u^(α-1) - 1) / (α - 1)
    reverse_kl        α → 1: log u
    forward_kl        α = 0: 1 - 1/u
    js_divergence     f'(u) = log(2u / (1 + u))

The paper's own α is 1 minus this one; TRL's is this one.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlhf_ray.config.algorithm_table import Divergence

MAX_EXPONENT = 40.0
"""exp(40) is 2.4e17: its square, which IPO takes, is finite in float32. Log-ratios of whole answers
often pass the ±20 that bound those of tokens."""
NEAR_ONE = 1e-6
"""Nearer to α = 1 than this, float32 cannot tell (u^(α-1) - 1) / (α - 1) from its limit."""


def divergence_score(log_ratio_B: Tensor, kind: Divergence, alpha: float) -> Tensor:
    """f'(u) at log u = `log_ratio_B`; beyond `MAX_EXPONENT` it stays constant. float[B]."""
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
