"""Masked standardisation over a whole step."""

import torch
from torch import Tensor

VARIANCE_FLOOR = 1e-8
"""Added to a variance before its root, so that values without spread become 0, not 0 / 0."""


def whiten(values_T: Tensor, mask_T: Tensor, shift_mean: bool = True) -> Tensor:
    """Scales own tokens to variance 1 and, unless told otherwise, shifts them to mean 0.

    The mean and the unbiased variance are those of the tokens given: give the whole step's, of all
    ranks, or each part is scaled by its own luck. Computed in float64, because the rounding of a
    float32 mean, divided by the root of the floor, would turn equal values into noise.

    Args:
        values_T: float[T].
        mask_T: bool[T].
        shift_mean: False keeps the mean where it was (for rewards, whose sign matters).

    Returns:
        float[T] in the dtype of `values_T`; 0 in slots that are not the policy's own.
    """
    own_N = values_T[mask_T].double()
    mean = own_N.mean() if len(own_N) else own_N.new_zeros(())
    variance = own_N.var() if len(own_N) > 1 else own_N.new_zeros(())
    white_N = (own_N - mean) * torch.rsqrt(variance + VARIANCE_FLOOR)
    if not shift_mean:
        white_N = white_N + mean
    return torch.zeros_like(values_T).masked_scatter(mask_T, white_N.to(values_T.dtype))
