"""`rlhf-ray trace`: a file for Perfetto, and where the time went."""

import gzip
import json

import pytest

from launch.cli import main
from launch.tables.spans import time_spent
from rlhf_ray.metrics.spans import ProcessSpans, Span
from rlhf_ray.metrics.spans_file import SpansFile, read_spans

SECOND = 10**9


def span(operation, start, end, **labels):
    return Span(operation=operation, start_ns=start * SECOND, end_ns=end * SECOND, labels=labels)


@pytest.fixture
def run_dir(tmp_path):
    """Two steps of 10 seconds with one between; the update takes 4 and 6, on two ranks."""
    file = SpansFile(tmp_path, most_bytes=10**6)
    for step, begin in ((1, 0), (2, 11)):
        end = begin + 10
        updates = [span("update", begin + 1, begin + 5), span("update", begin + 1, begin + 7)]
        file.write(
            step,
            [
                ProcessSpans(
                    role="driver",
                    rank=0,
                    node="n",
                    spans=[
                        span("step", begin, end, step=step),
                        span("update", begin, begin + 8),
                        span("update", begin, begin + 8, asked="policy"),
                        span("checkpoint", end, end + 1),
                    ],
                ),
                *(
                    ProcessSpans(role="policy", rank=rank, node="n", spans=[one])
                    for rank, one in enumerate(updates)
                ),
            ],
        )
    file.close()
    return tmp_path


def test_a_trace_has_the_steps_that_are_asked_for(run_dir, capsys):
    assert main(["trace", str(run_dir), "--steps", "2:"]) == 0
    events = json.loads((run_dir / "trace.json").read_text())["traceEvents"]
    assert {event["name"] for event in events if event["ph"] == "X"} == {
        "step 2", "update", "checkpoint"
    }  # fmt: skip
    said = capsys.readouterr().out
    assert "1 steps, 10.00 s each" in said
    assert "trace.json" in said


def test_a_trace_can_be_compressed(run_dir, tmp_path):
    output = tmp_path / "out.json.gz"
    assert main(["trace", str(run_dir), "--output", str(output)]) == 0
    with gzip.open(output, "rt") as file:
        assert json.load(file)["traceEvents"]


def test_a_folder_without_spans_is_refused(tmp_path, capsys):
    assert main(["trace", str(tmp_path)]) == 2
    assert "spans_mb" in capsys.readouterr().err


@pytest.mark.parametrize("steps", ["x", "1:y", ""])
def test_steps_are_numbers(run_dir, steps):
    with pytest.raises(SystemExit):
        main(["trace", str(run_dir), "--steps", steps])


def test_time_is_that_of_steps_and_of_the_mean_rank(run_dir):
    spent = {
        (one.role, one.operation): (one.num, one.seconds, one.share)
        for one in time_spent(list(read_spans(run_dir, first_step=0, last_step=9)))
    }
    assert spent == {
        ("driver", ""): (4, 16.0, 0.8),
        ("driver", "update"): (2, 16.0, 0.8),
        ("driver", "checkpoint"): (2, 0.0, 0.0),
        ("policy", ""): (4, 10.0, 0.5),
        ("policy", "update"): (4, 10.0, 0.5),
    }
