"""One interface to every place that metrics go, where each step stands once.

A run that goes back to a checkpoint, in its process or in a later one, does steps again. Sinks that
can take them back do so; the others are not given again what they have.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Protocol, TypeAlias

from rlhf_ray.disk import room_for
from rlhf_ray.metrics.names import check_names
from rlhf_ray.metrics.spans import ProcessSpans
from rlhf_ray.metrics.spans_file import SpansFile

Cell: TypeAlias = str | float | int | None


@dataclass(frozen=True, kw_only=True)
class Record:
    """The metrics of one step.

    Attributes:
        step: Counts from 1; 0 is what holds before the first step.
        time_s: Seconds of running, those before a resume included.
        metrics: Values by name, in the order of names.
        warnings: Of those that are worth one, by name: what to say.
    """

    step: int
    time_s: float
    metrics: Mapping[str, float]
    warnings: Mapping[str, str] = field(default_factory=dict)


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


class RewindableSink(Sink, Protocol):
    """One that a run may go back with."""

    def rewind(self, last_step: int) -> None:
        """Steps after `last_step` come again."""


class AppendOnly:
    """A sink that can take nothing back: each step and each table of a name reaches it once.

    It is written down first and handed on then: where a process is killed in between, the sink
    lacks a step, and never has one twice.
    """

    def __init__(self, sink: Sink, *, memory: Path | None = None) -> None:
        """Hand on to `sink`; what it has is kept in the file `memory`, for later processes."""
        self._sink, self._memory = sink, memory
        self._last_step: dict[str, int] = {}
        if memory is not None and memory.exists():
            self._last_step = json.loads(memory.read_text(encoding="utf-8"))

    def log(self, record: Record) -> None:
        """Hand on a step that is new."""
        if self._is_new("metrics", record.step):
            self._sink.log(record)

    def table(self, table: Table) -> None:
        """Hand on a table of a step that is new for its name."""
        if self._is_new(f"samples/{table.name}", table.step):
            self._sink.table(table)

    def rewind(self, last_step: int) -> None:
        """What the sink has it keeps."""

    def close(self, *, failed: bool) -> None:
        """Close the sink."""
        self._sink.close(failed=failed)

    def _is_new(self, what: str, step: int) -> bool:
        if step <= self._last_step.get(what, -1):
            return False
        self._last_step[what] = step
        if self._memory is not None:
            aside = self._memory.with_suffix(".tmp")
            with room_for("metrics", aside), aside.open("w", encoding="utf-8") as file:
                json.dump(self._last_step, file)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(self._memory)
        return True


class MetricsLog:
    """Hands each step to every sink, in order. Use it in a `with` block, which closes the sinks."""

    def __init__(
        self,
        sinks: Sequence[RewindableSink],
        *,
        timeline: SpansFile | None = None,
        last_step: int = -1,
        elapsed_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Args as a resumed run has them: the last logged step and the seconds until then."""
        self._sinks, self._timeline = sinks, timeline
        self._last_step = last_step
        self._clock = clock
        self._start_s = clock() - elapsed_s

    @property
    def last_step(self) -> int:
        """The last that was logged; -1 before the first."""
        return self._last_step

    def log(
        self, step: int, metrics: Mapping[str, float], warnings: Mapping[str, str] | None = None
    ) -> None:
        """Log all of a step's metrics at once, with what is to be said of some.

        Raises:
            ValueError: The step was logged before, or a metric's name is not documented.
        """
        if step <= self._last_step:
            raise ValueError(f"step must be above {self._last_step}, got {step}")
        check_names(metrics)
        self._last_step = step
        ordered = {name: float(metrics[name]) for name in sorted(metrics)}
        record = Record(
            step=step,
            time_s=self._clock() - self._start_s,
            metrics=ordered,
            warnings=warnings or {},
        )
        for sink in self._sinks:
            sink.log(record)

    def rewind(self, last_step: int) -> None:
        """Go back to a step that was logged: those after it are done, and logged, again.

        Raises:
            ValueError: It was not.
        """
        if last_step > self._last_step:
            raise ValueError(f"last_step must be at most {self._last_step}, got {last_step}")
        self._last_step = last_step
        for sink in self._sinks:
            sink.rewind(last_step)
        if self._timeline is not None:
            self._timeline.rewind(last_step)

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

    def spans(self, step: int, processes: Sequence[ProcessSpans]) -> None:
        """Keep what was collected after a step, where the run has a timeline."""
        if self._timeline is not None:
            self._timeline.write(step, processes)

    def close(self, *, failed: bool = False) -> None:
        """Close every sink."""
        if self._timeline is not None:
            self._timeline.close()
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
