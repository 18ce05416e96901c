"""A run that is stopped from outside: what it holds is given back, and its folder says so."""

import json
import signal
import subprocess
import sys
import time

import pytest

from launch import job
from launch.run import cluster
from rlhf_ray.config.supervised import SftConfig

RUN = """
import asyncio, sys, time
from launch import cli
from launch.run.folder import run_folder
from rlhf_ray.config.supervised import SftConfig

config = SftConfig.model_validate({
    "run_dir": sys.argv[1], "data": {"path": "x"}, "policy": {"model": {"path": "a/b"}},
})

async def wait():
    print("held", flush=True)
    WAIT

async def hold():
    try:
        await asyncio.gather(wait(), asyncio.sleep(600))
    finally:
        await asyncio.sleep(0.1)
        print("given back", flush=True)

def run():
    with run_folder(config):
        asyncio.run(hold())
    return 0

sys.exit(cli.guarded(run))
"""
# What a coroutine waits for, and what blocks all of them (such as Ray's waits).
WAITS = {"async": "await asyncio.sleep(600)", "blocking": "time.sleep(600)"}


def stop(script, sent, *, again=None, ignored=(), arguments=()):
    """Run a script until it has said its first line, send it a signal; what came of it."""

    def inherit() -> None:
        # A shell without a terminal has its background jobs ignore Ctrl-C, and `nohup` the hang-up.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        for number in ignored:
            signal.signal(number, signal.SIG_IGN)

    run = subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=inherit,
    )
    assert run.stdout is not None
    assert run.stdout.readline() == "held\n"
    time.sleep(0.2)
    run.send_signal(sent)
    if again is not None:
        time.sleep(0.5)
        run.send_signal(again)
    said, errors = run.communicate(timeout=30)
    return run.returncode, said, errors


@pytest.mark.parametrize("wait", WAITS)
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_stopped_run_ends_in_order(sent, wait, tmp_path):
    script = RUN.replace("WAIT", WAITS[wait])
    assert stop(script, sent, arguments=[str(tmp_path)]) == (130, "given back\n", "interrupted\n")
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "interrupted"


CUT_OFF = """
import sys
from launch.cli import guarded

async def score(): pass

def work():
    kept.append(score())
    raise KeyboardInterrupt

kept = []
sys.exit(guarded(work))
"""


def test_what_an_interrupt_cut_off_is_no_warning():
    run = subprocess.run(
        [sys.executable, "-c", CUT_OFF], capture_output=True, text=True, timeout=60
    )
    assert (run.returncode, run.stderr) == (130, "interrupted\n")


FORK = """
import multiprocessing, os, time
from launch.run.signals import interrupt_when_stopped, on_stop

def work(started):
    started.set()
    time.sleep(60)

interrupt_when_stopped()
with on_stop(lambda: print("told", flush=True)):
    fork = multiprocessing.get_context("fork")
    started = fork.Event()
    child = fork.Process(target=work, args=(started,))
    child.start()
    assert started.wait(20)
    child.terminate()
    child.join(20)
    print("child ended", child.exitcode is not None)
"""


def test_a_process_that_was_forked_from_a_run_is_not_the_run():
    run = subprocess.run(
        [sys.executable, "-c", FORK], capture_output=True, text=True, timeout=60, check=True
    )
    assert run.stdout == "child ended True\n"


def test_a_run_under_nohup_goes_on_when_its_terminal_goes(tmp_path):
    script = RUN.replace("WAIT", "time.sleep(1)").replace("600", "1")
    ended = stop(script, signal.SIGHUP, ignored=[signal.SIGHUP], arguments=[str(tmp_path)])
    assert ended == (0, "given back\n", "")


TRAINING = """
import asyncio, sys
from launch import cli
from launch.run.folder import run_folder
from launch.run.signals import asked_first
from rlhf_ray.config.supervised import SftConfig
from rlhf_ray.loops.stopping import Stop

config = SftConfig.model_validate({
    "run_dir": sys.argv[1], "data": {"path": "x"}, "policy": {"model": {"path": "a/b"}},
})
stop = Stop()

async def train():
    with stop.heeded():
        print("held", flush=True)
        while not stop.asked:
            await asyncio.sleep(0.05)
        print("last step", flush=True)
        await asyncio.sleep(STEP_S)
        print("saved", flush=True)

def run():
    with run_folder(config), asked_first(stop.ask):
        asyncio.run(train())
    return 0

sys.exit(cli.guarded(run))
"""


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_trains_ends_behind_its_step(sent, tmp_path):
    script = TRAINING.replace("STEP_S", "0.1")
    status, said, errors = stop(script, sent, arguments=[str(tmp_path)])
    assert (status, said) == (130, "last step\nsaved\n")
    assert errors == (
        f"{sent.name}: the run ends after this step, which is saved; a second one ends it now\n"
        "interrupted\n"
    )
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "interrupted"


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_it_at_once(sent, tmp_path):
    script = TRAINING.replace("STEP_S", "600")
    status, said, _ = stop(script, sent, again=sent, arguments=[str(tmp_path)])
    assert (status, said) == (130, "last step\n")
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "interrupted"


def test_a_terminal_that_goes_ends_it_at_once(tmp_path):
    script = TRAINING.replace("STEP_S", "600")
    status, said, _ = stop(script, signal.SIGHUP, arguments=[str(tmp_path)])
    assert (status, said) == (130, "")


def test_what_must_not_be_left_half_done_is_done_first():
    script = """
import signal, time
from launch.run.signals import interrupt_when_stopped, uninterrupted
interrupt_when_stopped()
with uninterrupted() as came:
    print("held", flush=True)
    time.sleep(1)
print([signal.Signals(number).name for number in came])
"""
    assert stop(script, signal.SIGTERM) == (0, "['SIGTERM']\n", "")


def test_nothing_is_unwound_amid_an_import():
    script = """
import time
from launch.run.signals import exit_when_stopped, interrupt_when_stopped
interrupt_when_stopped()
with exit_when_stopped():
    print("held", flush=True)
    try:
        time.sleep(600)
    finally:
        print("unwound", flush=True)
"""
    assert stop(script, signal.SIGTERM) == (130, "", "interrupted\n")


def test_a_stop_while_ray_starts_is_an_interrupt_too(monkeypatch):
    """Ray answers SIGTERM by an exit of its own."""
    monkeypatch.setattr(cluster.ray, "init", lambda **options: sys.exit(signal.SIGTERM))
    restored = []
    monkeypatch.setattr(cluster, "interrupt_when_stopped", lambda: restored.append(True))
    with pytest.raises(KeyboardInterrupt):
        cluster.join("auto")
    assert restored


@pytest.mark.parametrize(
    ("submitted", "ray_allows", "grace_s"),
    [
        (False, "60", 40.0),
        (True, "60", 40.0),
        (True, "30", 28.0),
        (True, None, 1.0),
        (True, "0", 0),
    ],
)
def test_a_submitted_run_is_done_before_ray_kills_it(monkeypatch, submitted, ray_allows, grace_s):
    monkeypatch.setattr(job, "is_submitted", lambda: submitted)
    monkeypatch.delenv("RAY_JOB_STOP_WAIT_TIME_S", raising=False)
    if ray_allows is not None:
        monkeypatch.setenv("RAY_JOB_STOP_WAIT_TIME_S", ray_allows)
    timeouts = {"stop_s": 40.0}
    config = SftConfig.model_validate(
        {"timeouts": timeouts, "data": {"path": "x"}, "policy": {"model": {"path": "a/b"}}}
    )
    assert job.grace_s(config) == grace_s
