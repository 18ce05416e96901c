"""Which replica answers which request: the one with the fewest tokens in flight."""

from __future__ import annotations

from collections.abc import Sequence


class LeastLoaded:
    """Counts tokens in flight and hands out requests.

    Deterministic: among equally loaded replicas the first is taken.
    """

    def __init__(self, num_replicas: int) -> None:
        """All idle."""
        self.tokens_in_flight = [0] * num_replicas

    def assign(self, tokens_of_requests: Sequence[int]) -> list[int]:
        """Take requests in order; returns the replica of each and counts its tokens in flight."""
        assigned = []
        for tokens in tokens_of_requests:
            replica = min(range(len(self.tokens_in_flight)), key=self.tokens_in_flight.__getitem__)
            self.tokens_in_flight[replica] += tokens
            assigned.append(replica)
        return assigned

    def finished(self, replica: int, tokens: int) -> None:
        """Requests of so many tokens were answered, or failed."""
        self.tokens_in_flight[replica] -= tokens
