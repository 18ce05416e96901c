"""Spans: what a process did, from when to when. Those of all processes are a run's timeline.

`span` goes around whatever is worth one, in any thread or coroutine of any process. The process
keeps what ended until it is collected: `actors/pool/usage.py` does that after each step. A span
costs a few microseconds; where nobody collects, the oldest ones are dropped.
"""

from __future__ import annotations

import functools
import inspect
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

M = TypeVar("M", bound=Callable[..., Any])

# A label of spans in which the driver waits for a role: its name.
ASKED = "asked"
# Of one process between two steps: 15 MB, and more than 10,000 groups need in the driver.
MOST_SPANS = 65_536


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """Something that a process did, by a monotonic clock.

    Example: `Span(operation="sample", start_ns=5_000, end_ns=9_000, labels={"draw": 17})`.

    Attributes:
        operation: What was done.
        labels: What tells it from others of its kind; plain data.
    """

    operation: str
    start_ns: int
    end_ns: int
    labels: Mapping[str, Any] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """How long it took."""
        return (self.end_ns - self.start_ns) / 1e9

    def earlier(self, by_ns: int) -> Span:
        """The same by a clock that is behind."""
        return replace(self, start_ns=self.start_ns - by_ns, end_ns=self.end_ns - by_ns)


@dataclass(frozen=True, kw_only=True)
class ProcessSpans:
    """Spans of one process, by the driver's clock.

    Attributes:
        role: What the process is: `driver`, or the name of a role.
        rank: Its number in the role.
        node: The name of its machine.
    """

    role: str
    rank: int
    node: str
    spans: Sequence[Span]


@dataclass(frozen=True, kw_only=True)
class Taken:
    """What a process did in a window of time.

    Attributes:
        since_ns: When this was asked before; where it never was, when the process began to note.
        until_ns: Now.
        ended: What has ended since.
        running: What has not; as if it ended now.
        num_dropped: Spans that there was no room for.
    """

    since_ns: int
    until_ns: int
    ended: Sequence[Span]
    running: Sequence[Span]
    num_dropped: int


class SpanLog:
    """The spans of one process.

    Any threads may note and take: all that they share is changed by single calls, without a lock.
    """

    def __init__(
        self, *, clock_ns: Callable[[], int] = time.monotonic_ns, most: int = MOST_SPANS
    ) -> None:
        """Nothing noted so far; of more than `most` the newest are kept."""
        self._clock_ns = clock_ns
        self._ended: deque[Span] = deque(maxlen=most)
        self._running: dict[object, tuple[str, int, dict[str, Any]]] = {}
        self._since_ns, self._num_dropped = clock_ns(), 0

    @contextmanager
    def span(self, operation: str, **labels: Any) -> Iterator[dict[str, Any]]:
        """What is inside is a span; `failed` is a label of one that raises.

        What comes are its labels, to add to.
        """
        key, start_ns = object(), self._clock_ns()
        self._running[key] = operation, start_ns, labels
        try:
            yield labels
        except BaseException as error:
            labels["failed"] = type(error).__name__
            raise
        finally:
            ended = Span(
                operation=operation, start_ns=start_ns, end_ns=self._clock_ns(), labels=labels
            )
            del self._running[key]
            self._num_dropped += len(self._ended) == self._ended.maxlen
            self._ended.append(ended)

    def take(self) -> Taken:
        """What was noted since this was asked before, which is forgotten."""
        until_ns, running = self._clock_ns(), list(self._running.values())
        taken = Taken(
            since_ns=self._since_ns,
            until_ns=until_ns,
            ended=[self._ended.popleft() for _ in range(len(self._ended))],
            running=[
                Span(operation=operation, start_ns=start_ns, end_ns=until_ns, labels=labels)
                for operation, start_ns, labels in running
            ],
            num_dropped=self._num_dropped,
        )
        self._since_ns, self._num_dropped = until_ns, 0
        return taken


# Of this process.
PROCESS = SpanLog()
span = PROCESS.span


def recorded(method: M) -> M:
    """Make each call of a function or coroutine a span that has its name."""
    name = method.__name__
    if inspect.iscoroutinefunction(method):

        @functools.wraps(method)
        async def record(*arguments: Any, **keywords: Any) -> Any:
            with span(name):
                return await method(*arguments, **keywords)

    else:

        @functools.wraps(method)
        def record(*arguments: Any, **keywords: Any) -> Any:
            with span(name):
                return method(*arguments, **keywords)

    return record  # type: ignore[return-value]


def of_driver(spans: Sequence[Span]) -> ProcessSpans:
    """Spans of this process, which is the driver."""
    return ProcessSpans(role="driver", rank=0, node=os.uname().nodename, spans=spans)


def idle_s(spans: Iterable[Span], *, since_ns: int, until_ns: int) -> float:
    """Seconds of a window in which there is none of some spans, which may overlap."""
    idle_ns, seen_ns = 0, since_ns
    for one in sorted(spans, key=lambda one: one.start_ns):
        idle_ns += max(0, min(one.start_ns, until_ns) - seen_ns)
        seen_ns = max(seen_ns, one.end_ns)
    return (idle_ns + max(0, until_ns - seen_ns)) / 1e9
