"""Processes that answer one question at a time, each within a limit, for code that may hang.

A thread cannot be stopped, and a fork of a process with threads (Ray's, torch's) may deadlock; so
these are new interpreters. They start with the first question, stay for the next ones, and end with
the process that started them.
"""

from __future__ import annotations

import atexit
import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from multiprocessing.connection import Connection, Pipe, wait
from types import FrameType
from typing import Any, Literal

from rlhf_ray.errors import RunError
from rlhf_ray.parent_process import end_with_parent

# Python, SymPy and their imports, on a busy machine.
_START_S = 120.0
# Above a limit of processor time: a question that waits for something, or a machine that is slow.
_WALL_TIMES, _WALL_S = 2.0, 5.0
_MEMORY_BYTES = 4 * 2**30
_MAX_WORKERS = 8
# For a process that others' questions have. Whoever asks has a deadline that comes before.
_FREE_S = 3600.0
# Between two questions; a closed connection wakes it at once.
_IDLE_S = 60.0

FailureKind = Literal["timeout", "memory", "crash", "error"]


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A question without an answer.

    Attributes:
        kind: It took too long, too much memory, ended its process, or raised.
        cause: In words.
    """

    kind: FailureKind
    cause: str


class _OutOfTime(BaseException):
    """Not an `Exception`: what is asked may catch those."""


@dataclass(kw_only=True)
class _Worker:
    process: subprocess.Popen[bytes]
    connection: Connection
    # Of the question that it works on.
    place: int = -1
    deadline_s: float = 0.0

    @classmethod
    def start(cls, function: str) -> _Worker:
        ours, theirs = Pipe()
        command = (
            f"from rlhf_ray.rewards.workers import serve; serve({theirs.fileno()}, {function!r})"
        )
        # -P: the working directory's own numbers.py or signal.py must not be the library's.
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", command],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        theirs.close()
        return cls(process=process, connection=ours)

    def end(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.wait(_WALL_S)


@dataclass(kw_only=True)
class Workers:
    """A few processes behind one function, for all who ask.

    Attributes:
        function: `module:function`, of one picklable question; imported in the processes alone.
    """

    function: str
    # Several threads may ask: its methods are atomic.
    _idle: deque[_Worker] = field(default_factory=deque)
    _free: threading.Semaphore = field(
        default_factory=lambda: threading.Semaphore(min(len(os.sched_getaffinity(0)), _MAX_WORKERS))
    )

    def __post_init__(self) -> None:
        """Leave no process behind."""
        atexit.register(self.close)

    def ask(self, questions: Sequence[Hashable], *, timeout_s: float) -> list[Any]:
        """The answers, each a `Failure` where there is none; equal questions are asked once.

        `timeout_s` is processor time for one; one that does nothing is ended somewhat later.

        Raises:
            RunError: The processes cannot start.
        """
        distinct = list(dict.fromkeys(questions))
        answers = dict(zip(distinct, self._ask(distinct, timeout_s), strict=True))
        return [answers[question] for question in questions]

    def close(self) -> None:
        """End the processes; the next question starts new ones."""
        while (worker := self._take()) is not None:
            worker.end()

    def _ask(self, questions: Sequence[Hashable], timeout_s: float) -> list[Any]:
        answers: list[Any] = [None] * len(questions)
        waiting = deque(range(len(questions)))
        repeated: set[int] = set()
        busy: dict[Connection, _Worker] = {}
        try:
            while waiting or busy:
                while waiting and self._free.acquire(timeout=0 if busy else _FREE_S):
                    worker = self._ready()
                    busy[worker.connection] = worker
                    worker.place = waiting.popleft()
                    worker.deadline_s = time.monotonic() + _WALL_TIMES * timeout_s + _WALL_S
                    with suppress(OSError):  # it is gone: found when it does not answer
                        worker.connection.send((questions[worker.place], timeout_s))
                if not busy:
                    raise RunError(f"no process for {self.function} was free for {_FREE_S:g} s")
                for worker in self._finished(busy):
                    answer = answers[worker.place] = self._answer(worker, timeout_s)
                    self._free.release()
                    # It may have ended for another reason: a machine without memory ends any.
                    is_crash = isinstance(answer, Failure) and answer.kind == "crash"
                    if is_crash and worker.place not in repeated:
                        repeated.add(worker.place)
                        waiting.append(worker.place)
        finally:
            for worker in busy.values():
                worker.end()
                self._free.release()
        return answers

    def _finished(self, busy: dict[Connection, _Worker]) -> list[_Worker]:
        first_s = min(worker.deadline_s for worker in busy.values())
        there = wait(list(busy), timeout=max(0.0, first_s - time.monotonic()))
        now_s = time.monotonic()
        return [
            busy.pop(connection)
            for connection, worker in list(busy.items())
            if connection in there or worker.deadline_s <= now_s
        ]

    def _answer(self, worker: _Worker, timeout_s: float) -> Any:
        """What a worker says; one that is silent or gone is used no more."""
        try:
            if worker.connection.poll():
                answer = _receive(worker.connection)
                self._idle.append(worker)
                return answer
        except (EOFError, OSError):
            status = worker.process.wait(_WALL_S)
            worker.end()
            if status == -signal.SIGXCPU:
                return Failure(kind="timeout", cause=f"it took more than {timeout_s:g} s")
            return Failure(kind="crash", cause=f"its process ended with status {status}")
        worker.end()
        return Failure(kind="timeout", cause=f"it took more than {timeout_s:g} s")

    def _ready(self) -> _Worker:
        try:
            return self._used_or_new()
        except BaseException:
            self._free.release()
            raise

    def _used_or_new(self) -> _Worker:
        while (worker := self._take()) is not None:
            if worker.process.poll() is None:
                return worker
            worker.end()
        worker = _Worker.start(self.function)
        try:
            if worker.connection.poll(_START_S):
                fault = _receive(worker.connection)
            else:
                fault = f"it was not ready within {_START_S:g} s"
        except (EOFError, OSError):
            fault = f"it ended with status {worker.process.wait(_WALL_S)}"
        if fault:
            worker.end()
            raise RunError(f"a process for {self.function} cannot start: {fault}")
        return worker

    def _take(self) -> _Worker | None:
        try:
            return self._idle.pop()
        except IndexError:
            return None


def _receive(connection: Connection) -> Any:
    """A message that is there: `poll` said so, and one so small comes whole."""
    return pickle.loads(connection.recv_bytes())


def serve(descriptor: int, function: str) -> None:
    """Answer questions until the other end is closed; runs in a worker's process."""
    connection = Connection(descriptor)
    end_with_parent(os.getppid())
    module, _, name = function.partition(":")
    try:
        answer: Callable[[Any], Any] = getattr(import_module(module), name)
    except Exception as error:
        connection.send(f"{type(error).__name__}: {error}")
        return
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, resource.RLIM_INFINITY))
    signal.signal(signal.SIGPROF, _raise_out_of_time)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks
    connection.send("")
    while True:
        try:
            while not connection.poll(_IDLE_S):
                pass
            question, timeout_s = _receive(connection)
        except (EOFError, OSError):
            return
        connection.send(_answer_within(answer, question, timeout_s))


def _answer_within(answer: Callable[[Any], Any], question: Any, timeout_s: float) -> Any:
    used = resource.getrusage(resource.RUSAGE_SELF)
    # The kernel ends what no exception can reach: a power of great integers runs outside Python.
    limit_s = int(used.ru_utime + used.ru_stime + timeout_s) + 2
    resource.setrlimit(resource.RLIMIT_CPU, (limit_s, resource.RLIM_INFINITY))
    try:
        signal.setitimer(signal.ITIMER_PROF, timeout_s)
        try:
            return answer(question)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
    except _OutOfTime:
        return Failure(kind="timeout", cause=f"it took more than {timeout_s:g} s")
    except MemoryError:
        return Failure(kind="memory", cause=f"it took more than {_MEMORY_BYTES >> 30} GiB")
    except Exception as error:
        return Failure(kind="error", cause=f"{type(error).__name__}: {error}"[:200])


def _raise_out_of_time(number: int, frame: FrameType | None) -> None:
    raise _OutOfTime
