"""Two processes that work in turns, watched from outside: seconds, and those of processors."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import psutil

# Imports, models, engines and the first steps.
START_S = 240.0
TURN_S = 240.0
STOP_S = 30.0
# Processes of vLLM look out for work without a rest for a second after their last.
REST_S = 1.5
LAST_LINES = 25


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What one side did while it was alone.

    Attributes:
        seconds: From its permission to its word that it is done.
        cpu_s: Of all its processes meanwhile.
        num_tokens: That it trained, where it counts them.
        idle_cpu_s: Of the other side's processes meanwhile, which should have been at rest.
    """

    seconds: float
    cpu_s: float
    num_tokens: int
    idle_cpu_s: float = 0.0


class Side:
    """One of the two: a process of its own with whatever that starts."""

    def __init__(self, module: str, given: Path, log: Path, environment: Mapping[str, str]) -> None:
        """Start it.

        Args:
            module: Of this package; its `main` takes a file and a descriptor.
            given: The file.
            log: For what it prints.
            environment: Its own.
        """
        self.module, self.log = module, log
        self.channel, theirs = Pipe()
        descriptor = theirs.fileno()
        command = [sys.executable, "-m", f"benchmarks.against_trl.{module}", str(given)]
        with log.open("w") as output:
            self.process = subprocess.Popen(
                [*command, str(descriptor)],
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=dict(environment),
                pass_fds=[descriptor],
                start_new_session=True,
            )
        theirs.close()

    def wait(self, timeout_s: float) -> int:
        """Until its turn is over; the tokens that it trained.

        Raises:
            RuntimeError: It ended, or is late; with the last lines that it printed.
        """
        try:
            if self.channel.poll(timeout_s):
                num_tokens: int = self.channel.recv()
                return num_tokens
            why = f"is not done after {timeout_s:g} s"
        except (EOFError, ConnectionResetError):
            why = f"ended with status {self.process.wait(STOP_S)}"
        raise self.failure(why)

    def failure(self, why: str) -> RuntimeError:
        """What is wrong with it, and the last lines that it printed."""
        lines = self.log.read_text(errors="replace").splitlines()[-LAST_LINES:]
        return RuntimeError("\n".join([f"{self.module} {why}:", *lines]))

    def turn(self, other: Side) -> Turn:
        """Let it work, alone: all processes of the other one stand still.

        Each process of Ray takes a hundredth of a processor also where it has nothing to do.
        """
        time.sleep(REST_S)
        cpu_s, idle_cpu_s = self.cpu_s(), other.cpu_s()
        with other.stopped():
            began_s = time.monotonic()
            self.channel.send(True)
            num_tokens = self.wait(TURN_S)
            seconds = time.monotonic() - began_s
        return Turn(
            seconds=seconds,
            cpu_s=self.cpu_s() - cpu_s,
            num_tokens=num_tokens,
            idle_cpu_s=other.cpu_s() - idle_cpu_s,
        )

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """While this is open, none of its processes runs."""
        processes = self.processes()
        try:
            for process in processes:
                with suppress(psutil.NoSuchProcess):
                    process.suspend()
            yield
        finally:
            for process in processes:
                with suppress(psutil.NoSuchProcess):
                    process.resume()

    def processes(self) -> list[psutil.Process]:
        """The one that was started here, and those that it has started."""
        root = psutil.Process(self.process.pid)
        return [root, *root.children(recursive=True)]

    def cpu_s(self) -> float:
        """Of all its processes since they began, those that ended and were waited for included."""
        total_s = 0.0
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):  # it ended this moment
                times = process.cpu_times()
                total_s += times.user + times.system
                total_s += times.children_user + times.children_system
        return total_s

    def end(self) -> None:
        """Tell it that no turn is left, and end what is there after a while."""
        with suppress(OSError):
            self.channel.send(False)
        left = []
        with suppress(psutil.NoSuchProcess):
            left = self.processes()[1:]
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_S)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        for process in psutil.wait_procs(left, timeout=1.0)[1]:  # groups of their own
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.channel.close()
        self.process.wait(STOP_S)


def take_turns(sides: Sequence[Side], pairs: int) -> list[tuple[Turn, Turn]]:
    """So many turns of each, of which no side always has the first.

    Both start side by side, and have worked once before.
    """
    deadline_s = time.monotonic() + START_S
    starting: dict[Any, Side] = {side.channel: side for side in sides}
    while starting:  # one that dies does not let the other one finish
        left_s = max(0.0, deadline_s - time.monotonic())
        ready = wait([*starting], left_s)
        if not ready:
            raise next(iter(starting.values())).failure(f"has not started within {START_S:g} s")
        for channel in ready:
            starting.pop(channel).wait(0.0)
    one, other = sides
    turns = []
    for number in range(pairs):
        if number % 2 == 0:
            first = one.turn(other)
            turns.append((first, other.turn(one)))
        else:
            first = other.turn(one)
            turns.append((one.turn(other), first))
    return turns
