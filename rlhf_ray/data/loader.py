"""The order in which rows are trained, which a resumed run takes up where it was left."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypedDict

import numpy as np
import numpy.typing as npt


class OrderState(TypedDict):
    """What a checkpoint holds of a `ResumableOrder`."""

    num_rows: int
    seed: int
    shuffle: bool
    position: int


class ResumableOrder:
    """Endless row indices: every row exactly once an epoch, each epoch in an order of its own.

    The order is a function of `(num_rows, seed, shuffle)`, so that one number, the position, is the
    whole state. It holds nothing of the epochs before and draws from no shared generator.
    """

    def __init__(self, num_rows: int, *, seed: int, shuffle: bool = True) -> None:
        """Start at the first row of the first epoch.

        Args:
            num_rows: Rows of the data set.
            seed: Of all epochs' orders.
            shuffle: False goes through the rows as they stand.

        Raises:
            ValueError: No rows.
        """
        if num_rows < 1:
            raise ValueError(f"num_rows must be at least 1, got {num_rows}")
        self._num_rows = num_rows
        self._seed = seed
        self._shuffle = shuffle
        self._position = 0
        self._order = self._order_of(0)

    @property
    def num_rows(self) -> int:
        """Rows of the data set."""
        return self._num_rows

    @property
    def position(self) -> int:
        """Rows taken so far, over all epochs."""
        return self._position

    @property
    def epoch(self) -> int:
        """Epochs completed."""
        return self._position // self._num_rows

    def take(self, num_rows: int) -> list[int]:
        """The next row indices; what an epoch cannot give, the next one does.

        Raises:
            ValueError: A negative number.
        """
        if num_rows < 0:
            raise ValueError(f"num_rows must be at least 0, got {num_rows}")
        taken: list[int] = []
        while len(taken) < num_rows:
            offset = self._position % self._num_rows
            rows = self._order[offset : offset + num_rows - len(taken)]
            taken.extend(rows.tolist())
            self._position += len(rows)
            if self._position % self._num_rows == 0:
                self._order = self._order_of(self.epoch)
        return taken

    def state_dict(self) -> OrderState:
        """The state, in plain numbers."""
        return OrderState(
            num_rows=self._num_rows, seed=self._seed, shuffle=self._shuffle, position=self._position
        )

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Go on from where `state` was taken.

        Raises:
            ValueError: It was taken from another data set, seed or order: going on would train some
                rows twice and others never.
        """
        own = self.state_dict()
        for name, value in (
            ("num_rows", own["num_rows"]),
            ("seed", own["seed"]),
            ("shuffle", own["shuffle"]),
        ):
            if state.get(name) != value:
                raise ValueError(
                    f"the data order to resume has {name} {state.get(name)!r}, "
                    f"this run's data has {value!r}"
                )
        position = state.get("position")
        if not isinstance(position, int) or position < 0:
            raise ValueError(f"position must be a number of rows, got {position!r}")
        self._position = position
        self._order = self._order_of(self.epoch)

    def _order_of(self, epoch: int) -> npt.NDArray[np.int64]:
        if not self._shuffle:
            return np.arange(self._num_rows)
        return np.random.Generator(np.random.PCG64([self._seed, epoch])).permutation(self._num_rows)
