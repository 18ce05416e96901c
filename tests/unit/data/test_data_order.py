from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_ray.data.order import RowsInOrder

takes = st.lists(st.integers(0, 50), max_size=12)


@given(st.integers(1, 30), st.integers(0, 2**40), st.booleans(), takes)
def test_every_row_comes_exactly_once_an_epoch(
    num_rows: int, seed: int, shuffle: bool, sizes: list[int]
) -> None:
    order = RowsInOrder(range(num_rows), seed=seed, shuffle=shuffle)
    rows: list[int] = []
    for size in sizes:
        taken = order.take(size)
        assert len(taken) == size
        rows += taken
    assert order.position == len(rows)
    assert order.epochs == len(rows) / num_rows
    for epoch in range(int(order.epochs)):
        assert sorted(rows[epoch * num_rows :][:num_rows]) == list(range(num_rows))
    rest = rows[int(order.epochs) * num_rows :]
    assert len(set(rest)) == len(rest)


@given(st.integers(1, 30), st.integers(0, 2**40), st.booleans(), st.integers(0, 100), takes)
def test_a_resumed_order_goes_on_as_if_nothing_had_happened(
    num_rows: int, seed: int, shuffle: bool, before: int, sizes: list[int]
) -> None:
    undisturbed = RowsInOrder(range(num_rows), seed=seed, shuffle=shuffle)
    undisturbed.take(before)
    resumed = RowsInOrder(range(num_rows), seed=seed, shuffle=shuffle)
    resumed.take(7)
    resumed.load_state_dict(undisturbed.state_dict())
    assert [resumed.take(size) for size in sizes] == [undisturbed.take(size) for size in sizes]


@given(st.integers(1, 30), st.integers(0, 2**40), takes)
def test_how_rows_are_taken_does_not_matter(num_rows: int, seed: int, sizes: list[int]) -> None:
    in_parts = RowsInOrder(range(num_rows), seed=seed)
    parts = [row for size in sizes for row in in_parts.take(size)]
    assert parts == RowsInOrder(range(num_rows), seed=seed).take(sum(sizes))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    order = RowsInOrder(range(50), seed=0)
    first, second = order.take(50), order.take(50)
    assert first != second
    assert first != RowsInOrder(range(50), seed=1).take(50)
    assert RowsInOrder(range(3), seed=0, shuffle=False).take(7) == [0, 1, 2, 0, 1, 2, 0]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_rows": 9}, "has num_rows 9, this run's data has 8"),
        ({"seed": 4}, "has seed 4, this run's data has 3"),
        ({"shuffle": False}, "has shuffle False, this run's data has True"),
        ({"position": -1}, "position must be a number of rows, got -1"),
        ({"position": None}, "position must be a number of rows, got None"),
    ],
)
def test_state_of_other_data_is_refused(changed: dict[str, Any], message: str) -> None:
    order = RowsInOrder(range(8), seed=3)
    order.take(5)
    with pytest.raises(ValueError, match=message):
        order.load_state_dict({**order.state_dict(), **changed})
    assert order.position == 5


def test_bad_counts_are_named() -> None:
    with pytest.raises(ValueError, match="the data must have at least 1 row, got 0"):
        RowsInOrder(range(0), seed=0)
    with pytest.raises(ValueError, match="num_rows must be at least 0, got -1"):
        RowsInOrder(range(1), seed=0).take(-1)


@given(st.integers(1, 9), st.integers(0, 2**40), st.booleans(), st.permutations(range(30)))
def test_a_row_can_be_asked_for_by_its_position(
    num_rows: int, seed: int, shuffle: bool, positions: list[int]
) -> None:
    order = RowsInOrder(range(num_rows), seed=seed, shuffle=shuffle)
    found = {position: order.row_at(position) for position in positions}
    assert order.position == 0, "asking takes nothing"
    assert order.take(30) == [found[position] for position in range(30)]
