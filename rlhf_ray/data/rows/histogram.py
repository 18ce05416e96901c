"""Lengths in a few lines: how many rows have how many tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_STEPS = (1, 2, 5)


@dataclass(frozen=True, kw_only=True)
class Bin:
    """Rows whose length is from `first` to `last`, both included."""

    first: int
    last: int
    count: int


def histogram(lengths: Sequence[int] | npt.NDArray[np.integer], *, num_bins: int = 10) -> list[Bin]:
    """Bins of equal width, by round numbers; the last takes the longest hundredth as well.

    So a single book among short texts does not put all of them into one bin.

    Args:
        lengths: At least one.
        num_bins: About as many, and one for what is longer than those.
    """
    sorted_ = np.sort(np.asarray(lengths, dtype=np.int64))
    lowest, highest = int(sorted_[0]), int(sorted_[-1])
    most = int(np.percentile(sorted_, 99, method="higher"))
    step = _step((most - lowest + 1) / num_bins)
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
    size = 1
    while True:
        for step in _STEPS:
            if step * size >= width:
                return step * size
        size *= 10
