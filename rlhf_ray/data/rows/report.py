"""What became of a data set's rows: every one is kept, or counted under the reason why not.

And how many of those that are kept have how many tokens.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rlhf_ray.data.rows.rows import Rows
from rlhf_ray.errors import DataError, RowError, UnusableRow

logger = logging.getLogger(__name__)

_NUM_BINS = 10  # of a histogram

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Converted:
    """What became of some rows that follow one another.

    Attributes:
        num_rows: How many they were.
        table: Records of those that are kept.
        num_truncated: Of these.
        num_pieces: Of these, how many are pieces of longer texts.
        errors: What is wrong with the others, in their order.
        end: What ends the data set here, behind all of these; None where nothing does.
    """

    num_rows: int
    table: pa.Table
    num_truncated: int = 0
    num_pieces: int = 0
    errors: list[RowError] = field(default_factory=list)
    end: DataError | None = None


@dataclass(kw_only=True)
class LeftOut:
    """Rows left out for one reason: how many, and which came first."""

    count: int = 0
    first: str = ""


@dataclass(kw_only=True)
class RowReport:
    """Counts of one data set, or of several together.

    What is counted are examples: a malformed row is one, a row that holds several is as many.
    Always `num_read == num_kept + num_left_out`.

    Attributes:
        data: The data set, for messages.
        format: Its format and columns.
        num_pieces: Of those kept, how many are pieces of longer texts.
        left_out: By reason.
    """

    data: str
    format: str = ""
    num_read: int = 0
    num_kept: int = 0
    num_truncated: int = 0
    num_pieces: int = 0
    left_out: dict[str, LeftOut] = field(default_factory=dict)

    @property
    def num_left_out(self) -> int:
        """For any reason."""
        return sum(reason.count for reason in self.left_out.values())

    def count(self, part: Converted, *, skip: bool) -> None:
        """Count what became of some rows; without `skip` a malformed one is an error.

        Raises:
            DataError: A row is malformed and not to be skipped, or ends the data set.
        """
        for error in part.errors:
            self.leave_out(error, skip=skip)
        if part.end is not None:
            raise part.end
        self.num_read += len(part.table)
        self.num_kept += len(part.table)
        self.num_truncated += part.num_truncated
        self.num_pieces += part.num_pieces

    def leave_out(self, error: RowError, *, skip: bool) -> None:
        """Count what cannot be used; without `skip` a malformed row is an error.

        Raises:
            RowError: The row is malformed and not to be skipped.
        """
        if not (skip or isinstance(error, UnusableRow)):
            raise error
        self.num_read += 1
        reason = self.left_out.setdefault(error.reason, LeftOut())
        reason.count += 1
        reason.first = reason.first or ": ".join(filter(None, (error.where, error.detail)))

    def close(self, note: str = "") -> None:
        """Say in one line what was read.

        Raises:
            DataError: Nothing is left.
        """
        if not self.num_kept:
            raise DataError(f"{self.data}: no row of {self.num_read} is left{self._reasons()}")
        self.log(note)

    def log(self, note: str = "") -> None:
        """Say in one line what was read so far."""
        counts = f"{self.num_read} rows{note}"
        if self.left_out:
            counts = f"{self.num_read} read{note}, {self.num_kept} kept"
        if self.num_truncated:
            counts += f", {self.num_truncated} truncated"
        if self.num_pieces:
            counts += f", {self.num_pieces} pieces of longer texts"
        level = logging.WARNING if self.left_out or self.num_truncated else logging.INFO
        logger.log(level, "%s: %s, %s%s", self.data, self.format, counts, self._reasons())

    def _reasons(self) -> str:
        if not self.left_out:
            return ""
        reasons = [
            f"{reason.count} {name} (first {reason.first})"
            for name, reason in sorted(self.left_out.items(), key=lambda item: -item[1].count)
        ]
        return "; left out: " + ", ".join(reasons)


@dataclass(frozen=True, kw_only=True)
class Loaded(Generic[T]):
    """Rows that are ready for a job, and what became of those that were read for them."""

    rows: Rows[T]
    report: RowReport


def merged(reports: Sequence[RowReport], data: str) -> RowReport:
    """The counts of several data sets together."""
    whole = RowReport(data=data, format=", ".join(dict.fromkeys(each.format for each in reports)))
    for report in reports:
        for name in ("num_read", "num_kept", "num_truncated", "num_pieces"):
            setattr(whole, name, getattr(whole, name) + getattr(report, name))
        for name, reason in report.left_out.items():
            total = whole.left_out.setdefault(name, LeftOut())
            total.count += reason.count
            total.first = total.first or reason.first
    return whole


@dataclass(frozen=True, kw_only=True)
class Bin:
    """Rows whose length is from `first` to `last`, both included."""

    first: int
    last: int
    count: int


def histogram(lengths: Sequence[int] | npt.NDArray[np.integer]) -> list[Bin]:
    """Some ten bins of equal width, by round numbers; the last takes the longest hundredth as well.

    So a single book among short texts does not put all of them into one bin.
    """
    sorted_ = np.sort(np.asarray(lengths, dtype=np.int64))
    lowest, highest = int(sorted_[0]), int(sorted_[-1])
    most = int(np.percentile(sorted_, 99, method="higher"))
    step = _step((most - lowest + 1) / _NUM_BINS)
    firsts = list(range(lowest // step * step, most + 1, step))
    end = firsts[-1] + step
    if highest >= end:
        firsts.append(end)
    behind = [*firsts[1:], highest + 1]
    counts = np.diff(np.searchsorted(sorted_, [firsts[0], *behind]))
    return [
        Bin(first=first, last=stop - 1, count=int(count))
        for first, stop, count in zip(firsts, behind, counts, strict=True)
    ]


def _step(width: float) -> int:
    """The next of 1, 2, 5, 10, 20, 50, ..."""
    steps = (step * int(10**power) for power in itertools.count() for step in (1, 2, 5))
    return next(step for step in steps if step >= width)
