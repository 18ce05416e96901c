"""Log-ratios of two policies, clamped before they meet `exp`."""

import torch
from torch import Tensor

MAX_LOG_RATIO = 20.0
"""exp(20) is 4.9e8: finite in float32 even when squared, and far beyond any useful ratio."""


def clamp_log_ratio(log_ratio_T: Tensor) -> Tensor:
    """Clamps log-ratios to ±20; beyond that the gradient is 0. NaN stays NaN."""
    return torch.clamp(log_ratio_T, -MAX_LOG_RATIO, MAX_LOG_RATIO)


def is_clamped(log_ratio_T: Tensor) -> Tensor:
    """Tells where `clamp_log_ratio` changes its argument: bool[T]."""
    return log_ratio_T.detach().abs() > MAX_LOG_RATIO
