"""A command ends with all that came of it, and with the process that asked for it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from rlhf_ray.process_tree import kept

# A child with a session of its own, whose parent ends at once, and one as any other.
FAMILY = """
echo $$ > {folder}/self
setsid sh -c 'sleep 600 & echo $! > {folder}/orphan'
sleep 600 & echo $! > {folder}/child
"""
ASKS = """
import subprocess, sys, time
from rlhf_ray.process_tree import kept
subprocess.Popen(kept(["sh", sys.argv[1]]), start_new_session=True)
time.sleep(600)
"""


def until(is_so):
    ends_s = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < ends_s
        time.sleep(0.02)


def lives(pid):
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


@pytest.fixture
def family(tmp_path):
    """`family(then)`: a script that starts it, and does this then."""

    def make(then):
        script = tmp_path / "family.sh"
        script.write_text(FAMILY.format(folder=tmp_path) + then)
        return script

    return make


def members(folder: Path) -> list[int]:
    files = [folder / name for name in ("self", "orphan", "child")]
    until(lambda: all(file.exists() and file.read_text().strip() for file in files))
    return [int(file.read_text()) for file in files]


def test_it_has_the_streams_and_the_status_of_its_command():
    script = "read said; echo out $said $KEPT; echo err >&2; exit 7"
    ended = subprocess.run(
        kept(["sh", "-c", script]),
        input=b"in\n", capture_output=True, timeout=20, env={**os.environ, "KEPT": "so"},
    )  # fmt: skip
    assert (ended.returncode, ended.stdout, ended.stderr) == (7, b"out in so\n", b"err\n")
    killed = subprocess.run(kept(["sh", "-c", "kill -9 $$"]), timeout=20)
    assert killed.returncode == 128 + signal.SIGKILL
    absent = subprocess.run(kept(["/no/such"]), capture_output=True, timeout=20)
    assert (absent.returncode, absent.stderr) == (127, b"/no/such: No such file or directory\n")


def test_its_command_has_the_signals_that_any_has():
    script = "import signal; print(signal.pthread_sigmask(signal.SIG_BLOCK, []))"
    command = kept([sys.executable, "-c", script])
    assert subprocess.check_output(command, timeout=20) == b"set()\n"


def test_what_is_left_ends_with_its_command(family, tmp_path):
    subprocess.run(kept(["sh", str(family("exit 0"))]), timeout=20, check=True)
    assert not any(map(lives, members(tmp_path)))


def test_all_end_when_it_is_asked_to(family, tmp_path):
    process = subprocess.Popen(kept(["sh", str(family("sleep 600"))]))
    pids = members(tmp_path)
    process.terminate()
    assert process.wait(20) == 128 + signal.SIGTERM
    assert not any(map(lives, pids))


def test_all_end_when_the_process_is_killed_that_asked_for_them(family, tmp_path):
    asks = subprocess.Popen([sys.executable, "-c", ASKS, str(family("sleep 600"))])
    pids = members(tmp_path)
    assert all(map(lives, pids))
    asks.kill()
    asks.wait(20)
    until(lambda: not any(map(lives, pids)))
