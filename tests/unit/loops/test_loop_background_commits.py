"""Checkpoints are committed beside the run: it waits for one at the next save, and at its end."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from rlhf_ray.deadlines import DeadlineError
from rlhf_ray.errors import RunError
from rlhf_ray.loops.checkpoints import CheckpointStore


class SlowStore(CheckpointStore):
    """Commits when it is let.

    Attributes:
        may: Set to let it.
        committed: Steps, in order.
    """

    def __init__(self, run_dir, *, keep=3):
        super().__init__(run_dir, keep=keep)
        self.may, self.committed = threading.Event(), []

    def commit(self, step, state, *, roles):
        assert self.may.wait(timeout=30)
        super().commit(step, state, roles=roles)
        self.committed.append(step)


@pytest.fixture
def store(tmp_path):
    return SlowStore(tmp_path)


async def save(store, step, state=None, *, timeout_s=30.0):
    state = {"position": step} if state is None else state
    async with store.saving(step, state, ["policy"], timeout_s=timeout_s) as folder:
        (folder / "policy").mkdir()
        (folder / "policy/shard").write_text(f"weights of {step}")


async def test_the_run_goes_on_while_one_is_committed_and_its_end_waits(store):
    async with store:
        await save(store, 1)
        assert (store.committed, store.latest()) == ([], None)
        store.may.set()
    assert store.committed == [1]
    assert store.latest().step == 1


async def test_the_next_save_waits_for_the_one_before(store):
    await save(store, 1)
    second = asyncio.ensure_future(save(store, 2))
    await asyncio.sleep(0.05)
    assert not second.done()
    assert [path.name for path in store.root.iterdir()] == [".writing_00000001"]
    store.may.set()
    await second
    assert store.committed[0] == 1
    await store.settled()
    assert store.committed == [1, 2]
    await store.settled()  # nothing is left to wait for


async def test_the_state_is_that_of_the_save(store):
    state = {"order": {"position": 4}}
    await save(store, 1, state)
    state["order"]["position"] = 8
    store.may.set()
    await store.settled()
    assert store.latest().state == {"order": {"position": 4}}


async def test_a_commit_that_fails_is_an_error_of_the_next_save_and_leaves_the_one_before(
    store, monkeypatch
):
    store.may.set()
    await save(store, 1)
    await store.settled()

    def fail(descriptor):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fail)
        await save(store, 2)
        with pytest.raises(
            RunError, match=r"checkpoint of step 2 is not committed: .*Input/output"
        ):
            await save(store, 3)
    assert [path.name for path in store.root.iterdir()] == ["step_00000001"]
    await save(store, 3)
    await store.settled()
    assert store.latest().step == 3


async def test_a_commit_that_fails_is_an_error_of_the_end(store):
    with pytest.raises(RunError, match="the checkpoint of policy is not in"):
        async with store, store.saving(1, {}, ["policy"], timeout_s=30):
            store.may.set()


async def test_what_ended_the_run_is_not_hidden_by_a_commit_that_failed(store, caplog):
    with pytest.raises(LookupError, match="a rank died"):
        async with store:
            async with store.saving(1, {}, ["policy"], timeout_s=30):
                store.may.set()
            raise LookupError("a rank died")
    assert "the checkpoint of policy is not in" in caplog.text


async def test_a_run_that_fails_still_has_the_checkpoint_that_it_saved(store):
    with pytest.raises(LookupError):
        async with store:
            await save(store, 1)
            store.may.set()
            raise LookupError
    assert store.latest().step == 1


async def test_a_commit_has_a_deadline(store):
    await save(store, 7, timeout_s=0.05)
    with pytest.raises(DeadlineError, match="committing the checkpoint of step 7: no answer from"):
        await store.settled()
    store.may.set()


SAVING = """
import asyncio, signal, sys, time
from pathlib import Path
from rlhf_ray.loops import checkpoints

async def main():
    store = checkpoints.CheckpointStore(Path(sys.argv[1]), keep=1)
    async with store:
        async with store.saving(1, {}, ["policy"], timeout_s=float(sys.argv[2])) as folder:
            (folder / "policy").mkdir()
            (folder / "policy/shard").write_text("weights")
        print("saved", flush=True)
        await asyncio.sleep(float(sys.argv[3]))

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored
checkpoints._digest = lambda path: time.sleep(600)
asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("timeout_s", "steps_s", "error"),
    [
        (0.2, 0, "DeadlineError: committing the checkpoint of step 1"),
        (600, 0, "KeyboardInterrupt"),
        (600, 600, "KeyboardInterrupt"),
    ],
    ids=["deadline", "stopped while it waits", "stopped in a step"],
)
def test_a_disk_that_hangs_does_not_keep_the_process(tmp_path, timeout_s, steps_s, error):
    command = [sys.executable, "-c", SAVING, str(tmp_path), str(timeout_s), str(steps_s)]
    started_s = time.monotonic()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "saved\n"
        if error == "KeyboardInterrupt":
            time.sleep(0.2)
            process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert error in errors
    assert time.monotonic() - started_s < 30
