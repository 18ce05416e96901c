"""How often actors may be started again: decisions alone, by a clock that is given."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rlhf_ray.config.fault_tolerance import ActorFailureConfig

# Of the pause between two restarts: nobody waits for a run whose role stands still for hours.
MOST_DOUBLINGS = 6


@dataclass
class _Spent:
    """Of one name, since it served for long.

    Attributes:
        ready_s: When its last start ended.
    """

    num_restarts: int = 0
    ready_s: float = 0.0


@dataclass
class Budget:
    """Restarts of each role, or engine, by itself; what others do with theirs says nothing of it.

    Attributes:
        num_restarts: That were allowed so far, of all.
    """

    config: ActorFailureConfig
    clock: Callable[[], float] = time.monotonic
    num_restarts: int = field(default=0, init=False)
    _spent: dict[str, _Spent] = field(default_factory=dict, init=False)

    @contextmanager
    def starting(self, name: str, *, age_s: float = 0.0) -> Iterator[None]:
        """A start with all its tries, after a death that a call of this age has met.

        All restarts are allowed again where it has served long enough before that call: an actor
        that hangs in each start, or in its first call, has not, however long that takes.
        """
        spent = self._of(name)
        if self.clock() - age_s - spent.ready_s >= self.config.stable_s:
            spent.num_restarts = 0
        try:
            yield
        finally:
            spent.ready_s = self.clock()

    def spend(self, name: str) -> float | None:
        """One restart of what has died: seconds to wait before it, or None for no more."""
        spent = self._of(name)
        if spent.num_restarts >= self.config.restarts:
            return None
        pause_s = self.pause_s(spent.num_restarts)
        spent.num_restarts += 1
        self.num_restarts += 1
        return pause_s

    def pause_s(self, num_restarts: int) -> float:
        """Before the next restart, after so many."""
        if not num_restarts:
            return 0.0
        return self.config.backoff_s * 2.0 ** min(num_restarts - 1, MOST_DOUBLINGS)

    def _of(self, name: str) -> _Spent:
        return self._spent.setdefault(name, _Spent())
