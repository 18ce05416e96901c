"""What a loop takes rows from: rows at hand in a resumable order, or a stream of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

import numpy as np

from rlhf_ray.data.loader import ResumableOrder
from rlhf_ray.data.rows.records import digest_of
from rlhf_ray.data.rows.rows import Rows, combined
from rlhf_ray.data.rows.streaming import RowStream

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

TrainedRows: TypeAlias = Sequence[T] | RowStream[T]


class Feed(Protocol[T_co]):
    """Endless rows, each exactly once an epoch; its state goes into a checkpoint."""

    @property
    def position(self) -> int:
        """Rows taken so far, over all epochs."""

    @property
    def epochs(self) -> float:
        """Epochs so far; of a stream only whole ones are known."""

    def take(self, num_rows: int) -> Sequence[T_co]:
        """The next rows."""

    def state_dict(self) -> Mapping[str, Any]:
        """The state, in plain numbers and text."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where `state` was taken.

        Raises:
            ValueError: It was taken from other rows, or in another order.
        """


class OrderedFeed(Generic[T]):
    """Rows at hand, in an order."""

    def __init__(self, rows: Sequence[T], order: ResumableOrder) -> None:
        """Take `rows` by the numbers that `order` gives."""
        self.rows, self.order = rows, order

    @property
    def position(self) -> int:
        """Rows taken so far."""
        return self.order.position

    @property
    def epochs(self) -> float:
        """With the share of the one that is under way."""
        return self.order.position / self.order.num_rows

    def take(self, num_rows: int) -> list[T]:
        """The next rows."""
        return [self.rows[row] for row in self.order.take(num_rows)]

    def state_dict(self) -> Mapping[str, Any]:
        """The order's."""
        return self.order.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `ResumableOrder`."""
        self.order.load_state_dict(state)


def feed_of(rows: TrainedRows[T], *, seed: int, shuffle: bool) -> Feed[T]:
    """What a loop takes its rows from; a stream has its own order."""
    if isinstance(rows, RowStream):
        return rows
    return OrderedFeed(rows, ResumableOrder(len(rows), seed=seed, shuffle=shuffle))


def first_of(rows: TrainedRows[T], num_rows: int) -> list[T]:
    """The first rows as they come; looking at them takes none of a stream."""
    return rows.first(num_rows) if isinstance(rows, RowStream) else list(rows[:num_rows])


def digest_of_rows(rows: TrainedRows[Any]) -> str:
    """Of everything that rows say, in their order; of a stream, of what decides about them."""
    if isinstance(rows, Rows | RowStream):
        return rows.digest
    return combined(np.array([digest_of(row) for row in rows], dtype=np.uint64))
