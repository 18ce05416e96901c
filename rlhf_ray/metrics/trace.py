"""A timeline as Perfetto and chrome://tracing open it: the JSON of Chrome's trace events.

A role on a machine is a process of the picture, a rank a thread. What overlaps in a rank, as an
engine's groups do, is on threads side by side. Arrows lead from the sampling of a group to its
score, and from there to the update that trains it.

The format is Chrome's "Trace Event Format", in microseconds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from rlhf_ray.metrics.spans import ASKED, Span
from rlhf_ray.metrics.spans_file import WrittenSpan

Event: TypeAlias = dict[str, Any]

# The first ones from above; others follow by their names.
ROLES = (
    *("driver", "rollout", "reward", "reward_worker"),
    *("policy", "value", "reference", "experience"),
)
# What a group passes in an engine, by the label that says how long.
_PARTS = {"queued_s": "queued", "prefill_s": "prefill", "decode_s": "decode"}


@dataclass(kw_only=True)
class _Thread:
    """Slices that lie in one another or apart, and never cross.

    Attributes:
        whose: The group of those that are open, where they are of one.
        ends_ns: Of these, the outermost first.
    """

    number: int
    whose: Any = None
    ends_ns: list[int] = field(default_factory=list)

    def takes(self, one: Span) -> bool:
        """Whether a span fits, which begins no earlier than those before."""
        while self.ends_ns and self.ends_ns[-1] <= one.start_ns:
            self.ends_ns.pop()
        whose = one.labels.get("draw")
        if self.ends_ns and (
            ASKED in one.labels or whose != self.whose or one.end_ns > self.ends_ns[-1]
        ):
            return False
        self.whose = whose
        self.ends_ns.append(one.end_ns)
        return True


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where a span is drawn."""

    written: WrittenSpan
    process: int
    thread: int


def trace_events(spans: Iterable[WrittenSpan]) -> list[Event]:
    """The events of a trace, which begins with the first span."""
    ordered = sorted(spans, key=lambda one: (one.span.start_ns, -one.span.end_ns))
    if not ordered:
        return []
    began_ns = ordered[0].span.start_ns
    events: list[Event] = []
    places = list(_placed(ordered, events))
    for place in places:
        events += _slices(place, began_ns)
    return events + list(_arrows(places, began_ns))


def role_order(role: str) -> tuple[int, str]:
    """What roles are sorted by."""
    return ROLES.index(role) if role in ROLES else len(ROLES), role


def _placed(ordered: Sequence[WrittenSpan], events: list[Event]) -> Iterator[_Place]:
    """Each span on the first thread of its row that has room; the names go to `events`."""
    processes: dict[tuple[str, str], int] = {}
    for role, node in sorted(
        {(one.role, one.node) for one in ordered}, key=lambda name: (*role_order(name[0]), name[1])
    ):
        number = processes[role, node] = len(processes) + 1
        events.append(_name("process_name", number, 0, name=f"{role} on {node}"))
        events.append(_name("process_sort_index", number, 0, sort_index=number))
    rows: dict[tuple[int, str], list[_Thread]] = defaultdict(list)
    num_threads = 0  # over all processes: Perfetto takes their numbers for the machine's
    for one in ordered:
        process, row = processes[one.role, one.node], _row_of(one)
        threads = rows[process, row]
        thread = next((each for each in threads if each.takes(one.span)), None)
        if thread is None:
            num_threads += 1
            thread = _Thread(number=num_threads)
            thread.takes(one.span)
            threads.append(thread)
            name = row if len(threads) == 1 else f"{row} ({len(threads)})"
            events.append(_name("thread_name", process, thread.number, name=name))
        yield _Place(written=one, process=process, thread=thread.number)


def _row_of(one: WrittenSpan) -> str:
    """The threads that a span is on."""
    labels = one.span.labels
    if ASKED in labels:
        return f"waits for {labels[ASKED]}"
    if one.role == "driver":
        return "loop"
    return f"rank {one.rank}: groups" if "draw" in labels else f"rank {one.rank}"


def _slices(place: _Place, began_ns: int) -> Iterator[Event]:
    one, written = place.written.span, place.written
    yield {
        "ph": "X",
        "name": f"{one.operation} {written.step}" if one.operation == "step" else one.operation,
        "cat": written.role,
        "pid": place.process,
        "tid": place.thread,
        "ts": _us(one.start_ns - began_ns),
        "dur": _us(one.end_ns - one.start_ns),
        "args": {"collected after step": written.step, **one.labels},
    }
    start_ns = one.start_ns
    for label, name in _PARTS.items():
        if label in one.labels:
            end_ns = min(one.end_ns, start_ns + round(one.labels[label] * 1e9))
            yield {
                "ph": "X",
                "name": name,
                "cat": written.role,
                "pid": place.process,
                "tid": place.thread,
                "ts": _us(start_ns - began_ns),
                "dur": _us(end_ns - start_ns),
            }
            start_ns = end_ns


def _arrows(places: Sequence[_Place], began_ns: int) -> Iterator[Event]:
    """From the sampling of each trained group to its score and to the update of its step."""
    sampled, scored = _of_draws(places, "sample"), _of_draws(places, "score")
    updates = {
        place.written.step: place
        for place in places
        if (place.written.role, place.written.rank) == ("policy", 0)
        and place.written.span.operation == "update"
    }
    for place in places:
        update = updates.get(place.written.step)
        if update is None or place.written.span.operation != "step":
            continue
        for draw in place.written.span.labels.get("draws", ()):
            way = [sampled.get(draw), scored.get(draw), update]
            stations = [station for station in way if station is not None]
            for number, station in enumerate(stations):
                last = number == len(stations) - 1
                phase = "s" if not number else "f" if last else "t"
                if len(stations) > 1:
                    yield _arrow(station, phase, draw, began_ns)


def _of_draws(places: Sequence[_Place], operation: str) -> Mapping[int, _Place]:
    return {
        place.written.span.labels["draw"]: place
        for place in places
        if place.written.span.operation == operation and "draw" in place.written.span.labels
    }


def _arrow(place: _Place, phase: str, draw: int, began_ns: int) -> Event:
    one = place.written.span
    # An arrow belongs to the slice that is there then: an end is no longer in it.
    at_ns = max(one.start_ns, one.end_ns - 1_000) if phase == "s" else one.start_ns
    event = {
        "ph": phase,
        "id": draw,
        "name": "group",
        "cat": "groups",
        "pid": place.process,
        "tid": place.thread,
        "ts": _us(at_ns - began_ns),
    }
    return event | ({"bp": "e"} if phase == "f" else {})


def _name(kind: str, process: int, thread: int, **what: Any) -> Event:
    return {"ph": "M", "name": kind, "pid": process, "tid": thread, "args": what}


def _us(ns: int) -> float:
    return round(ns / 1e3, 3)
