"""How long a role waited for work."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class BusyClock:
    """Adds up the time in which nothing was being answered; calls may overlap."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Idle from now on."""
        self._clock = clock
        self._num_calls, self._idle_s, self._seen_s = 0, 0.0, clock()

    @contextmanager
    def working(self) -> Iterator[None]:
        """What is inside is work."""
        self._advance()
        self._num_calls += 1
        try:
            yield
        finally:
            self._advance()
            self._num_calls -= 1

    def take_idle_s(self) -> float:
        """Seconds without work since the last time that this was asked."""
        self._advance()
        idle_s, self._idle_s = self._idle_s, 0.0
        return idle_s

    def _advance(self) -> None:
        now_s = self._clock()
        if not self._num_calls:
            self._idle_s += now_s - self._seen_s
        self._seen_s = now_s
