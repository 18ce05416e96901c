"""When roles compute: their turns on GPUs that they share, and how long each had nothing to do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

from rlhf_ray.deadlines import DeadlineError

# What comes on top of the work itself: an event loop that is busy meanwhile.
SLACK_S = 30.0


class Turns:
    """One role computes at a time, in the order in which they came.

    Attributes:
        holder: The role whose turn it is; empty between turns.
    """

    def __init__(self) -> None:
        """Nobody's turn."""
        self.holder = ""
        self._lock = asyncio.Lock()
        self._ahead_s: list[float] = []

    @asynccontextmanager
    async def turn(self, role: str, *, at_most_s: float) -> AsyncIterator[None]:
        """What is inside is done while it is the role's turn, in `at_most_s` by its own deadlines.

        Every turn has a deadline of its own, so the wait for one has the sum of those before it.

        Raises:
            DeadlineError: The turns before did not end; names the role that has it.
        """
        wait_s, started_s = sum(self._ahead_s) + SLACK_S, time.monotonic()
        self._ahead_s.append(at_most_s)
        try:
            try:
                async with asyncio.timeout(wait_s):
                    await self._lock.acquire()
            except TimeoutError as error:
                age_s, what = time.monotonic() - started_s, f"{role}'s turn on the GPUs it shares"
                raise DeadlineError.of(
                    what, self.holder or "the role before", age_s=age_s, timeout_s=wait_s
                ) from error
            self.holder = role
            try:
                yield
            finally:
                self.holder = ""
                self._lock.release()
        finally:
            self._ahead_s.remove(at_most_s)


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
