"""The order in which a loop takes rows: rows at hand, shuffled anew each epoch, or a stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from rlhf_ray.data.rows.records import digest_of
from rlhf_ray.data.rows.rows import Rows, combined
from rlhf_ray.data.rows.streaming import RowStream

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

TrainedRows: TypeAlias = Sequence[T] | RowStream[T]


class DataOrder(Protocol[T_co]):
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
            ValueError: It was taken from other rows, or in another order: going on would train some
                rows twice and others never.
        """


class RowsInOrder(Generic[T]):
    """Rows at hand: every row exactly once an epoch, each epoch in an order of its own.

    Which row comes at a position is a function of `(len(rows), seed, shuffle)`, so that one number,
    the position, is the whole state. It draws from no shared generator.
    """

    def __init__(self, rows: Sequence[T], *, seed: int, shuffle: bool = True) -> None:
        """Start at the first row of the first epoch; without `shuffle`, rows come as they stand.

        Raises:
            ValueError: No rows.
        """
        if not rows:
            raise ValueError(f"the data must have at least 1 row, got {len(rows)}")
        self.rows, self.seed, self.shuffle = rows, seed, shuffle
        self.position = 0
        self._epoch, self._order = -1, np.arange(0)

    @property
    def epochs(self) -> float:
        """With the share of the one that is under way."""
        return self.position / len(self.rows)

    def row_at(self, position: int) -> T:
        """The row of a position, taken or not."""
        epoch, offset = divmod(position, len(self.rows))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._order_of(epoch)
        return self.rows[int(self._order[offset])]

    def take(self, num_rows: int) -> list[T]:
        """The next rows; what an epoch cannot give, the next one does.

        Raises:
            ValueError: A negative number.
        """
        if num_rows < 0:
            raise ValueError(f"num_rows must be at least 0, got {num_rows}")
        first, self.position = self.position, self.position + num_rows
        return [self.row_at(position) for position in range(first, self.position)]

    def state_dict(self) -> Mapping[str, Any]:
        """The state, in plain numbers."""
        return {
            "num_rows": len(self.rows),
            "seed": self.seed,
            "shuffle": self.shuffle,
            "position": self.position,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where `state` was taken; see `DataOrder`."""
        for name, value in self.state_dict().items():
            if name != "position" and state.get(name) != value:
                raise ValueError(
                    f"the data order to resume has {name} {state.get(name)!r}, "
                    f"this run's data has {value!r}"
                )
        position = state.get("position")
        if not isinstance(position, int) or position < 0:
            raise ValueError(f"position must be a number of rows, got {position!r}")
        self.position = position

    def _order_of(self, epoch: int) -> npt.NDArray[np.int64]:
        if not self.shuffle:
            return np.arange(len(self.rows))
        generator = np.random.Generator(np.random.PCG64([self.seed, epoch]))
        return generator.permutation(len(self.rows))


def order_of(rows: TrainedRows[T], *, seed: int, shuffle: bool) -> DataOrder[T]:
    """The order in which a loop takes `rows`; a stream has its own."""
    if isinstance(rows, RowStream):
        return rows
    return RowsInOrder(rows, seed=seed, shuffle=shuffle)


def first_of(rows: TrainedRows[T], num_rows: int) -> list[T]:
    """The first rows as they come; looking at them takes none of a stream."""
    return rows.first(num_rows) if isinstance(rows, RowStream) else list(rows[:num_rows])


def digest_of_rows(rows: TrainedRows[Any]) -> str:
    """Of everything that rows say, in their order; of a stream, of what decides about them."""
    if isinstance(rows, Rows | RowStream):
        return rows.digest
    return combined(np.array([digest_of(row) for row in rows], dtype=np.uint64))
