"""Flat ragged tensors: action tokens, sums by sequence, positions inside one, standardisation."""

import torch
from torch import Tensor

VARIANCE_FLOOR = 1e-8
"""Added to a variance before its root, so that values without spread become 0, not 0 / 0."""


def masked(values_T: Tensor, mask_T: Tensor) -> Tensor:
    """Returns `values_T` with 0 in every slot that is not the policy's own.

    It selects, it does not multiply: NaN times 0 is NaN, in the value and in the gradient. Apply it
    to the *inputs* of a formula. After the formula it is too late: the backward pass of, say, `exp`
    multiplies a zero gradient with an infinite derivative.

    Args:
        values_T: float[T].
        mask_T: bool[T].
    """
    return torch.where(mask_T, values_T, torch.zeros_like(values_T))


def segment_sum(values_T: Tensor, segments_T: Tensor, num_segments: int) -> Tensor:
    """Sums `values_T` by segment.

    Args:
        values_T: [T], any numeric dtype.
        segments_T: int64[T] in 0..num_segments-1, in any order.
        num_segments: B.

    Returns:
        [B], 0 for a segment without elements.
    """
    return values_T.new_zeros(num_segments).index_add(0, segments_T, values_T)


def num_action_tokens(mask_T: Tensor, segments_T: Tensor, num_sequences: int) -> Tensor:
    """Counts each sequence's action tokens: int64[B]."""
    return segment_sum(mask_T.long(), segments_T, num_sequences)


def segment_mean(
    values_T: Tensor, mask_T: Tensor, segments_T: Tensor, num_sequences: int
) -> Tensor:
    """Gives every token the mean over its sequence's action tokens: float[T].

    Args:
        values_T: float[T], 0 in slots that are masked out.
        mask_T: bool[T].
        segments_T: int64[T].
        num_sequences: B.
    """
    lens_B = num_action_tokens(mask_T, segments_T, num_sequences)
    sums_B = segment_sum(values_T, segments_T, num_sequences)
    return (sums_B / lens_B.clamp(min=1))[segments_T]


def last_action_token(mask_T: Tensor, segments_T: Tensor, num_sequences: int) -> Tensor:
    """Finds the flat index of each sequence's last action token.

    Returns:
        int64[B]; -1 for a sequence without action tokens.
    """
    index_T = torch.arange(len(mask_T), device=mask_T.device)
    none_B = torch.full((num_sequences,), -1, device=mask_T.device)
    return none_B.scatter_reduce(0, segments_T[mask_T], index_T[mask_T], "amax")


def positions(segments_T: Tensor) -> Tensor:
    """Numbers the tokens of each sequence 0, 1, 2, ... in their order of appearance: int64[T].

    Sequences may stand in any order and even interleave.
    """
    order_T = torch.argsort(segments_T, stable=True)
    sorted_T = segments_T[order_T]
    first_T = torch.searchsorted(sorted_T, sorted_T)
    ranks_T = torch.arange(len(segments_T), device=segments_T.device) - first_T
    return torch.empty_like(ranks_T).index_copy(0, order_T, ranks_T)


def whiten(values_T: Tensor, mask_T: Tensor) -> Tensor:
    """Scales action tokens to variance 1 and shifts them to mean 0.

    The mean and the unbiased variance are those of the tokens given: give the whole step's, of all
    ranks, or each part is scaled by its own luck. Computed in float64, because the rounding of a
    float32 mean, divided by the root of the floor, would turn equal values into noise.

    Args:
        values_T: float[T].
        mask_T: bool[T].

    Returns:
        float[T] in the dtype of `values_T`; 0 in slots that are masked out.
    """
    masked_N = values_T[mask_T].double()
    mean = masked_N.mean() if len(masked_N) else masked_N.new_zeros(())
    variance = masked_N.var() if len(masked_N) > 1 else masked_N.new_zeros(())
    white_N = (masked_N - mean) * torch.rsqrt(variance + VARIANCE_FLOOR)
    return torch.zeros_like(values_T).masked_scatter(mask_T, white_N.to(values_T.dtype))
