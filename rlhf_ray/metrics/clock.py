"""How long a step and each of its phases take."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rlhf_ray.metrics.spans import ProcessSpans, Span, of_driver, span


class Phase:
    """One timed phase; `seconds` is set when it ends."""

    seconds = 0.0


class StepClock:
    """Starts with the step."""

    def __init__(self) -> None:
        """Start now."""
        self._started_ns = time.monotonic_ns()
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[Phase]:
        """Time what is inside, which is a span; a phase that comes again adds up."""
        phase, started_s = Phase(), time.monotonic()
        with span(name):
            yield phase
        phase.seconds = time.monotonic() - started_s
        self.seconds[name] = self.seconds.get(name, 0.0) + phase.seconds

    def elapsed_s(self) -> float:
        """Since the step began."""
        return (time.monotonic_ns() - self._started_ns) / 1e9

    def whole(self, **labels: Any) -> ProcessSpans:
        """The step so far, as a span."""
        end_ns = time.monotonic_ns()
        step = Span(operation="step", start_ns=self._started_ns, end_ns=end_ns, labels=labels)
        return of_driver([step])
