"""A full disk is said in words, and a run's last word is written all the same."""

import errno
import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from launch.run.folder import run_folder
from rlhf_ray.config.supervised import SftConfig
from rlhf_ray.disk import room_for
from rlhf_ray.errors import ConfigError, RunError
from rlhf_ray.jobs import status
from rlhf_ray.jobs.status import state_of
from rlhf_ray.loops.checkpoints import CheckpointStore
from rlhf_ray.loops.sample_files import SampleFiles
from rlhf_ray.metrics.jsonl import JsonlSink
from rlhf_ray.metrics.log import Record, Table

DISK_BYTES = 256 * 1024


@pytest.fixture
def disk(tmp_path):
    """A file system of its own, a quarter of a megabyte large."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("only root may mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder):
    """Leave no byte."""
    with (
        (folder / "filling").open("wb", buffering=0) as file,
        pytest.raises(OSError, match="space"),
    ):
        while True:
            file.write(bytes(4096))


def config_in(folder, **settings):
    values = {"data": {"path": "org/x"}, "policy": {"model": {"path": "a/b"}}}
    return SftConfig.model_validate({"run_dir": str(folder), **values, **settings})


def told_in(folder):
    return json.loads((folder / "status.json").read_text())


def test_a_run_whose_disk_fills_up_is_failed(disk):
    with pytest.raises(RunError), run_folder(config_in(disk / "run")) as folder:
        fill(disk)
        raise RunError("a rank is gone")
    assert told_in(folder)["state"] == "failed"
    assert told_in(folder)["reason"] == "RunError: a rank is gone"


def test_or_finished(disk):
    with run_folder(config_in(disk / "run")) as folder:
        fill(disk)
    assert told_in(folder)["state"] == "finished"


def test_a_write_that_nobody_explains_names_the_run_and_the_room(disk):
    with (
        pytest.raises(RunError, match=r"the disk is full: no room for .* where 0 bytes are free"),
        run_folder(config_in(disk / "run")) as folder,
    ):
        fill(disk)
        (folder / "anything").write_bytes(bytes(4096))
    assert told_in(folder)["state"] == "failed"


def test_a_run_that_cannot_begin_leaves_the_one_before(disk):
    with run_folder(config_in(disk / "run")) as folder:
        pass
    before = (folder / "config.yaml").read_bytes()
    fill(disk)
    tags = {"tags": ["x" * 9000]}
    with (
        pytest.raises(RunError, match="no room for the run in"),
        run_folder(config_in(folder, resume="auto", wandb=tags)),
    ):
        pass
    assert (folder / "config.yaml").read_bytes() == before
    assert told_in(folder)["state"] == "finished"
    assert sorted(path.name for path in folder.iterdir()) == ["config.yaml", "status.json"]


def test_a_new_run_leaves_no_empty_status(disk):
    (disk / "run").mkdir()
    fill(disk)
    with pytest.raises(RunError, match="no room for the run"), run_folder(config_in(disk / "run")):
        pass
    assert state_of(str(disk / "run")) == ""


WRITERS = {
    "torch": lambda folder: torch.save(torch.zeros(100_000), folder / "weights"),
    "safetensors": lambda folder: save_file({"w": torch.zeros(100_000)}, folder / "weights"),
    "python": lambda folder: (folder / "weights").write_bytes(bytes(400_000)),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_whatever_writes_a_checkpoint_says_where_and_keeps_the_older_one(disk, writer):
    store = CheckpointStore(disk, keep=2)
    with store.writing(1) as folder:
        (folder / "policy").mkdir()
        (folder / "policy/weights").write_text("old")
        store.commit(1, {}, roles=["policy"])
    with (
        pytest.raises(RunError, match=r"full: no room for a checkpoint in .*step|writing.* bytes"),
        store.writing(2) as folder,
    ):
        WRITERS[writer](folder)
    latest = store.latest()
    assert latest is not None
    assert (latest.folder / "policy/weights").read_text() == "old"
    assert [path.name for path in store.root.iterdir()] == ["step_00000001"], "room for other files"


def test_metrics_and_samples_say_which_file(disk):
    sink = JsonlSink(disk)
    files = SampleFiles(disk)
    files.rewind({})
    fill(disk)
    long = "x" * 9000
    with pytest.raises(RunError, match=r"no room for metrics in .*/metrics.jsonl, where 0 bytes"):
        sink.log(Record(step=1, time_s=0.0, metrics={long: 1.0}))
    with pytest.raises(RunError, match=r"no room for samples in .*/step_00000001.jsonl"):
        sink.table(Table(name="t", step=1, columns=("text",), rows=((long,),)))
    with pytest.raises(RunError, match=r"no room for samples in .*/samples.jsonl"):
        files.append([{"text": long}], [])


def test_other_errors_pass_as_they_are(tmp_path):
    for error in (
        OSError(errno.EACCES, "no"),
        ValueError("x"),
        RuntimeError("y"),
        ConfigError("z"),
    ):
        with pytest.raises(type(error)) as caught, room_for("it", tmp_path / "not/there"):
            raise error
        assert caught.value is error


def test_a_status_that_cannot_be_written_hides_no_error(tmp_path, monkeypatch, caplog):
    def fail(*arguments):
        raise OSError(errno.EIO, "the disk is gone")

    with pytest.raises(RunError, match="a rank is gone"), run_folder(config_in(tmp_path / "run")):
        monkeypatch.setattr(os, "pwrite", fail)
        raise RunError("a rank is gone")
    assert "status.json cannot say failed" in caplog.text


def test_a_long_reason_is_cut_and_a_short_one_leaves_no_rest(tmp_path):
    for reason in ("é" * 10_000, "short"):
        with pytest.raises(RunError), run_folder(config_in(tmp_path)) as folder:
            raise RunError(reason)
        assert (folder / "status.json").stat().st_size == status.NUM_BYTES
    assert told_in(folder)["reason"] == "RunError: short"


def test_a_status_in_other_hands_is_read(tmp_path):
    assert state_of(str(tmp_path)) == ""
    Path(tmp_path, "status.json").touch()
    assert state_of(str(tmp_path)) == ""
