"""Each step stands once in every sink, in order, however often a run goes back."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import pytest
from fake_sink import FakeSink
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboardX.proto.event_pb2 import Event

from rlhf_ray.config.supervised import SftConfig
from rlhf_ray.metrics import open_metrics, wandb_sink
from rlhf_ray.metrics.log import AppendOnly, MetricsLog, Record, Table

LAST_STEP = 12


def config_in(run_dir):
    return SftConfig.model_validate(
        {
            "run_dir": str(run_dir),
            "total_steps": LAST_STEP,
            "data": {"path": "x"},
            "policy": {"model": {"path": "y"}},
            "tensorboard": True,
            "wandb": {"mode": "offline"},
        }
    )


def in_jsonl(run_dir):
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    metrics = [(row["step"], row["sft/loss"]) for row in map(json.loads, lines)]
    samples = [path.read_text() for path in sorted((run_dir / "samples").iterdir())]
    tables = [json.loads(line) for text in samples for line in text.splitlines()]
    return metrics, [(row["step"], row["loss"]) for row in tables]


def in_tensorboard(run_dir):
    """What TensorBoard shows: a start hides everything before it from its step on."""
    metrics, tables = [], []
    for file in sorted((run_dir / "tensorboard").iterdir()):
        content, position = file.read_bytes(), 0
        while position < len(content):
            (length,) = struct.unpack_from("<Q", content, position)
            event = Event.FromString(content[position + 12 : position + 12 + length])
            position += 12 + length + 4
            if event.HasField("session_log"):
                metrics = [told for told in metrics if told[0] < event.step]
                tables = [told for told in tables if told[0] < event.step]
            for value in event.summary.value:
                if value.tag == "sft/loss":
                    metrics.append((event.step, value.simple_value))
                elif value.tag.startswith("samples/"):
                    cell = value.tensor.string_val[0].decode().splitlines()[-1].strip("| ")
                    tables.append((event.step, float(cell)))
    return metrics, tables


def in_sink(sink):
    metrics = [(record.step, record.metrics["sft/loss"]) for record in sink.records]
    return metrics, [(table.step, table.rows[0][0]) for table in sink.tables]


class Run:
    """A run by its metrics, in one process after the other; the loss of a step is of its attempt.

    Attributes:
        wandb: What W&B has, which outlives processes as its server does.
        beside: What a sink of this process has.
        first, last: By step, the loss at the first and the last time that it was logged.
    """

    def __init__(self, run_dir, monkeypatch):
        self.run_dir, self.wandb = run_dir, FakeSink()
        monkeypatch.setattr(wandb_sink, "WandbSink", lambda *_, **__: self.wandb)
        self.step, self.num_logged, self.first, self.last = -1, 0, {}, {}
        self.tables_first, self.tables_last = {}, {}
        self.restart(None)

    def restart(self, checkpoint):
        self.beside = FakeSink()
        self.log = open_metrics(
            config_in(self.run_dir), job="sft", resumed_step=checkpoint, beside=[self.beside]
        )
        self.step = -1 if checkpoint is None else checkpoint

    def rewind(self, checkpoint):
        self.log.rewind(checkpoint)
        self.step = checkpoint

    def do(self, *, is_cut_off=False):
        """The next step; its table, of every third, comes before its metrics."""
        step, self.num_logged = self.step + 1, self.num_logged + 1
        loss = float(self.num_logged)
        if step % 3 == 0:
            self.log.table(Table(step=step, name="pairs", columns=["loss"], rows=[[loss]]))
            self.tables_first.setdefault(step, loss)
            self.tables_last[step] = loss
        if not is_cut_off:
            self.log.log(step, {"sft/loss": loss})
            self.first.setdefault(step, loss)
            self.last[step] = loss
            self.step = step


GOING_BACK = st.lists(
    st.tuples(
        st.integers(0, 6),  # steps that are done before
        st.booleans(),  # cut off between table and metrics
        st.booleans(),  # another process
        st.integers(0, LAST_STEP),  # back to, as far as that was reached; 0 is the very start
    ),
    max_size=6,
)


@given(went_back=GOING_BACK)
@settings(max_examples=40)
def test_each_step_stands_once_in_every_sink_and_in_order(tmp_path_factory, went_back):
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # a hundred a run
        run = Run(tmp_path_factory.mktemp("run"), monkeypatch)
        for num_steps, is_cut_off, is_restarted, checkpoint in went_back:
            for _ in range(min(num_steps, LAST_STEP - run.step)):
                run.do()
            if is_cut_off and run.step < LAST_STEP:
                run.do(is_cut_off=True)
            checkpoint = min(checkpoint, run.step)
            if is_restarted:
                run.restart(checkpoint if checkpoint > 0 else None)
            else:
                run.rewind(checkpoint)
        while run.step < LAST_STEP:
            run.do()
        run.log.close()
    steps, shown = range(LAST_STEP + 1), range(0, LAST_STEP + 1, 3)
    first = [(s, run.first[s]) for s in steps], [(s, run.tables_first[s]) for s in shown]
    last = [(s, run.last[s]) for s in steps], [(s, run.tables_last[s]) for s in shown]
    assert in_jsonl(run.run_dir) == last
    assert in_tensorboard(run.run_dir) == last
    assert in_sink(run.wandb) == first
    for told in in_sink(run.beside):
        assert [step for step, _ in told] == sorted({step for step, _ in told})


def test_a_log_goes_back_only_to_what_it_has():
    sink = FakeSink()
    log = MetricsLog([sink])
    for step in (1, 2, 3):
        log.log(step, {})
    with pytest.raises(ValueError, match="last_step must be at most 3, got 4"):
        log.rewind(4)
    log.rewind(1)
    log.log(2, {})
    assert list(sink.steps) == [1, 2]


def test_what_a_sink_has_is_written_down_before_it_is_handed_on(tmp_path):
    """Killed in between, it lacks a step; it never has one twice."""

    class Killed(FakeSink):
        def log(self, record):
            raise KeyboardInterrupt

    memory = tmp_path / "steps.json"
    with pytest.raises(KeyboardInterrupt):
        AppendOnly(Killed(), memory=memory).log(Record(step=4, time_s=0.0, metrics={}))
    sink = FakeSink()
    again = AppendOnly(sink, memory=memory)
    for step in (4, 5):
        again.log(Record(step=step, time_s=0.0, metrics={}))
    assert list(sink.steps) == [5]
    assert [path.name for path in tmp_path.iterdir()] == [Path(memory).name]
