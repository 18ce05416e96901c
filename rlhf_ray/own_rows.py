"""The rows of a plan as one rank gets them: its own, and of all others no more than their length.

A batch of thousands of long rows is hundreds of megabytes, of which one rank of many works on a
few. What it knows of the others is what plans are cut by, so that all ranks cut alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Protocol, TypeVar, overload

import numpy as np
import numpy.typing as npt

from rlhf_ray.packing import UpdatePlan


class Countable(Protocol):
    """A row, as far as plans know it."""

    @property
    def num_tokens(self) -> int: ...  # noqa: D102


Row = TypeVar("Row", bound=Countable)


@dataclass(frozen=True, kw_only=True, slots=True)
class OtherRow:
    """A row that another rank works on."""

    num_tokens: int


@dataclass(frozen=True, kw_only=True, eq=False)
class OwnRows(Sequence[Row | OtherRow]):
    """All B rows of a plan in their order, as one rank has them.

    Example: `OwnRows(own={1: row}, lengths_B=np.array([7, 5, 9]))` is
    `[OtherRow(num_tokens=7), row, OtherRow(num_tokens=9)]`.

    Attributes:
        own: The rank's rows, by their numbers in the plan.
        lengths_B: Tokens of every row.
    """

    own: Mapping[int, Row]
    lengths_B: npt.NDArray[np.int32]

    def __len__(self) -> int:
        """Of the whole plan."""
        return len(self.lengths_B)

    @overload
    def __getitem__(self, row: int) -> Row | OtherRow: ...

    @overload
    def __getitem__(self, row: slice) -> list[Row | OtherRow]: ...

    def __getitem__(self, row: int | slice) -> Row | OtherRow | list[Row | OtherRow]:
        """A row, or what stands for one that is not here."""
        if isinstance(row, slice):
            return [self[number] for number in range(*row.indices(len(self)))]
        if row in self.own:
            return self.own[row]
        return OtherRow(num_tokens=int(self.lengths_B[row]))


def dealt(rows_B: Sequence[Row], plan: UpdatePlan) -> list[OwnRows[Row]]:
    """What each rank of a plan is to get of its rows: those of any of its optimiser steps."""
    numbers_by_rank: list[set[int]] = [set() for _ in range(plan.num_ranks)]
    for minibatch in plan.minibatches:
        for numbers, micro_batches in zip(
            numbers_by_rank, minibatch.micro_batches_by_rank, strict=True
        ):
            numbers.update(chain.from_iterable(micro_batches))
    lengths_B = np.array([row.num_tokens for row in rows_B], dtype=np.int32)
    return [
        OwnRows(own={row: rows_B[row] for row in sorted(numbers)}, lengths_B=lengths_B)
        for numbers in numbers_by_rank
    ]


def own_of(rows: Sequence[Row | OtherRow], numbers: Sequence[int]) -> list[Row]:
    """Rows by their numbers.

    Raises:
        ValueError: One of them is another rank's.
    """
    own: list[Row] = []
    for number in numbers:
        row = rows[number]
        if isinstance(row, OtherRow):
            raise ValueError(f"row {number} must be one of this rank's, got another rank's")
        own.append(row)
    return own
