"""Whose turn it is on GPUs that several roles share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

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
