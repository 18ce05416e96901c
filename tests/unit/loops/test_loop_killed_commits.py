"""Whenever a commit is cut off, a whole checkpoint is found, and the next save leaves no rests."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlhf_ray.errors import RunError
from rlhf_ray.loops.checkpoints import CheckpointStore

# What `commit` has the system do to files; `rename` and `rmdir` are how folders come and go.
CALLS = ("rename", "fsync", "open", "unlink", "rmdir")


class KilledError(BaseException):
    """Stands for the end of the process: nothing handles it."""


class Fault:
    """Raises at the call of a number; `again` at all later ones too, as a dead process does none.

    Attributes:
        num_calls: That were made.
        came: Whether it has raised.
    """

    def __init__(self, at, error, *, again):
        self.at, self.error, self.again = at, error, again
        self.num_calls, self.came = 0, False

    def of(self, call):
        def called(*arguments, **keywords):
            self.num_calls += 1
            if self.num_calls == self.at or (self.came and self.again):
                self.came = True
                raise self.error
            return call(*arguments, **keywords)

        return called

    def install(self, patched):
        for name in CALLS:
            patched.setattr(os, name, self.of(getattr(os, name)))
        # The manifest is written by it.
        patched.setattr(Path, "write_text", self.of(Path.write_text))


def write(store, step, text="weights", fault=None):
    with store.writing(step) as folder:
        (folder / "policy/state").mkdir(parents=True)
        (folder / "policy/state/shard").write_text(f"{text} of {step}")
        (folder / "policy/rng").write_text("state")
    with pytest.MonkeyPatch.context() as patched:
        if fault is not None:
            fault.install(patched)
        store.commit(step, {"text": text}, roles=["policy"])


def saved(store):
    """Step and text of the newest that is whole."""
    latest = store.latest()
    text = (latest.folder / "policy/state/shard").read_text()
    assert text == f"{latest.state['text']} of {latest.step}"
    return latest.step, latest.state["text"]


@pytest.mark.parametrize(
    "error", [KilledError(), OSError(5, "Input/output error")], ids=["killed", "failing"]
)
@pytest.mark.parametrize("step", [2, 3], ids=["replacing", "beside"])
def test_a_commit_that_is_cut_off_at_any_call_leaves_a_whole_checkpoint(
    tmp_path, monkeypatch, error, step
):
    """Step 2 is there before, and with `keep=2` the commit of step 3 prunes step 1."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # counted, and quick
    found, at = [], 0
    while True:
        at += 1
        store = CheckpointStore(tmp_path / str(at), keep=2)
        for before in (1, 2):
            write(store, before, "old")
        fault = Fault(at, error, again=isinstance(error, KilledError))
        try:
            write(store, step, "new", fault)
        except (KilledError, RunError):
            assert fault.came
        found.append(saved(store))
        again = CheckpointStore(tmp_path / str(at), keep=2)  # another process
        assert saved(again) == found[-1]
        write(again, 4, "after")
        assert saved(again) == (4, "after")
        names = sorted(path.name for path in again.root.iterdir())
        assert names == [f"step_{kept:08d}" for kept in (found[-1][0], 4)], "no rests"
        if not fault.came:
            break
    assert set(found) == {(2, "old"), (step, "new")}
    assert found == sorted(found, reverse=step == 2), "never back from the new one to the old"
    assert at > 10


def test_a_checkpoint_that_was_being_replaced_is_found_and_has_its_name_again(tmp_path):
    store = CheckpointStore(tmp_path, keep=3)
    for step in (1, 2):
        write(store, step)
    (store.root / "step_00000002").rename(store.root / ".replaced_00000002")
    assert store.latest().folder.name == ".replaced_00000002"
    assert store.oldest().step == 1
    write(store, 3)
    assert sorted(path.name for path in store.root.iterdir()) == [
        f"step_{step:08d}" for step in (1, 2, 3)
    ]


@pytest.mark.parametrize("left", [".writing_00000001", ".replaced_00000001", ".writing_00000009"])
def test_rests_of_any_step_go_with_the_next_writing(tmp_path, left):
    store = CheckpointStore(tmp_path, keep=3)
    write(store, 1)
    (store.root / left).mkdir()
    (store.root / left / "shard").write_text("tens of gigabytes")
    write(store, 2)
    assert sorted(path.name for path in store.root.iterdir()) == [
        "step_00000001", "step_00000002"
    ]  # fmt: skip
    assert saved(store) == (2, "weights")


SAVING = """
import asyncio, sys
from pathlib import Path
from rlhf_ray.loops.checkpoints import CheckpointStore

async def main():
    async with CheckpointStore(Path(sys.argv[1]), keep=2) as store:
        for number in range(10**6):
            step, text = 2 + number % 3 // 2, f"weights {number}"  # 2, 2, 3, 2, 2, 3, ...
            state = {"text": text}
            async with store.saving(step, state, ["policy"], timeout_s=30) as folder:
                (folder / "policy/state").mkdir(parents=True)
                (folder / "policy/state/shard").write_text(f"{text} of {step}")
            print(number, flush=True)

asyncio.run(main())
"""


def test_a_process_that_is_killed_while_it_saves_leaves_a_whole_checkpoint(tmp_path):
    moments = random.Random(0)
    write(CheckpointStore(tmp_path, keep=2), 1, "old")
    for _ in range(6):
        with subprocess.Popen(
            [sys.executable, "-c", SAVING, str(tmp_path)], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout.readline()
            assert process.stdout.readline(), "the second save begins when the first is committed"
            time.sleep(moments.uniform(0, 0.1))
            process.send_signal(signal.SIGKILL)
        step, text = saved(CheckpointStore(tmp_path, keep=2))
        assert step in (2, 3)
        assert text != "old"
