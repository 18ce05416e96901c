"""How long a step and each of its phases take."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Phase:
    """One timed phase; `seconds` is set when it ends."""

    seconds = 0.0


class StepClock:
    """Starts with the step."""

    def __init__(self) -> None:
        """Start now."""
        self._started_s = time.monotonic()
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[Phase]:
        """Time what is inside; a phase that comes again adds up."""
        phase, started_s = Phase(), time.monotonic()
        yield phase
        phase.seconds = time.monotonic() - started_s
        self.seconds[name] = self.seconds.get(name, 0.0) + phase.seconds

    def elapsed_s(self) -> float:
        """Since the step began."""
        return time.monotonic() - self._started_s
