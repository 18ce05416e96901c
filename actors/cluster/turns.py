"""Who computes when: turns on what is shared."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from rlhf_ray.deadlines import DeadlineError

# What comes on top of the work itself: an event loop that is busy meanwhile.
SLACK_S = 30.0


class Turns:
    """A few at a time, in the order in which they came: roles on the same GPUs one by one.

    Attributes:
        on: What they share.
        places: How many there are.
        holders: Whose turn it is, by each of its places: 0 to `places - 1`.
    """

    def __init__(self, places: int = 1, *, on: str = "the GPUs it shares") -> None:
        """Nobody's turn."""
        self.places, self.on, self.holders = places, on, dict[int, str]()
        self._free = list(range(places))
        self._waiting = deque[tuple[int, asyncio.Future[None], list[int]]]()
        self._ahead_s: list[float] = []

    @property
    def are_waited_for(self) -> bool:
        """Whether anybody waits."""
        return any(not future.cancelled() for _, future, _ in self._waiting)

    @asynccontextmanager
    async def turn(self, who: str, *, at_most_s: float, takes: int = 1) -> AsyncIterator[int]:
        """What is inside is done while it is one's turn, in `at_most_s` by its own deadlines.

        Every turn has a deadline of its own, so the wait for one has the sum of those before it.
        What comes is the place, which nobody else has meanwhile; the first of those that it takes.

        Raises:
            DeadlineError: The turns before did not end; names those that have them.
        """
        wait_s, started_s = sum(self._ahead_s) + SLACK_S, time.monotonic()
        self._ahead_s.append(at_most_s)
        try:
            try:
                async with asyncio.timeout(wait_s):
                    places = await self._take(min(takes, self.places))
            except TimeoutError as error:
                raise DeadlineError.of(
                    f"{who}'s turn on {self.on}",
                    ", ".join(dict.fromkeys(self.holders.values())) or "the one before",
                    age_s=time.monotonic() - started_s,
                    timeout_s=wait_s,
                ) from error
            self.holders.update(dict.fromkeys(places, who))
            try:
                yield places[0]
            finally:
                for place in places:
                    del self.holders[place]
                self._give(places)
        finally:
            self._ahead_s.remove(at_most_s)

    async def _take(self, number: int) -> list[int]:
        """So many free places; whoever came before has had its own."""
        places: list[int] = []
        served: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((number, served, places))
        self._serve()
        try:
            await served
        except asyncio.CancelledError:
            # Served and gone nevertheless; or gone before, and whoever is next may need less.
            self._give(places)
            raise
        return places

    def _give(self, places: list[int]) -> None:
        self._free += places
        self._serve()

    def _serve(self) -> None:
        while self._waiting:
            number, served, places = self._waiting[0]
            if not served.cancelled():
                if len(self._free) < number:
                    return
                places += [self._free.pop() for _ in range(number)]
                served.set_result(None)
            self._waiting.popleft()
