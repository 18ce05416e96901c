"""Shared memory is given back when its process and all of that one's children are killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

SCRIPT = """
import sys, time
from multiprocessing import get_context
from multiprocessing.shared_memory import SharedMemory
from actors.engines.spec import outlive_actor

def hold(name):
    kept = SharedMemory(name, create=True, size=4096)
    print("held", flush=True)
    time.sleep(600)

if __name__ == "__main__":
    outlive_actor()
    outlive_actor()
    name = sys.argv[1]
    lock = get_context("spawn").Lock()
    child = get_context("spawn").Process(target=hold, args=(name + "-child",))
    child.start()
    hold(name)
"""


def test_a_killed_actor_leaves_no_segment(tmp_path):
    script = tmp_path / "actor.py"
    script.write_text(SCRIPT)
    name = f"rlhf-test-{os.getpid()}"
    segments = [Path("/dev/shm", name), Path("/dev/shm", f"{name}-child")]
    actor = subprocess.Popen(
        [sys.executable, str(script), name],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    assert actor.stdout is not None
    assert [actor.stdout.readline() for _ in segments] == ["held\n"] * 2
    assert all(segment.exists() for segment in segments)
    family = psutil.Process(actor.pid).children(recursive=True)
    os.killpg(actor.pid, signal.SIGKILL)
    for process in family:
        process.kill()
    actor.wait(timeout=10)
    give_up_s = time.monotonic() + 20
    while any(segment.exists() for segment in segments):
        assert time.monotonic() < give_up_s, segments
        time.sleep(0.1)
