"""Groups go to the replica with the fewest tokens in flight; alone, to one that has seats."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.engines.dispatch import Dispatch, Load

SEATS = 6
LOADS = st.builds(Load, seats=st.integers(1, SEATS + 2), tokens=st.integers(1, 1000))


def tokens(*numbers):
    return [Load(seats=1, tokens=number) for number in numbers]


@given(loads=st.lists(LOADS, max_size=60), num_replicas=st.integers(1, 7))
def test_loads_of_a_wave_differ_by_one_group_at_most(loads, num_replicas):
    dispatch = Dispatch(num_replicas, seats=1)
    assigned = dispatch.assign(loads)
    assert len(assigned) == len(loads)
    assert sum(dispatch.tokens_in_flight) == sum(load.tokens for load in loads)
    if loads:
        apart = max(dispatch.tokens_in_flight) - min(dispatch.tokens_in_flight)
        assert apart <= max(load.tokens for load in loads)


def test_the_first_of_equals_is_taken_and_busy_replicas_are_passed_over():
    dispatch = Dispatch(3, seats=1)
    assert dispatch.assign(tokens(5, 5, 5, 5)) == [0, 1, 2, 0]
    dispatch.ended(2, *tokens(5))
    assert dispatch.assign(tokens(1, 1)) == [2, 2]


class Recorded(Dispatch):
    """Writes down to which loads it gives a replica, in order."""

    def __init__(self, num_replicas, *, seats):
        super().__init__(num_replicas, seats=seats)
        self.given = []

    def _give(self, replica, load):
        self.given.append(load)
        return super()._give(replica, load)


class Groups:
    """Groups that come alone and in waves, as a replica set handles them.

    Attributes:
        asked: Those alone, in the order in which they came.
        given_up: Before or after they were given a replica.
    """

    def __init__(self, num_replicas):
        self.dispatch = Recorded(num_replicas, seats=SEATS)
        self.asked, self.waves, self.given_up = [], [], set()
        self.loads, self.kept, self.running, self.ends = {}, [], {}, {}

    @property
    def seated(self):
        """Those alone in the order in which they were given a replica."""
        return [self.loads[id(load)] for load in self.dispatch.given if id(load) in self.loads]

    def come(self, load):
        number, load = len(self.asked), replace(load)
        self.loads[id(load)] = number
        self.kept.append(load)
        self.ends[number] = asyncio.Event()
        self.asked.append(asyncio.ensure_future(self.run(number, load)))

    async def run(self, number, load):
        replica = await self.dispatch.wait(load)
        self.running[number] = (replica, load)
        try:
            await self.ends[number].wait()
        finally:
            del self.running[number]
            self.dispatch.ended(replica, load)

    def come_together(self, loads):
        self.waves += zip(self.dispatch.assign(loads), loads, strict=True)

    def end(self, number):
        if self.asked:
            self.ends[number % len(self.asked)].set()

    def end_of_wave(self, number):
        if self.waves:
            self.dispatch.ended(*self.waves.pop(number % len(self.waves)))

    def give_up(self, number):
        if self.asked:
            self.given_up.add(number % len(self.asked))
            self.asked[number % len(self.asked)].cancel()

    async def settle(self):
        for _ in range(4):
            await asyncio.sleep(0)

    def check(self):
        of_waves = [0] * len(self.dispatch.seats_taken)
        of_groups = [0] * len(self.dispatch.seats_taken)
        largest = [0] * len(self.dispatch.seats_taken)
        for replica, load in self.waves:
            of_waves[replica] += load.seats
        for replica, load in self.running.values():
            of_groups[replica] += load.seats
            largest[replica] = max(largest[replica], load.seats)
        assert self.dispatch.seats_taken == [
            wave + alone for wave, alone in zip(of_waves, of_groups, strict=True)
        ]
        # Never above the seats, but for a group that needs more than there are: that one is alone.
        for taken, one in zip(of_groups, largest, strict=True):
            assert taken <= SEATS or taken == one
        # First come, first served.
        assert self.seated == sorted(self.seated)
        waiting = [n for n, task in enumerate(self.asked) if not task.done()]
        waiting = [n for n in waiting if n not in self.seated]
        assert self.dispatch.num_waiting == len(waiting)
        passed = set(range(max(self.seated, default=0))) - set(self.seated)
        assert passed <= self.given_up
        # No wake-up is lost: whoever waits waits for seats.
        if waiting:
            first = next(iter(self.dispatch._waiting.values()))
            for taken in self.dispatch.seats_taken:
                assert taken
                assert taken + first.seats > SEATS


NUMBERS = st.integers(0, 40)
EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("come"), LOADS),
        st.tuples(st.just("come"), LOADS),
        st.tuples(st.just("come_together"), st.lists(LOADS, max_size=4)),
        st.tuples(st.just("end"), NUMBERS),
        st.tuples(st.just("end_of_wave"), NUMBERS),
        st.tuples(st.just("give_up"), NUMBERS),
        st.tuples(st.just("settle"), st.none()),
    ),
    max_size=60,
)


@given(events=EVENTS, num_replicas=st.integers(1, 3))
def test_seats_are_given_in_order_never_twice_and_always_back(events, num_replicas):
    async def play():
        groups = Groups(num_replicas)
        for event, argument in events:
            if event == "settle":
                await groups.settle()
                groups.check()
            else:  # several may come between two steps of the event loop
                getattr(groups, event)(argument)
        await groups.settle()
        groups.check()
        # All that is left is served in time, however large.
        while groups.waves:
            groups.end_of_wave(0)
        for _ in groups.asked:
            await groups.settle()
            for number in groups.running:
                groups.end(number)
        await groups.settle()
        assert all(task.done() for task in groups.asked)
        served = {n for n, task in enumerate(groups.asked) if not task.cancelled()}
        assert served <= set(groups.seated)
        assert groups.dispatch.seats_taken == groups.dispatch.tokens_in_flight == [0] * num_replicas

    asyncio.run(play())


@pytest.mark.parametrize("num_steps", range(4))
async def test_whoever_gives_up_in_the_moment_of_its_turn_passes_it_on(num_steps):
    dispatch = Dispatch(1, seats=2)
    [replica] = dispatch.assign([Load(seats=2, tokens=5)])
    first = asyncio.ensure_future(dispatch.wait(Load(seats=2, tokens=7)))
    second = asyncio.ensure_future(dispatch.wait(Load(seats=1, tokens=9)))
    await asyncio.sleep(0)
    dispatch.ended(replica, Load(seats=2, tokens=5))
    for _ in range(num_steps):
        await asyncio.sleep(0)
    if not first.cancel():
        dispatch.ended(first.result(), Load(seats=2, tokens=7))
    assert await second == 0
    assert (dispatch.seats_taken, dispatch.tokens_in_flight) == ([1], [9])
