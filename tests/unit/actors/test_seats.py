"""Calls find a process with room, first come first served, and one that must be alone is."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress

import pytest

from actors.ranks import seats as seating
from actors.ranks.seats import Seats
from rlhf_ray.deadlines import DeadlineError


def seats_of(num_processes: int, plain: int = 1, waiting: int = 3) -> Seats:
    return Seats(num_processes, {"plain": plain, "waiting": waiting}, on="the workers")


class Calls:
    """Those that have a seat, each until it is told to end."""

    def __init__(self, seats: Seats) -> None:
        self.seats, self.began = seats, list[tuple[int, int]]()
        self.ends: dict[int, asyncio.Event] = {}
        self.tasks: dict[int, asyncio.Task[None]] = {}

    async def begin(self, *numbers: int, kind: str = "plain", alone: bool = False) -> None:
        for number in numbers:
            self.ends[number] = asyncio.Event()
            self.tasks[number] = asyncio.create_task(self._call(number, kind, alone))
        await self.settle()

    async def _call(self, number: int, kind: str, alone: bool) -> None:
        who = f"draw {number}"
        async with self.seats.seat(kind, who=who, at_most_s=5.0, alone=alone) as process:
            self.began.append((number, process))
            await self.ends[number].wait()

    async def end(self, number: int) -> None:
        self.ends[number].set()
        await self.settle()

    async def settle(self) -> None:
        for _ in range(10):
            await asyncio.sleep(0)

    @property
    def order(self) -> list[int]:
        return [number for number, _ in self.began]

    def at(self, number: int) -> int:
        return dict(self.began)[number]


@pytest.fixture
def calls() -> Calls:
    return Calls(seats_of(2))


async def test_a_call_waits_for_the_first_process_that_is_free(calls):
    await calls.begin(0, 1, 2, 3)
    assert calls.order == [0, 1]
    assert {calls.at(0), calls.at(1)} == {0, 1}
    await calls.end(1)
    await calls.end(2)
    assert calls.order == [0, 1, 2, 3], "nobody waits behind the slow one"
    assert calls.at(2) == calls.at(3) == calls.at(1)


async def test_kinds_have_seats_of_their_own(calls):
    await calls.begin(0, 1, 2)
    await calls.begin(10, 11, 12, 13, 14, 15, 16, kind="waiting")
    assert calls.order == [0, 1, 10, 11, 12, 13, 14, 15]
    assert calls.seats.num_calls(0) == calls.seats.num_calls(1) == 4


async def test_a_process_is_emptied_for_a_call_that_must_be_alone(calls):
    await calls.begin(0, 1, 2, kind="waiting")
    fewest = calls.at(1)
    await calls.begin(9, kind="waiting", alone=True)
    await calls.begin(3, 4, 5, kind="waiting")
    assert calls.order == [0, 1, 2, 3], "others have the other process alone"
    await calls.end(1)
    assert (calls.order[-1], calls.at(9)) == (9, fewest)
    await calls.begin(6)
    assert calls.at(6) != fewest
    await calls.end(9)
    assert calls.order[-2:] == [4, 5]


async def test_nobody_gets_a_seat_where_it_is_closed(calls):
    with calls.seats.closed(0), calls.seats.closed(1):
        await calls.begin(0, 1)
        assert not calls.began
    await calls.settle()
    assert calls.order == [0, 1]


async def test_who_gives_up_takes_no_seat_with_it(calls):
    await calls.begin(0, 1, 2, 3)
    calls.tasks[2].cancel()
    await calls.end(0)
    assert calls.order == [0, 1, 3]
    # Also where it was served and never heard of it.
    await calls.begin(4)
    calls.ends[3].set()
    await asyncio.sleep(0)
    calls.tasks[4].cancel()
    await calls.end(1)
    await calls.begin(5, 6)
    assert calls.order[-2:] == [5, 6]


async def test_a_wait_ends_by_the_deadlines_of_those_before(monkeypatch):
    monkeypatch.setattr(seating, "SLACK_S", 0.05)
    seats = seats_of(1)
    async with seats.seat("plain", who="draw 1", at_most_s=0.05):
        with pytest.raises(DeadlineError, match="draw 2's turn: no answer from the workers"):
            async with seats.seat("plain", who="draw 2", at_most_s=5.0):
                pass
    async with seats.seat("plain", who="draw 3", at_most_s=5.0, alone=True) as process:
        assert process == 0


@pytest.mark.parametrize("seed", range(20))
async def test_whatever_comes_in_whatever_order_all_are_served(seed):
    """No more calls than seats, those alone are, and none is forgotten."""
    dice = random.Random(seed)
    seats, inside = seats_of(3), list[tuple[int, str, bool]]()
    num_done = 0

    async def call() -> None:
        nonlocal num_done
        kind, alone = dice.choice(["plain", "waiting"]), dice.random() < 0.2
        await asyncio.sleep(dice.random() / 50)
        async with seats.seat(kind, who="x", at_most_s=60.0, alone=alone) as process:
            inside.append(mine := (process, kind, alone))
            here = [one for one in inside if one[0] == process]
            assert len(here) <= seats.num_calls(process), "some are served and do not know yet"
            assert len(here) == 1 or not any(one[2] for one in here)
            for of_kind, most in seats.seats.items():
                assert sum(one[1] == of_kind for one in here) <= most
            try:
                if dice.random() < 0.1:
                    with seats.closed(process):
                        await asyncio.sleep(dice.random() / 100)
                await asyncio.sleep(dice.random() / 200)
            finally:
                inside.remove(mine)
            num_done += 1

    tasks = [asyncio.create_task(call()) for _ in range(120)]
    await asyncio.sleep(0.01)
    cancelled = [task for task in tasks if dice.random() < 0.2]
    for task in cancelled:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    others = [task for task in tasks if task not in cancelled]
    await asyncio.wait_for(asyncio.gather(*others), 30)
    assert num_done >= len(others)
    assert not inside
    assert [seats.num_calls(process) for process in range(3)] == [0, 0, 0]
