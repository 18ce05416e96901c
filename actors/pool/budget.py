"""How often actors may be started again: decisions alone, by a clock that is given."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from rlhf_ray.config.fault_tolerance import ActorFailureConfig


@dataclass
class _Spent:
    """Of one name, since it was stable last."""

    num_restarts: int = 0
    last_s: float = 0.0


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

    def spend(self, name: str) -> float | None:
        """One restart of what has died: seconds to wait before it, or None for no more."""
        spent, now_s = self._spent.setdefault(name, _Spent()), self.clock()
        if now_s - spent.last_s >= self.config.stable_s:
            spent.num_restarts = 0
        if spent.num_restarts >= self.config.restarts:
            return None
        pause_s = self.config.backoff_s * 2 ** (spent.num_restarts - 1) if spent.num_restarts else 0
        spent.num_restarts, spent.last_s = spent.num_restarts + 1, now_s + pause_s
        self.num_restarts += 1
        return pause_s
