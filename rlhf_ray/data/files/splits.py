"""Split expressions of local files, as `datasets` writes them: `train[:500]`, `train[10%:20%]`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from rlhf_ray.data.errors import DataError

_BOUND = r"(-?\d+%?)?"
_PART = re.compile(rf"(?P<name>\w+(\.\w+)*)(\[(?P<start>{_BOUND}):(?P<stop>{_BOUND})\])?")


@dataclass(frozen=True, kw_only=True)
class RowRange:
    """Some rows of a split; a bound is a number of rows or, with `%`, a share of them.

    Example: `RowRange(split="train", start="10%", stop="-50")`. An empty bound is the split's own.
    """

    split: str
    start: str
    stop: str

    @property
    def needs_count(self) -> bool:
        """Whether it takes the number of all rows to tell which these are."""
        return any(bound.startswith("-") or bound.endswith("%") for bound in self._bounds)

    def resolve(self, num_rows: int) -> tuple[int, int]:
        """First row, and the one after the last; `num_rows` is not used without `needs_count`."""
        return (
            _absolute(self.start, num_rows) if self.start else 0,
            _absolute(self.stop, num_rows) if self.stop else num_rows,
        )

    @property
    def _bounds(self) -> tuple[str, str]:
        return self.start, self.stop


def parse_split(split: str) -> list[RowRange]:
    """The ranges of a local data set, which follow one another; a name alone is all of a split.

    Raises:
        DataError: Not an expression, or a share beyond 100 %.
    """
    ranges = []
    for part in split.split("+"):
        match = _PART.fullmatch(part.strip())
        if match is None:
            raise DataError(
                "split must be like train, train[:500], train[10%:20%], train[-50:] or several "
                f"of them joined by '+', got {split!r}"
            )
        bounds = (match["start"] or "", match["stop"] or "")
        if any(bound.endswith("%") and abs(int(bound[:-1])) > 100 for bound in bounds):
            raise DataError(f"a share in split must be at most 100%, got {split!r}")
        ranges.append(RowRange(split=match["name"], start=bounds[0], stop=bounds[1]))
    return ranges


def _absolute(bound: str, num_rows: int) -> int:
    share = bound.endswith("%")
    row = round(int(bound[:-1]) * num_rows / 100) if share else int(bound)
    return max(0, row + num_rows) if bound.startswith("-") else row
