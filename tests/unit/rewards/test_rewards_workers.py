from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from rlhf_ray.errors import RunError
from rlhf_ray.rewards import workers as module
from rlhf_ray.rewards.workers import Failure, Workers

FUNCTION = "reward_questions:answer"


@pytest.fixture
def workers() -> Iterator[Workers]:
    made = Workers(function=FUNCTION)
    yield made
    made.close()


def test_answers_come_in_order_whatever_happens_to_others(workers: Workers) -> None:
    asked = ["a", "loop", "b", "power", "a", "memory", "exit", "raise", "c"]
    answers = workers.ask(asked, timeout_s=0.5)
    assert [answer for answer in answers if isinstance(answer, str)] == ["aa", "bb", "aa", "cc"]
    failures = {q: a for q, a in zip(asked, answers, strict=True) if isinstance(a, Failure)}
    assert {question: failure.kind for question, failure in failures.items()} == {
        "loop": "timeout",
        "power": "timeout",
        "memory": "memory",
        "exit": "crash",
        "raise": "error",
    }
    assert failures["exit"].cause == "its process ended with status 3"
    assert failures["raise"].cause == "KeyError: 'no such'"
    assert workers.ask(["d"], timeout_s=5.0) == ["dd"]


def test_one_that_waits_is_ended(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WALL_S", 1.0)
    before = psutil.Process().children()
    [failure] = workers.ask(["sleep"], timeout_s=0.5)
    assert failure == Failure(kind="timeout", cause="it took more than 0.5 s")
    assert psutil.Process().children() == before


def test_processes_stay_for_the_next_question_and_end_when_closed(workers: Workers) -> None:
    [first] = workers.ask(["process"], timeout_s=5.0)
    assert workers.ask(["process"], timeout_s=5.0) == [first]
    psutil.Process(int(first)).kill()  # as the kernel does for want of memory
    [other] = workers.ask(["process"], timeout_s=5.0)
    assert other != first
    workers.close()
    assert not psutil.pid_exists(int(first)) and not psutil.pid_exists(int(other))


def test_threads_may_ask_side_by_side(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    answers: dict[int, list[str]] = {}
    started: list[str] = []
    start = module._Worker.start
    monkeypatch.setattr(
        module._Worker, "start", lambda function: started.append(function) or start(function)
    )

    def ask(number: int) -> None:
        asked = [f"{number}-{index}" for index in range(20)]
        answers[number] = workers.ask(asked, timeout_s=5.0)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert {n: a[19] for n, a in answers.items()} == {n: f"{n}-19" * 2 for n in range(3)}
    assert 0 < len(started) <= len(os.sched_getaffinity(0)), "they share the processes"


def test_a_function_that_is_not_there_is_an_error() -> None:
    with pytest.raises(RunError, match="cannot start: ModuleNotFoundError: No module named 'nope'"):
        Workers(function="nope:f").ask(["a"], timeout_s=1.0)


@pytest.mark.parametrize(("question", "timeout_s"), [("a", 1.0), ("power", 1.0), ("loop", 300.0)])
def test_no_process_outlives_the_one_that_asks(question: str, timeout_s: float) -> None:
    code = f"""
import os, threading, time
from rlhf_ray.rewards.workers import Workers
workers = Workers(function={FUNCTION!r})
print(*workers.ask(["process"], timeout_s=5.0), flush=True)
asked, limit = [{question!r}], dict(timeout_s={timeout_s})
threading.Thread(target=workers.ask, args=(asked,), kwargs=limit).start()
time.sleep(0.3)
os.kill(os.getpid(), 9)
"""
    environment = {"PYTHONPATH": ":".join([str(Path(__file__).parent), *filter(None, sys.path)])}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment
    )
    deadline_s = time.monotonic() + 30
    while psutil.pid_exists(int(result.stdout)):
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
