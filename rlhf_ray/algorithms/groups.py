"""Scores of sequences, seen from the group of samples of one draw."""

import torch
from torch import Tensor

from rlhf_ray.algorithms.ragged import masked, segment_sum


class Groups:
    """Each sequence's score against those of its group. All in float64.

    Attributes:
        size_B: How many members the sequence's group has.
        has_spread_B: bool[B], whether the members of the sequence's group differ; the sequence
            itself need not be one.
        centered_B: Score minus the group's mean; exactly 0 in a group without spread, where the
            rounding of the mean could otherwise be divided by a deviation just as small.
        std_B: Unbiased standard deviation of the group's scores.
    """

    def __init__(self, scores_B: Tensor, is_member_B: Tensor, groups_B: Tensor) -> None:
        """Compares scores, float[B], of the members, bool[B]; `groups_B` is int64[B], any numbers.

        What stands in the place of a score that is no member's is not looked at.
        """
        scores_B = masked(scores_B.double(), is_member_B)
        self._is_member_B = is_member_B
        _, self._group_B = torch.unique(groups_B, return_inverse=True)
        self.size_B = self.sum(torch.ones_like(scores_B))
        mean_B = self.sum(scores_B) / self.size_B.clamp(min=1)
        # Written so that a score that is not a number has spread, and is not hidden.
        self.has_spread_B = (self.size_B > 1) & (self._max(scores_B) != -self._max(-scores_B))
        self.centered_B = masked(scores_B - mean_B, is_member_B & self.has_spread_B)
        variance_B = self.sum(self.centered_B.square()) / (self.size_B - 1).clamp(min=1)
        self.std_B = variance_B.sqrt()

    def sum(self, values_B: Tensor) -> Tensor:
        """Sums over each sequence's group: float64[B]."""
        members_B = masked(values_B, self._is_member_B)
        return segment_sum(members_B, self._group_B, len(values_B))[self._group_B]

    def _max(self, values_B: Tensor) -> Tensor:
        members_B = torch.where(self._is_member_B, values_B, -torch.inf)
        none_B = torch.full_like(values_B, -torch.inf)
        return none_B.scatter_reduce(0, self._group_B, members_B, "amax")[self._group_B]
