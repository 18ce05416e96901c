"""`--restarts N`: what is started again and what is not, and that nothing is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from launch import cli
from launch.run import guard as guard_module

SCRIPT = """
import asyncio, os, signal, subprocess, sys, time
from pathlib import Path
from launch import cli
from launch.run import guard
from launch.run.signals import asked_first
from rlhf_ray.errors import ConfigError, RunError, TrainingStopped
from rlhf_ray.loops.stopping import Stop

guard.FIRST_PAUSE_S, guard.LONGEST_PAUSE_S, guard.BEAT_S = BETWEEN_S, LONGEST_S, 0.1
guard.END_S = {None: 0.5, signal.SIGTERM: 0.5, signal.SIGKILL: 5.0}
folder = Path(sys.argv[1])

def die(number=signal.SIGKILL):
    os.kill(os.getpid(), number)
    time.sleep(60)

def throw(error):
    raise error

def leave():
    for answer in (signal.SIG_IGN, signal.SIG_DFL):
        signal.signal(signal.SIGTERM, answer)  # as the next one inherits it
        sleeper = subprocess.Popen(["sleep", "600"], start_new_session=True)
        with (folder / "pids").open("a") as file:
            print(sleeper.pid, file=file)

async def beat(call):
    async with guard.beating(folder):
        await asyncio.sleep(0.3)
        call()
    return 0

def work():
    attempt = len(list(folder.glob("attempt_*"))) + 1
    (folder / f"attempt_{attempt}").write_text(str(os.getpid()))
    print("attempt", attempt, flush=True)
    return WORK

sys.exit(cli.guarded(lambda: guard.Guard(folder, restarts=2, hang_s=1.5).run(work)))
"""


def started(tmp_path, work, *, pause_s=0.05, longest_s=600):
    script = SCRIPT.replace("WORK", work).replace("BETWEEN_S", str(pause_s))
    script = script.replace("LONGEST_S", str(longest_s))
    return subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(run):
    """Exit status, number of attempts and what was said."""
    said, errors = run.communicate(timeout=60)
    return run.returncode, said.count("attempt"), errors


@pytest.mark.parametrize(
    ("work", "status", "attempts", "cause"),
    [
        ("0", 0, 1, ""),
        ("die() if attempt < 3 else 0", 0, 3, "the run was killed by SIGKILL: restart 2 of 2"),
        ("die()", 137, 3, "restart 2 of 2"),
        ("die(signal.SIGSEGV)", 139, 3, "the run was killed by SIGSEGV: restart 1 of 2 in 0.05 s"),
        ("throw(RunError('a rank died'))", 1, 3, "the run failed: restart 1 of 2"),
        ("throw(LookupError('a bug'))", 1, 3, "the run failed: restart 2 of 2 in 0.1 s"),
        ("throw(ConfigError('no such file'))", 2, 1, "error: no such file"),
        ("throw(TrainingStopped('KL'))", 3, 1, "error: KL"),
        ("throw(KeyboardInterrupt())", 130, 1, "interrupted"),
    ],
    ids=[
        "finished", "killed", "killed-each-time", "crashed", "failed", "a-bug", "refused", "a-rule",
        "stopped",
    ],
)  # fmt: skip
def test_what_may_end_otherwise_is_started_again(tmp_path, work, status, attempts, cause):
    found = ended(started(tmp_path, work))
    assert found[:2] == (status, attempts), found
    assert cause in found[2]
    assert attempts > 1 or "restart" not in found[2]


@pytest.mark.parametrize(
    ("call", "name"),
    [("lambda: die(signal.SIGSTOP)", "stopped"), ("lambda: time.sleep(600)", "blocked")],
)
def test_what_hangs_is_killed_and_started_again(tmp_path, call, name):
    work = f"asyncio.run(beat({call} if attempt == 1 else print))"
    status, attempts, errors = ended(started(tmp_path, work))
    assert (status, attempts) == (0, 2), name
    assert "the run hung (no heartbeat for 1.5 s) and was killed: restart 1 of 2" in errors
    assert not (tmp_path / "heartbeat").exists()


@pytest.mark.parametrize(
    ("first", "later", "expected"),
    [
        ("asyncio.run(beat(lambda: throw(RunError('a node was lost'))))", "0", (0, 3)),
        ("asyncio.run(beat(lambda: throw(RunError('a node was lost'))))", None, (2, 3)),
        ("throw(RunError('no cluster'))", "0", (2, 2)),
        ("asyncio.run(beat(lambda: throw(ConfigError('no such column'))))", "0", (2, 1)),
    ],
    ids=["joins", "stays-away", "never-began", "refused-at-first"],
)
def test_a_run_that_had_begun_is_tried_again_where_it_is_refused(tmp_path, first, later, expected):
    """The cluster may have lost a node, which comes back."""
    refused = "throw(ConfigError('the cluster is too small'))"
    work = f"{first} if attempt == 1 else {later or refused} if attempt == 3 else {refused}"
    status, attempts, errors = ended(started(tmp_path, work))
    assert (status, attempts) == expected, errors
    assert ("was refused, though it had begun before: restart 2 of 2" in errors) == (attempts == 3)


def test_what_takes_long_before_it_beats_and_after_does_not_hang(tmp_path):
    work = "(time.sleep(2), asyncio.run(beat(print)), time.sleep(2))[1]"
    assert ended(started(tmp_path, work))[:2] == (0, 1)


def test_nothing_is_left_of_what_was_killed(tmp_path):
    """Not what has a session of its own, nor what does not listen."""
    assert ended(started(tmp_path, "leave() or die()"))[:2] == (137, 3)
    pids = [int(line) for line in (tmp_path / "pids").read_text().splitlines()]
    assert len(pids) == 6
    assert not [pid for pid in pids if psutil.pid_exists(pid)]


TRAIN = """
async def train():
    stop = Stop()
    with asked_first(stop.ask):
        with stop.heeded():
            print("training", flush=True)
            while not stop.asked:
                await asyncio.sleep(0.05)
            await asyncio.sleep(STEP_S)
            print("saved", flush=True)

def work():
    print("attempt", flush=True)
    asyncio.run(train())
"""


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step_s", [0.1, 600])
def test_a_stop_is_passed_on_in_both_steps(tmp_path, monkeypatch, sent, step_s):
    begin, end = SCRIPT.split("def work():")
    train = TRAIN.replace("STEP_S", str(step_s))
    script = begin + train + end[end.index("\nsys.exit") :]
    monkeypatch.setattr(sys.modules[__name__], "SCRIPT", script)
    run = started(tmp_path, "")
    assert [run.stdout.readline() for _ in range(2)] == ["attempt\n", "training\n"]
    run.send_signal(sent)
    if step_s == 600:
        time.sleep(0.5)
        run.send_signal(sent)
    said, errors = run.communicate(timeout=30)
    assert (run.returncode, said) == (130, "saved\n" if step_s < 1 else "")
    assert errors.count("interrupted\n") == 1
    assert errors.startswith(f"{sent.name}: the run ends after this step")


def test_pauses_are_short_again_behind_an_attempt_that_lasted(tmp_path):
    _, attempts, errors = ended(started(tmp_path, "time.sleep(1) or die()", longest_s=0.5))
    assert attempts == 3
    assert errors.count("in 0.05 s") == 2


def test_a_stop_between_two_attempts_ends_it(tmp_path):
    run = started(tmp_path, "die()", pause_s=600)
    assert run.stdout.readline() == "attempt 1\n"
    time.sleep(1.5)
    run.send_signal(signal.SIGTERM)
    status, attempts, errors = ended(run)
    assert (status, attempts) == (130, 0)
    assert errors.endswith("interrupted\n")


def test_a_run_ends_with_the_guard(tmp_path):
    run = started(tmp_path, "time.sleep(600)")
    assert run.stdout.readline() == "attempt 1\n"
    child = psutil.Process(int((tmp_path / "attempt_1").read_text()))
    run.kill()
    run.wait(timeout=10)
    _, alive = psutil.wait_procs([child], timeout=10)
    assert not alive


@pytest.fixture
def guarded(monkeypatch, tmp_path):
    """What the command line asks the guard for, in place of a guard."""
    asked = []

    class Asked:
        def __init__(self, folder, *, restarts, hang_s):
            asked.append((folder, restarts, hang_s))

        def run(self, work):
            return work()

    monkeypatch.setattr(guard_module, "Guard", Asked)
    monkeypatch.setattr(cli, "check_and_run", lambda config: asked.append(config) or 0)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sft.yaml").write_text("{data: {path: x}, policy: {model: {path: a/b}}}")
    return asked


@pytest.mark.parametrize("option", [["--restarts", "3"], ["--restarts=3"]], ids=["two", "one"])
def test_the_command_line_has_one_folder_and_resumes(guarded, tmp_path, option):
    assert cli.main(["sft", "sft.yaml", *option, "--seed", "5"]) == 0
    (folder, restarts, hang_s), config = guarded
    assert (restarts, hang_s) == (3, 300.0)
    assert config.resume == "auto"
    assert (str(folder), config.seed) == (config.run_dir, 5)
    assert os.path.dirname(config.run_dir) == str(tmp_path / "runs")


@pytest.mark.parametrize("given", [["-1"], ["many"], []], ids=["below", "word", "none"])
def test_no_number_is_refused(guarded, given, capsys):
    assert cli.main(["sft", "sft.yaml", "--restarts", *given]) == 2
    assert "--restarts must be an integer of at least 0" in " ".join(
        capsys.readouterr().err.split()
    )
    assert not guarded
