"""A rank gets the rows that a plan has it train on, and of others their length."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_ray.own_rows import OtherRow, OwnRows, dealt, own_of
from rlhf_ray.packing import UpdatePlan, plan_update


@dataclass(frozen=True, kw_only=True)
class Row:
    number: int
    num_tokens: int


def rows_of(lengths: list[int]) -> list[Row]:
    return [Row(number=n, num_tokens=length) for n, length in enumerate(lengths)]


def plan_of(rows: list[Row], *, ranks: int, minibatches: int = 1, epochs: int = 1) -> UpdatePlan:
    return plan_update(
        [row.num_tokens for row in rows],
        [1] * len(rows),
        data_parallel_size=ranks,
        max_tokens_per_micro_batch=40,
        num_minibatches=minibatches,
        num_epochs=epochs,
        seed=3,
        padded=False,
    )


@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=40),
    ranks=st.integers(1, 9),
    minibatches=st.integers(1, 4),
    epochs=st.integers(1, 3),
)
def test_a_rank_has_what_it_trains_on_and_knows_how_long_the_others_are(
    lengths, ranks, minibatches, epochs
):
    rows = rows_of(lengths)
    plan = plan_of(rows, ranks=ranks, minibatches=minibatches, epochs=epochs)
    parts = dealt(rows, plan)
    assert len(parts) == plan.num_ranks == ranks
    for rank, part in enumerate(parts):
        trained = {
            row
            for minibatch in plan.minibatches
            for micro_batch in minibatch.micro_batches_by_rank[rank]
            for row in micro_batch
        }
        assert part.own.keys() == trained
        assert own_of(part, sorted(trained)) == [rows[row] for row in sorted(trained)]
        assert [row.num_tokens for row in part] == lengths


def test_in_one_epoch_each_row_goes_to_one_rank():
    rows = rows_of([5] * 64)
    parts = dealt(rows, plan_of(rows, ranks=16, minibatches=4))
    assert sorted(row for part in parts for row in part.own) == list(range(64))
    assert {len(part.own) for part in parts} == {4}


def test_rows_of_another_rank_are_no_rows():
    [row] = rows_of([7])
    rows = OwnRows(own={1: row}, lengths_B=np.array([4, 7, 5], dtype=np.int32))
    assert list(rows) == [OtherRow(num_tokens=4), row, OtherRow(num_tokens=5)]
    assert rows[1:] == [row, OtherRow(num_tokens=5)]
    assert own_of(rows, [1]) == [row]
    with pytest.raises(ValueError, match="row 2 must be one of this rank's"):
        own_of(rows, [1, 2])
    with pytest.raises(IndexError):
        rows[3]
