"""Who computes when: turns on what is shared."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from rlhf_ray.deadlines import DeadlineError

# What comes on top of the work itself: an event loop that is busy meanwhile.
SLACK_S = 30.0


class Turns:
    """A few at a time, in the order in which they came: roles on the same GPUs one by one.

    Attributes:
        on: What they share.
        holders: Whose turn it is, by its place: 0 to `at_a_time - 1`.
    """

    def __init__(self, at_a_time: int = 1, *, on: str = "the GPUs it shares") -> None:
        """Nobody's turn."""
        self.on, self.holders = on, dict[int, str]()
        self._places = list(range(at_a_time))
        self._free = asyncio.Semaphore(at_a_time)
        self._ahead_s: list[float] = []

    @property
    def are_waited_for(self) -> bool:
        """Whether anybody waits."""
        return len(self._ahead_s) > len(self.holders)

    @asynccontextmanager
    async def turn(self, who: str, *, at_most_s: float) -> AsyncIterator[int]:
        """What is inside is done while it is one's turn, in `at_most_s` by its own deadlines.

        Every turn has a deadline of its own, so the wait for one has the sum of those before it.
        What comes is the place, which nobody else has meanwhile.

        Raises:
            DeadlineError: The turns before did not end; names those that have them.
        """
        wait_s, started_s = sum(self._ahead_s) + SLACK_S, time.monotonic()
        self._ahead_s.append(at_most_s)
        try:
            try:
                async with asyncio.timeout(wait_s):
                    await self._free.acquire()
            except TimeoutError as error:
                raise DeadlineError.of(
                    f"{who}'s turn on {self.on}",
                    ", ".join(self.holders.values()) or "the one before",
                    age_s=time.monotonic() - started_s,
                    timeout_s=wait_s,
                ) from error
            place = self._places.pop()
            self.holders[place] = who
            try:
                yield place
            finally:
                del self.holders[place]
                self._places.append(place)
                self._free.release()
        finally:
            self._ahead_s.remove(at_most_s)
