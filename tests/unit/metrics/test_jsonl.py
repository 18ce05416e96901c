"""metrics.jsonl and samples/: one object a step, whatever happens in between."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_ray.metrics.jsonl import JsonlSink, rewind
from rlhf_ray.metrics.log import MetricsLog, Record, Table


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def log_steps(run_dir, steps):
    sink = JsonlSink(run_dir)
    for step in steps:
        sink.log(Record(step=step, time_s=float(step), metrics={"policy/loss": 1.0 * step}))
        sink.table(Table(step=step, name="eval", columns=["prompt"], rows=[[f"prompt {step}"]]))
    sink.close(failed=False)


def test_a_step_is_one_object_with_step_and_time_first(tmp_path):
    log = MetricsLog([JsonlSink(tmp_path)], clock=lambda: 0.0)
    log.log(0, {"rollout/reward_mean": 0.5, "policy/loss": 1.0})
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert list(json.loads(line)) == ["step", "time_s", "policy/loss", "rollout/reward_mean"]


def test_a_line_is_readable_before_the_run_ends(tmp_path):
    sink = JsonlSink(tmp_path)
    sink.log(Record(step=1, time_s=0.0, metrics={}))
    assert rows(tmp_path / "metrics.jsonl") == [{"step": 1, "time_s": 0.0}]
    sink.close(failed=False)


@given(value=st.floats())
def test_every_line_is_valid_json(tmp_path_factory, value):
    run_dir = tmp_path_factory.mktemp("run")
    sink = JsonlSink(run_dir)
    sink.log(Record(step=1, time_s=0.0, metrics={"policy/loss": value}))
    sink.close(failed=False)

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    row = json.loads((run_dir / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert row["policy/loss"] == (value if math.isfinite(value) else None)


def test_samples_have_a_file_a_step(tmp_path):
    log_steps(tmp_path, [10])
    assert rows(tmp_path / "samples" / "step_00000010.jsonl") == [
        {"step": 10, "table": "eval", "prompt": "prompt 10"}
    ]


def test_rewinding_takes_back_later_steps_and_a_torn_line(tmp_path):
    log_steps(tmp_path, range(6))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "time')
    assert rewind(tmp_path, 3) == 3.0
    log_steps(tmp_path, [4, 5])
    assert [row["step"] for row in rows(tmp_path / "metrics.jsonl")] == [0, 1, 2, 3, 4, 5]
    assert len(rows(tmp_path / "samples" / "step_00000005.jsonl")) == 1


@pytest.mark.parametrize(
    "line", ['{"step": 2, "ti', '{"stpp": 2, "time_s": 2.0}', "[]", "\x00" * 9]
)
def test_a_line_that_a_disk_damaged_costs_no_other(tmp_path, caplog, line):
    log_steps(tmp_path, range(6))
    path = tmp_path / "metrics.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], line, *lines[3:]]) + "\n")
    assert rewind(tmp_path, 4) == 4.0
    assert [row["step"] for row in rows(path)] == [0, 1, 3, 4]
    assert f"{path}: line 3 is damaged and left out" in caplog.text


def test_a_run_that_died_before_its_first_checkpoint_leaves_no_steps(tmp_path):
    log_steps(tmp_path, range(3))
    assert rewind(tmp_path, -1) == 0.0
    assert rows(tmp_path / "metrics.jsonl") == []
    assert not list((tmp_path / "samples").iterdir())


def test_rewinding_an_empty_run_directory_is_nothing(tmp_path):
    assert rewind(tmp_path, 3) == 0.0
    assert list(tmp_path.iterdir()) == []
