"""A standing pool serves one job at a time, and a dead job does not keep it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from actors.pool.record import Holder, Keeper


def job(number):
    return Holder(job_id=f"{number:08d}", name=f"runs/{number}", since_s=float(number))


def test_the_first_gets_it_and_the_second_is_told_who_has_it():
    lease = Keeper()
    first, second = job(1), job(2)
    both = [first.job_id, second.job_id]
    assert lease.acquire(first, both) == first
    assert lease.acquire(second, both) == first
    assert lease.holder(both) == first


def test_a_dead_holder_is_taken_over_and_cannot_give_away_what_it_lost():
    lease = Keeper()
    first, second = job(1), job(2)
    lease.acquire(first, [first.job_id])
    assert lease.holder([second.job_id]) is None
    assert lease.acquire(second, [second.job_id]) == second
    lease.release(first.job_id)
    assert lease.holder([second.job_id]) == second


def test_given_back_it_is_free():
    lease = Keeper()
    lease.acquire(job(1), [job(1).job_id])
    lease.release(job(1).job_id)
    assert lease.holder([job(1).job_id]) is None


@given(st.lists(st.tuples(st.sampled_from(["acquire", "release", "die"]), st.integers(0, 3))))
def test_never_two_jobs_at_a_time(events):
    lease, alive = Keeper(), {job(n).job_id for n in range(4)}
    working = None
    for event, number in events:
        asking = job(number)
        if event == "die":
            alive.discard(asking.job_id)
            working = None if working == asking else working
        elif event == "release":
            lease.release(asking.job_id)
            working = None if working == asking else working
        elif asking.job_id in alive:
            got = lease.acquire(asking, alive) == asking
            assert got == (working in (None, asking))
            working = asking if got else working
        assert lease.holder(alive) == working
