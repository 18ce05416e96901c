"""`spans.jsonl`: what is written is read, goes back with the run, and has its bound."""

import json
import time

from rlhf_ray.metrics.spans import ProcessSpans, Span
from rlhf_ray.metrics.spans_file import SpansFile, read_spans

LAST = 10**9


def did(*operations, role="policy", rank=0, labels=None):
    spans = [
        Span(
            operation=name,
            start_ns=number * 10**9,
            end_ns=number * 10**9 + 1_500_000,
            labels=labels or {},
        )
        for number, name in enumerate(operations)
    ]
    return [ProcessSpans(role=role, rank=rank, node="n", spans=spans)]


def steps_in(folder, **window):
    return [one.step for one in read_spans(folder, **{"first_step": 0, "last_step": LAST} | window)]


def test_a_span_is_a_line_by_the_wall_clock(tmp_path):
    now_ns = time.monotonic_ns()
    file = SpansFile(tmp_path, most_bytes=10**6)
    one = Span(operation="sample", start_ns=now_ns, end_ns=now_ns + 2_500_000, labels={"draw": 4})
    file.write(3, [ProcessSpans(role="rollout", rank=1, node="n", spans=[one])])
    file.close()
    [line] = (tmp_path / "spans.jsonl").read_text().splitlines()
    row = json.loads(line)
    assert abs(row.pop("start_s") - time.time()) < 10
    assert row == {
        "step": 3, "role": "rollout", "rank": 1, "node": "n", "operation": "sample",
        "seconds": 0.0025, "labels": {"draw": 4},
    }  # fmt: skip
    [read] = read_spans(tmp_path, first_step=3, last_step=3)
    assert (read.step, read.role, read.rank, read.node) == (3, "rollout", 1, "n")
    assert (read.span.operation, read.span.labels) == ("sample", {"draw": 4})
    assert read.span.end_ns - read.span.start_ns == 2_500_000


def test_steps_that_come_again_are_taken_back_and_so_is_a_torn_line(tmp_path):
    file = SpansFile(tmp_path, most_bytes=10**6)
    for step in range(4):
        file.write(step, did("a", "b"))
    file.rewind(1)
    assert steps_in(tmp_path) == [0, 0, 1, 1]
    file.write(2, did("a"))
    file.close()
    with (tmp_path / "spans.jsonl").open("a") as torn:
        torn.write('{"step": 2, "role": "po')
    assert steps_in(tmp_path, first_step=1) == [1, 1, 2]
    resumed = SpansFile(tmp_path, most_bytes=10**6)
    resumed.rewind(2)
    resumed.write(3, did("c"))
    resumed.close()
    assert steps_in(tmp_path) == [0, 0, 1, 1, 2, 3]


def test_a_new_run_has_none_of_the_one_before(tmp_path):
    SpansFile(tmp_path, most_bytes=10**6).write(0, did("a"))
    SpansFile(tmp_path, most_bytes=10**6).rewind(-1)
    assert steps_in(tmp_path) == []


def test_the_newest_steps_stay_within_the_bound(tmp_path):
    most_bytes = 4_000
    file = SpansFile(tmp_path, most_bytes=most_bytes)
    for step in range(100):
        file.write(step, did("a"))
    file.close()
    sizes = [path.stat().st_size for path in tmp_path.iterdir()]
    assert sum(sizes) <= most_bytes + 200
    steps = steps_in(tmp_path)
    assert steps == list(range(steps[0], 100))
    assert len(steps) > 10
    back = SpansFile(tmp_path, most_bytes=most_bytes)
    back.rewind(steps[1])  # far into the older file
    back.close()
    assert steps_in(tmp_path) == steps[:2]
