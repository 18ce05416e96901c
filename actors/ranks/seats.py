"""Which of some equal processes has room for a call: bookkeeping alone, first come first served."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

from actors.cluster.turns import SLACK_S
from rlhf_ray.deadlines import DeadlineError


@dataclass(eq=False)
class _Process:
    """What has a seat there, by the kind of call, and what keeps others from it."""

    calls: dict[str, int]
    is_alone: bool = False
    num_closed: int = 0

    @property
    def num_calls(self) -> int:
        return sum(self.calls.values())


@dataclass(eq=False)
class _Wanted:
    """A call that waits.

    Attributes:
        process: The number of the one that it has a seat at, once it is served.
    """

    kind: str
    alone: bool
    process: int = -1
    served: asyncio.Future[None] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class Seats:
    """Seats of several kinds at each of some processes; a call has one of its kind.

    A call gets the process with the fewest calls that has a seat free; so nobody waits behind a
    slow one while another process has room. A call that has to be `alone` has a whole process: one
    is kept from others until it is empty.
    """

    def __init__(self, num_processes: int, seats: dict[str, int], *, on: str) -> None:
        """So many seats of each kind at each process, all free; `on` is what errors call them."""
        self.seats, self.on = seats, on
        self._processes = [_Process(dict.fromkeys(seats, 0)) for _ in range(num_processes)]
        self._waiting = {alone: {kind: deque[_Wanted]() for kind in seats} for alone in (1, 0)}
        self._ahead_s = 0.0

    def num_calls(self, process: int) -> int:
        """Calls that have a seat there."""
        return self._processes[process].num_calls

    @contextmanager
    def closed(self, process: int) -> Iterator[None]:
        """Nobody gets a seat at a process meanwhile; who has one keeps it."""
        self._processes[process].num_closed += 1
        try:
            yield
        finally:
            self._processes[process].num_closed -= 1
            self._serve()

    @asynccontextmanager
    async def seat(
        self, kind: str, *, who: str, at_most_s: float, alone: bool = False
    ) -> AsyncIterator[int]:
        """A seat at the process of this number, for at most `at_most_s` by one's own deadlines.

        Raises:
            DeadlineError: Those before did not leave theirs in time.
        """
        wait_s, started_s = self._ahead_s + SLACK_S, time.monotonic()
        self._ahead_s += at_most_s
        try:
            try:
                async with asyncio.timeout(wait_s):
                    number = await self._take(kind, alone=alone)
            except TimeoutError as error:
                age_s = time.monotonic() - started_s
                raise DeadlineError.of(
                    f"{who}'s turn", self.on, age_s=age_s, timeout_s=wait_s
                ) from error
            try:
                yield number
            finally:
                self._give(kind, number)
        finally:
            self._ahead_s -= at_most_s

    async def _take(self, kind: str, *, alone: bool) -> int:
        wanted = _Wanted(kind=kind, alone=alone)
        self._waiting[alone][kind].append(wanted)
        self._serve()
        try:
            await wanted.served
        except asyncio.CancelledError:
            if wanted.process >= 0:
                self._give(kind, wanted.process)
            raise
        return wanted.process

    def _give(self, kind: str, number: int) -> None:
        process = self._processes[number]
        process.calls[kind] -= 1
        process.is_alone = False
        self._serve()

    def _serve(self) -> None:
        """Give seats to all that can have one; those who have to be alone come first."""
        kept_free: set[int] = set()
        for alone, of_kind in self._waiting.items():
            for waiting in of_kind.values():
                while waiting:
                    wanted = waiting[0]
                    if not wanted.served.done():
                        number = self._room_for(wanted, kept_free)
                        if number is None:
                            break
                        process = self._processes[number]
                        process.calls[wanted.kind] += 1
                        process.is_alone = wanted.alone
                        wanted.process = number
                        wanted.served.set_result(None)
                    waiting.popleft()
                if alone and waiting and (open_to := self._open(kept_free)):
                    kept_free.add(min(open_to, key=self.num_calls))

    def _open(self, kept_free: set[int]) -> list[int]:
        return [
            number
            for number, process in enumerate(self._processes)
            if not process.is_alone and not process.num_closed and number not in kept_free
        ]

    def _room_for(self, wanted: _Wanted, kept_free: set[int]) -> int | None:
        most = 0 if wanted.alone else self.seats[wanted.kind] - 1
        rooms = [
            number
            for number in self._open(kept_free)
            if (self.num_calls(number) if wanted.alone else self._taken(number, wanted)) <= most
        ]
        return min(rooms, key=self.num_calls) if rooms else None

    def _taken(self, number: int, wanted: _Wanted) -> int:
        return self._processes[number].calls[wanted.kind]
