"""Requests go to the replica with the fewest tokens in flight."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from actors.engines.replica_set import LeastLoaded

COSTS = st.lists(st.integers(1, 1000), max_size=60)


@given(costs=COSTS, num_replicas=st.integers(1, 7))
def test_loads_differ_by_one_request_at_most(costs, num_replicas):
    load = LeastLoaded(num_replicas)
    assigned = load.assign(costs)
    assert len(assigned) == len(costs)
    assert sum(load.tokens_in_flight) == sum(costs)
    if costs:
        assert max(load.tokens_in_flight) - min(load.tokens_in_flight) <= max(costs)


@given(batches=st.lists(COSTS, max_size=5), num_replicas=st.integers(1, 4))
def test_what_is_finished_no_longer_counts(batches, num_replicas):
    load = LeastLoaded(num_replicas)
    for costs in batches:
        for replica, cost in zip(load.assign(costs), costs, strict=True):
            load.finished(replica, cost)
    assert load.tokens_in_flight == [0] * num_replicas


def test_the_first_of_equals_is_taken_and_busy_replicas_are_passed_over():
    load = LeastLoaded(3)
    assert load.assign([5, 5, 5, 5]) == [0, 1, 2, 0]
    load.finished(2, 5)
    assert load.assign([1, 1]) == [2, 2]
