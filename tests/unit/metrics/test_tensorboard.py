"""TensorBoard's event files, read back record by record."""

import struct

from tensorboardX.proto.event_pb2 import Event

from rlhf_ray.metrics.log import Record, Table
from rlhf_ray.metrics.tensorboard_sink import TensorBoardSink


def events(run_dir):
    """A record is its length, a checksum, an event, a checksum."""
    for file in sorted((run_dir / "tensorboard").iterdir()):
        content, position = file.read_bytes(), 0
        while position < len(content):
            (length,) = struct.unpack_from("<Q", content, position)
            yield Event.FromString(content[position + 12 : position + 12 + length])
            position += 12 + length + 4


def log_steps(run_dir, steps):
    sink = TensorBoardSink(run_dir, first_step=steps[0])
    for step in steps:
        sink.log(Record(step=step, time_s=0.0, metrics={"policy/kl_ref": step / 4}))
    sink.table(Table(step=steps[-1], name="eval", columns=["prompt"], rows=[["a|b\nc"]]))
    sink.close(failed=False)


def test_every_metric_has_its_name_and_step(tmp_path):
    log_steps(tmp_path, [0, 1, 2])
    scalars = [
        (event.step, value.tag, value.simple_value)
        for event in events(tmp_path)
        for value in event.summary.value
        if value.HasField("simple_value")
    ]
    assert scalars == [(step, "policy/kl_ref", step / 4) for step in (0, 1, 2)]


def test_a_table_is_markdown_that_keeps_its_columns(tmp_path):
    log_steps(tmp_path, [3])
    [text] = [
        value.tensor.string_val[0].decode()
        for event in events(tmp_path)
        for value in event.summary.value
        if value.tag.startswith("samples/eval")
    ]
    assert text.splitlines() == ["| prompt |", "| --- |", "| a\\|b<br>c |"]


def test_a_resumed_run_hides_the_steps_that_it_does_again(tmp_path):
    log_steps(tmp_path, [0, 1, 2])
    log_steps(tmp_path, [2, 3])
    starts = [event.step for event in events(tmp_path) if event.HasField("session_log")]
    assert starts == [0, 2]
