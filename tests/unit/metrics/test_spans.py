"""Spans of a process, and the time that they leave."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_ray.metrics import spans as module
from rlhf_ray.metrics.spans import Span, SpanLog, idle_s, recorded


class Clock:
    now_ns = 0

    def __call__(self):
        return self.now_ns


@pytest.fixture
def clock():
    return Clock()


def test_spans_are_taken_once_with_their_labels_and_what_still_runs(clock):
    log = SpanLog(clock_ns=clock)
    with log.span("outer", draw=3) as labels:
        clock.now_ns = 5
        with log.span("inner"):
            clock.now_ns = 7
        labels["tokens"] = 10
        taken = log.take()
        clock.now_ns = 9
    assert [(one.operation, one.start_ns, one.end_ns) for one in taken.ended] == [("inner", 5, 7)]
    assert [(one.operation, one.start_ns, one.end_ns) for one in taken.running] == [("outer", 0, 7)]
    again = log.take()
    assert (taken.since_ns, taken.until_ns, again.since_ns, again.until_ns) == (0, 7, 7, 9)
    [outer] = again.ended
    assert (outer.start_ns, outer.end_ns, outer.labels) == (0, 9, {"draw": 3, "tokens": 10})
    assert not again.running


def test_what_fails_is_over_and_says_so(clock):
    log = SpanLog(clock_ns=clock)
    with pytest.raises(ValueError, match="x"), log.span("update"):
        raise ValueError("x")
    [failed] = log.take().ended
    assert failed.labels == {"failed": "ValueError"}


def test_the_newest_are_kept_and_the_others_counted():
    log = SpanLog(most=2)
    for number in range(5):
        with log.span(str(number)):
            pass
    taken = log.take()
    assert [one.operation for one in taken.ended] == ["3", "4"]
    assert taken.num_dropped == 3
    assert log.take().num_dropped == 0


def test_threads_note_side_by_side():
    log = SpanLog()

    def note():
        for _ in range(200):
            with log.span("x"):
                pass

    threads = [threading.Thread(target=note) for _ in range(4)]
    for thread in threads:
        thread.start()
    num_taken = sum(len(log.take().ended) for _ in range(50))
    for thread in threads:
        thread.join(timeout=10)
    assert num_taken + len(log.take().ended) == 800


async def test_recorded_methods_are_spans_by_their_names(monkeypatch):
    log = SpanLog()
    monkeypatch.setattr(module, "span", log.span)

    class Actor:
        @recorded
        def work(self, number: int) -> int:
            """Twice."""
            return 2 * number

        @recorded
        async def wait(self, number: int) -> int:
            return 3 * number

    assert (Actor().work(2), await Actor().wait(number=2)) == (4, 6)
    assert [one.operation for one in log.take().ended] == ["work", "wait"]
    assert (Actor.work.__name__, Actor.work.__doc__) == ("work", "Twice.")


ranges = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=8)


@given(ranges, st.integers(0, 30), st.integers(0, 30))
def test_idle_is_what_no_span_covers(found, since, length):
    spans = [
        Span(operation="x", start_ns=min(pair) * 10**9, end_ns=max(pair) * 10**9) for pair in found
    ]
    covered = {second for pair in found for second in range(min(pair), max(pair))}
    expected = len(set(range(since, since + length)) - covered)
    window = {"since_ns": since * 10**9, "until_ns": (since + length) * 10**9}
    assert idle_s(spans, **window) == expected
