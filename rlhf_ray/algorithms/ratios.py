"""Log-ratios of two policies, clamped before they meet `exp`."""

import torch
from torch import Tensor

MAX_LOG_RATIO = 20.0
"""exp(20) is 4.9e8: finite in float32 even when squared, and far beyond any useful ratio."""


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
