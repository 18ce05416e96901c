"""How many GPUs there are changes neither what a group costs the driver nor what a rank gets."""

import pytest

from benchmarks.scale.__main__ import StepCost, cost_of_a_step


@pytest.fixture(scope="module")
def few() -> StepCost:
    return cost_of_a_step(8, steps=3)


@pytest.fixture(scope="module")
def many() -> StepCost:
    return cost_of_a_step(64, steps=3)


def test_a_group_is_as_cheap_to_send_on_many_gpus_as_on_few(few, many):
    """What all ranks need is pickled once. Larger numbers of rows take a byte more."""
    assert 1_000 < many.of_group.num_bytes < 1.2 * few.of_group.num_bytes


def test_a_rank_is_given_no_more_where_there_are_many(few, many):
    """Eight times as many rows are dealt out to eight times as many ranks.

    What grows is the plan, and what is known of all rows: a few bytes each, of 700 and more.
    """
    for role in ("policy", "reference"):
        assert 10_000 < many.received[role].num_bytes < 1.3 * few.received[role].num_bytes, role
    assert many.received["policy"].num_references == few.received["policy"].num_references
    # One for each group of which it has a sample: it has 4 x 32 samples.
    assert many.received["reference"].num_references < 4 * 32
