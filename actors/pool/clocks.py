"""How far the clocks of other machines are ahead of this one's."""

from __future__ import annotations

from collections import defaultdict, deque

# Answers that a clock is known by. Two quartz clocks drift apart by a second in a day at most.
KEPT = 64


class Clocks:
    """Monotonic clocks by their names, each between two bounds that every answer moves closer.

    What another machine stamps while it is asked lies between question and answer by our clock: the
    stamp is ahead by at least what it is later than the answer, and by at most what it is later
    than the question. No way is taken to be as long as the way back.
    """

    def __init__(self, *, own: str) -> None:
        """None is known but this process's own."""
        self._own = own
        self._bounds_ns: defaultdict[str, deque[tuple[int, int]]] = defaultdict(
            lambda: deque(maxlen=KEPT)
        )

    def heard(self, clock: str, *, asked_ns: int, stamped_ns: int, answered_ns: int) -> None:
        """A stamp by another clock, between two times by ours."""
        if clock != self._own:
            self._bounds_ns[clock].append((stamped_ns - answered_ns, stamped_ns - asked_ns))

    def ahead_ns(self, clock: str) -> int:
        """How far it is ahead, as far as is known; 0 for our own."""
        if clock == self._own:
            return 0
        bounds_ns = list(self._bounds_ns[clock])
        least_ns, most_ns = max(low for low, _ in bounds_ns), min(high for _, high in bounds_ns)
        if least_ns > most_ns:  # it has drifted
            least_ns, most_ns = bounds_ns[-1]
        return (least_ns + most_ns) // 2
