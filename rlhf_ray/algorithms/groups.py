"""Scores of sequences, seen from the group of samples of one draw."""

import torch
from torch import Tensor

from rlhf_ray.algorithms.ragged import num_own_tokens, own, segment_sum


class Groups:
    """Each sequence's sum of token rewards against its group. All in float64.

    Sequences without own tokens have no reward to compare and are in no group.

    Attributes:
        size_B: How many samples the sequence's group has.
        centered_B: Sum of rewards minus the group's mean; exactly 0 in a group without spread,
            where the rounding of the mean could otherwise be divided by a deviation just as small.
    """

    def __init__(
        self, token_rewards_T: Tensor, mask_T: Tensor, segments_T: Tensor, groups_B: Tensor
    ) -> None:
        """Compares the sequences; `groups_B` is int64[B], any numbers."""
        num_sequences = len(groups_B)
        totals_B = segment_sum(own(token_rewards_T, mask_T).double(), segments_T, num_sequences)
        self._is_member_B = num_own_tokens(mask_T, segments_T, num_sequences) > 0
        _, self._group_B = torch.unique(groups_B, return_inverse=True)
        self.size_B = self.sum(torch.ones_like(totals_B))
        mean_B = self.sum(totals_B) / self.size_B.clamp(min=1)
        has_spread_B = self._max(totals_B) > -self._max(-totals_B)
        self.centered_B = own(totals_B - mean_B, has_spread_B)

    def sum(self, values_B: Tensor) -> Tensor:
        """Sums over each sequence's group: float64[B]."""
        members_B = own(values_B, self._is_member_B)
        return segment_sum(members_B, self._group_B, len(values_B))[self._group_B]

    def _max(self, values_B: Tensor) -> Tensor:
        members_B = torch.where(self._is_member_B, values_B, -torch.inf)
        none_B = torch.full_like(values_B, -torch.inf)
        return none_B.scatter_reduce(0, self._group_B, members_B, "amax")[self._group_B]
