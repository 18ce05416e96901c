"""A job's rows as a sequence: they lie in a table, and a record is made when it is taken.

A million rows need their table alone, on disk and mapped. What is asked of all of them (the longest
sequence, the largest token, have they changed) is answered by columns of numbers.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Generic, Literal, TypeVar, overload

import numpy as np
import numpy.typing as npt

from rlhf_ray.data.rows.records import RecordKind
from rlhf_ray.types import LabelledAnswer

T = TypeVar("T")
Numbers = npt.NDArray[Any]


class Rows(Sequence[T], ABC):
    """Records by their number."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def record(self, row: int) -> T:
        """The record of a row, from 0 to the number of rows."""

    @abstractmethod
    def numbers(self, name: str) -> Numbers:
        """A number of each row: `length`, `largest_id` or `digest` (see `RecordKind`)."""

    @overload
    def __getitem__(self, row: int) -> T: ...
    @overload
    def __getitem__(self, row: slice) -> Rows[T]: ...
    def __getitem__(self, row: int | slice) -> T | Rows[T]:
        """A record, or the rows of a slice."""
        if isinstance(row, slice):
            return SelectedRows(self, np.arange(len(self))[row])
        at = row + len(self) if row < 0 else row
        if not 0 <= at < len(self):
            raise IndexError(f"row must be below {len(self)}, got {row}")
        return self.record(at)

    @cached_property
    def digest(self) -> str:
        """Of everything that the rows say, in their order."""
        return combined(self.numbers("digest"))


class StoredRows(Rows[T]):
    """The rows of one table.

    Attributes:
        dataset: A `datasets.Dataset`.
        kind: Of its records.
    """

    def __init__(self, dataset: Any, kind: RecordKind[T]) -> None:
        """Read from `dataset`, which may be mapped."""
        self.dataset, self.kind = dataset.with_format("arrow"), kind

    def __len__(self) -> int:
        return len(self.dataset)

    def record(self, row: int) -> T:
        """Made anew each time."""
        return self.kind.record(self.dataset[row])

    def numbers(self, name: str) -> Numbers:
        """A column."""
        column: Numbers = self.dataset.data.column(name).to_numpy()
        return column


class SelectedRows(Rows[T]):
    """Some rows of others."""

    def __init__(self, rows: Rows[T], chosen: Sequence[int] | Numbers) -> None:
        """Those of `rows` that `chosen` names, in its order."""
        self.rows, self.chosen = rows, np.asarray(chosen, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.chosen)

    def record(self, row: int) -> T:
        """The record of the row that was chosen."""
        return self.rows.record(int(self.chosen[row]))

    def numbers(self, name: str) -> Numbers:
        """Of those that were chosen."""
        chosen: Numbers = self.rows.numbers(name)[self.chosen]
        return chosen


class MixedRows(Rows[T], Generic[T]):
    """Rows of several sources, each perhaps several times.

    Ids begin with the number of the source, and a row that is repeated has the number of its turn
    behind its id.
    """

    def __init__(
        self,
        sources: Sequence[Rows[T]],
        source_of: Numbers,
        taken: Numbers,
        *,
        kind: RecordKind[T],
    ) -> None:
        """Lay the rows of `sources` side by side, as `mix` draws them."""
        self.sources, self.source_of, self.taken, self.kind = sources, source_of, taken, kind

    def __len__(self) -> int:
        return len(self.source_of)

    def record(self, row: int) -> T:
        """The source's record, named after its place."""
        number = int(self.source_of[row])
        source = self.sources[number]
        turn, index = divmod(int(self.taken[row]), len(source))
        again = f"@{turn + 1}" if turn else ""
        return self.kind.of_source(source.record(index), number, again)

    def numbers(self, name: str) -> Numbers:
        """Of the sources' rows, and for digests of their places as well."""
        of_sources = [source.numbers(name) for source in self.sources]
        mixed = np.empty(len(self), dtype=of_sources[0].dtype)
        for number, values in enumerate(of_sources):
            here = self.source_of == number
            mixed[here] = values[self.taken[here] % len(values)]
        return mixed

    @cached_property
    def digest(self) -> str:
        """With each row's source and turn."""
        return combined(self.numbers("digest"), self.source_of, self.taken)


def combined(*numbers: Numbers) -> str:
    """A digest of columns of numbers."""
    digest = hashlib.blake2b(digest_size=16)
    for column in numbers:
        digest.update(np.ascontiguousarray(column).astype("<u8").tobytes())
    return digest.hexdigest()


class LinkedRows(Rows[LabelledAnswer]):
    """Each row with the answer of the next row that has another prompt, around the end.

    That answer is cut where it and the prompt would be longer than `max_length`. Where all rows
    have one prompt, a row keeps its own.
    """

    def __init__(self, rows: Rows[LabelledAnswer], *, max_length: int) -> None:
        """Link `rows`, none of which has another's answer yet."""
        self.rows, self.max_length = rows, max_length
        self.others = next_prompts(rows.numbers("prompt_key"))

    def __len__(self) -> int:
        return len(self.rows)

    def record(self, row: int) -> LabelledAnswer:
        """Made of the two rows."""
        own, other = self.rows.record(row), self.rows.record(int(self.others[row]))
        room = self.max_length - len(own.prompt_ids_T)
        return replace(own, answer_ids_K=(own.answer_ids_K[0], other.answer_ids_K[0][:room]))

    def numbers(self, name: str) -> Numbers:
        """Lengths with both answers; a digest is that of the row alone: its order tells the other.

        The other's tokens are a row's own as well, so that the largest is among those.
        """
        own = self.rows.numbers(name)
        if name != "length":
            return own
        prompt = self.rows.numbers("prompt_length")
        with_other = prompt + (own - prompt)[self.others]
        lengths: Numbers = np.maximum(own, np.minimum(with_other, self.max_length))
        return lengths


def next_prompts(prompt_keys: Numbers) -> Numbers:
    """For each row the next one, around the end, whose prompt is another; itself where none is."""
    num_rows = len(prompt_keys)
    begins = np.flatnonzero(prompt_keys != np.roll(prompt_keys, 1))
    if not len(begins):
        return np.arange(num_rows)
    # The first row of a run of equal prompts that begins behind each row.
    following = np.searchsorted(begins, np.arange(num_rows), side="right")
    return begins[following % len(begins)]


Places = npt.NDArray[np.int64]

_DRAWS = 65_536  # at a time; how many does not change what is drawn


def mix(
    num_rows_by_source: Sequence[int],
    probabilities: Sequence[float],
    *,
    until: Literal["until_all", "until_first"],
    seed: int,
) -> tuple[Places, Places]:
    """Draw a source for each place, and take that source's rows in their order, over and over.

    `until_all` ends when every source was seen whole at least once, `until_first` when any was. The
    result is a function of the arguments alone. The draws are those of
    `datasets.interleave_datasets`, which takes 50 times as long for a million places, and gives a
    data set whose rows do not know how often they came before.

    Returns:
        The source of each place, and how many of its rows came before; a number beyond its last row
        begins again at its first.
    """
    num_rows = np.array(num_rows_by_source)
    drawn: list[Places] = []
    counts = np.zeros(len(num_rows), dtype=np.int64)
    enough = np.all if until == "until_all" else np.any
    for block in draws(probabilities, seed=seed):
        drawn.append(block)
        counts += np.bincount(block, minlength=len(num_rows))
        if enough(counts >= num_rows):
            break
    source_of = np.concatenate(drawn)
    taken = np.empty_like(source_of)
    seen_whole_at = []
    for source, count in enumerate(counts):
        here = np.flatnonzero(source_of == source)
        taken[here] = np.arange(count)
        if count >= num_rows[source]:
            seen_whole_at.append(int(here[num_rows[source] - 1]))
    last = max(seen_whole_at) if until == "until_all" else min(seen_whole_at)
    return source_of[: last + 1], taken[: last + 1]


def draws(probabilities: Sequence[float], *, seed: int) -> Iterator[Places]:
    """Sources as they are drawn, without end, block by block."""
    shares = np.array(probabilities) / sum(probabilities)
    generator = np.random.Generator(np.random.PCG64(seed))
    while True:
        yield generator.choice(len(shares), size=_DRAWS, p=shares)
