"""Traces: slices that nest as Perfetto wants them, and arrows along the way of a group."""

from collections import defaultdict

from hypothesis import given
from hypothesis import strategies as st

from rlhf_ray.metrics.spans import Span
from rlhf_ray.metrics.spans_file import WrittenSpan
from rlhf_ray.metrics.trace import trace_events


def written(operation, start, end, *, role="policy", rank=0, node="n", step=1, **labels):
    """In microseconds."""
    one = Span(operation=operation, start_ns=start * 1_000, end_ns=end * 1_000, labels=labels)
    return WrittenSpan(step=step, role=role, rank=rank, node=node, span=one)


def threads_of(events):
    """By thread the slices that it has; and its names."""
    slices, names = defaultdict(list), {}
    for event in events:
        if event["ph"] == "X":
            slices[event["pid"], event["tid"]].append(event)
        elif event["name"] == "thread_name":
            names[event["pid"], event["tid"]] = event["args"]["name"]
    return slices, names


@st.composite
def timelines(draw):
    return [
        written(
            "x",
            start := draw(st.integers(0, 50)),
            start + draw(st.integers(0, 20)),
            role=draw(st.sampled_from(["driver", "rollout", "policy"])),
            rank=draw(st.integers(0, 1)),
            **draw(st.sampled_from([{}, {"draw": 1}, {"asked": "policy"}])),
        )
        for _ in range(draw(st.integers(0, 20)))
    ]


@given(timelines())
def test_no_slices_of_a_thread_cross_and_none_is_lost(spans):
    slices, names = threads_of(trace_events(spans))
    assert sum(map(len, slices.values())) == len(spans)
    assert slices.keys() <= names.keys()
    assert len({thread for _, thread in slices}) == len(slices), "Perfetto wants them to differ"
    for (_, thread), of_thread in slices.items():
        assert thread
        for one in of_thread:
            for other in of_thread:
                begin, end = one["ts"], one["ts"] + one["dur"]
                assert not begin < other["ts"] < end < other["ts"] + other["dur"]


def test_groups_that_overlap_are_beside_each_other_and_their_parts_in_them():
    events = trace_events(
        [
            written("sample", 0, 100, role="rollout", draw=1, queued_s=1e-5, prefill_s=2e-5),
            written("sample", 10, 90, role="rollout", draw=2),
            written("fetch", 20, 30, role="rollout", draw=2),
            written("admit", 0, 5, role="rollout"),
        ]
    )
    slices, names = threads_of(events)
    told = {names[thread]: [one["name"] for one in found] for thread, found in slices.items()}
    assert told == {
        "rank 0: groups": ["sample", "queued", "prefill"],
        "rank 0: groups (2)": ["sample", "fetch"],
        "rank 0": ["admit"],
    }
    parts = {event["name"]: (event["ts"], event["dur"]) for event in events if event["ph"] == "X"}
    assert (parts["queued"], parts["prefill"]) == ((0, 10), (10, 20))


def test_roles_of_a_machine_are_processes_and_the_driver_is_the_first():
    events = trace_events(
        [
            written("update", 0, 1),
            written("step", 0, 2, role="driver"),
            written("x", 0, 1, node="m"),
        ]
    )
    processes = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert processes == {1: "driver on n", 2: "policy on m", 3: "policy on n"}


def test_arrows_lead_from_sampling_to_scores_to_the_update_that_trains_the_group():
    events = trace_events(
        [
            written("sample", 0, 10, role="rollout", draw=7),
            written("score", 12, 15, role="reward", draw=7),
            written("update", 40, 60, step=2),
            written("update", 10, 30, step=1),
            written("step", 0, 30, role="driver", step=1, draws=[6]),
            written("step", 30, 70, role="driver", step=2, draws=[7]),
        ]
    )
    arrows = [e for e in events if e["ph"] in "stf"]
    assert [(e["ph"], e["ts"], e["id"]) for e in arrows] == [
        ("s", 9, 7),
        ("t", 12, 7),
        ("f", 40, 7),
    ]
    slices, _ = threads_of(events)
    for arrow in arrows:
        assert any(
            one["ts"] <= arrow["ts"] <= one["ts"] + one["dur"]
            for one in slices[arrow["pid"], arrow["tid"]]
        )


def test_nothing_gives_an_empty_trace():
    assert trace_events([]) == []
