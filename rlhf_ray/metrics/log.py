"""One interface to every place that metrics go."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, TypeAlias

from rlhf_ray.metrics.names import check_names

Cell: TypeAlias = str | float | int | None


@dataclass(frozen=True, kw_only=True)
class Record:
    """The metrics of one step.

    Attributes:
        step: Counts from 1; 0 is what holds before the first step.
        time_s: Seconds of running, those before a resume included.
        metrics: Values by name, in the order of names.
    """

    step: int
    time_s: float
    metrics: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows worth reading, such as sampled responses with their scores."""

    step: int
    name: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]


class Sink(Protocol):
    """A place that metrics go."""

    def log(self, record: Record) -> None:
        """Take one step's metrics."""

    def table(self, table: Table) -> None:
        """Take a table."""

    def close(self, *, failed: bool) -> None:
        """Write what is still held back; `failed` where the run ends by an error."""


class MetricsLog:
    """Hands each step to every sink, in order. Use it in a `with` block, which closes the sinks."""

    def __init__(
        self,
        sinks: Sequence[Sink],
        *,
        last_step: int = -1,
        elapsed_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Args as a resumed run has them: the last logged step and the seconds until then."""
        self._sinks = sinks
        self._last_step = last_step
        self._clock = clock
        self._start_s = clock() - elapsed_s

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log all of a step's metrics at once.

        Raises:
            ValueError: The step was logged before, or a metric's name is not documented.
        """
        if step <= self._last_step:
            raise ValueError(f"step must be above {self._last_step}, got {step}")
        check_names(metrics)
        self._last_step = step
        ordered = {name: float(metrics[name]) for name in sorted(metrics)}
        record = Record(step=step, time_s=self._clock() - self._start_s, metrics=ordered)
        for sink in self._sinks:
            sink.log(record)

    def table(self, table: Table) -> None:
        """Log a table.

        Raises:
            ValueError: A row has not as many cells as there are columns.
        """
        for row in table.rows:
            if len(row) != len(table.columns):
                raise ValueError(
                    f"a row must have {len(table.columns)} cells {table.columns}, got {len(row)}"
                )
        for sink in self._sinks:
            sink.table(table)

    def close(self, *, failed: bool = False) -> None:
        """Close every sink."""
        for sink in self._sinks:
            sink.close(failed=failed)

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close(failed=kind is not None)
