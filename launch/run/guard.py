"""`--restarts N`: a process that watches the one that runs a job, and starts it again.

It does so where that one was killed, failed or hangs, from the last checkpoint, and ends what it
left: Ray's agents stay where the driver of a cluster of its own is killed. It does not where a run
was stopped, refused (status 2) or ended by a rule (status 3): it would end so again. Only a run
that had begun before is tried again where it is refused: a cluster that has lost a node is too
small until that, or another one, has joined.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import psutil

from launch.run.signals import interrupt_when_stopped, uninterrupted
from rlhf_ray.disk import room_for
from rlhf_ray.errors import EXIT_CONFIG, EXIT_INTERRUPTED, EXIT_RUN
from rlhf_ray.jobs.status import read_status

logger = logging.getLogger(__name__)

FILE = "heartbeat"
BEAT_S = 2.0
POLL_S = 0.1
# Between two attempts; twice as long each time, until one has run for as long as the longest.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 5.0, 300.0
# How long what a driver left may take to end: by itself, as workers do, then asked, then killed.
END_S = {None: 10.0, signal.SIGTERM: 3.0, signal.SIGKILL: 10.0}
# Of prctl(2).
_PARENT_DEATH_SIGNAL, _CHILD_SUBREAPER = 1, 36

_is_watched = False


@asynccontextmanager
async def beating(folder: Path) -> AsyncIterator[None]:
    """Show the guard, if there is one, that the event loop runs: nobody else could tell."""
    if not _is_watched:
        yield
        return
    file = folder / FILE

    async def beat() -> None:
        while True:
            with room_for("a heartbeat", file):
                file.touch()
            await asyncio.sleep(BEAT_S)

    beats = asyncio.create_task(beat())
    try:
        yield
    finally:
        beats.cancel()
        file.unlink(missing_ok=True)


class Guard:
    """Runs a job in a child, again where that may help, `restarts` times at most."""

    def __init__(self, folder: Path, *, restarts: int, hang_s: float) -> None:
        """The child is taken to hang whose heart, in `folder` or one below, stands for `hang_s`."""
        self.folder, self.restarts, self.hang_s = folder, restarts, hang_s
        self._came: Sequence[int] = ()
        self._num_forwarded = 0
        self._begun: list[bool] = []  # each attempt: did it get as far as to beat

    def run(self, work: Callable[[], int]) -> int:
        """The exit status of the last attempt; in the child, that of `work`."""
        _adopt_orphans()
        pause_s = FIRST_PAUSE_S
        with uninterrupted() as self._came:
            for attempt in range(self.restarts + 1):
                self._forget_beats()
                began_s = time.monotonic()
                if not (child := _fork()):
                    return self._begin(work)
                status, hung = self._watched(child)
                end_orphans()
                cause = "" if self._came else self._cause(status, hung)
                if not cause or attempt == self.restarts:
                    return status if status >= 0 else 128 - status
                if time.monotonic() - began_s > LONGEST_PAUSE_S:
                    pause_s = FIRST_PAUSE_S
                logger.warning(
                    "the run %s: restart %d of %d in %g s",
                    cause, attempt + 1, self.restarts, pause_s,
                )  # fmt: skip
                if not self._pause(pause_s):
                    break
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED

    def _begin(self, work: Callable[[], int]) -> int:
        """In the child: a stop is its own from here on, and comes as well where the guard dies."""
        global _is_watched
        _is_watched = True
        os.setpgid(0, 0)  # a terminal's Ctrl-C reaches the guard alone, which passes it on once
        interrupt_when_stopped()
        _prctl(_PARENT_DEATH_SIGNAL, signal.SIGTERM)
        if len(self._came) > self._num_forwarded:
            raise KeyboardInterrupt
        return work()

    def _watched(self, child: int) -> tuple[int, bool]:
        """Exit status, or minus the signal that ended it; whether that was for it hung."""
        beats, changed_s = self._beats(), time.monotonic()
        hung = False
        self._begun.append(False)
        while (status := _reaped(child)) is None:
            for number in self._came[self._num_forwarded :]:
                self._num_forwarded += 1
                os.kill(child, number)
            if (now := self._beats()) != beats or not now:
                beats, changed_s = now, time.monotonic()
            self._begun[-1] = self._begun[-1] or bool(now)
            # Not by the file's time: clocks are set, and machines sleep.
            if not hung and time.monotonic() - changed_s > self.hang_s:
                hung = True
                os.kill(child, signal.SIGKILL)
            time.sleep(POLL_S)
        return status, hung

    def _cause(self, status: int, hung: bool) -> str:
        """Why it is to be started again, in words; empty where it is not."""
        if hung:
            return f"hung (no heartbeat for {self.hang_s:g} s) and was killed"
        if status < 0:
            return f"was killed by {signal.Signals(-status).name}"
        if status == EXIT_RUN:
            reason = read_status(self.folder).get("reason")
            return f"failed ({reason})" if reason else "failed"
        if status == EXIT_CONFIG and any(self._begun[:-1]):
            return "was refused, though it had begun before"
        return ""

    def _pause(self, seconds: float) -> bool:
        """Whether nobody stopped it."""
        until_s = time.monotonic() + seconds
        while time.monotonic() < until_s and not self._came:
            time.sleep(POLL_S)
        return not self._came

    def _beats(self) -> list[int]:
        """When the files were touched: one, which a stage of a pipeline has in its own folder."""
        times = []
        for file in self._files():
            with suppress(FileNotFoundError):
                times.append(file.stat().st_mtime_ns)
        return times

    def _forget_beats(self) -> None:
        for file in self._files():
            file.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        return [self.folder / FILE, *self.folder.glob(f"*/{FILE}")]


def end_orphans() -> None:
    """End all below this process, which has nothing below it that anybody needs."""
    for number, patience_s in END_S.items():
        for process in _below():
            if number is not None:
                with suppress(psutil.NoSuchProcess):
                    process.send_signal(number)
        until_s = time.monotonic() + patience_s
        while left := _below():
            if time.monotonic() > until_s:
                break
            time.sleep(POLL_S)
        if not left:
            return
    logger.error("still there: %s", ", ".join(f"process {process.pid}" for process in left))


def _below() -> list[psutil.Process]:
    _reaped(None)
    below: list[psutil.Process] = psutil.Process().children(recursive=True)
    return below


def _fork() -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    return os.fork()


def _reaped(child: int | None) -> int | None:
    """The status of the child, if it has ended; orphans that have ended are cleared away."""
    with suppress(ChildProcessError):  # there is none
        while (found := os.waitpid(-1, os.WNOHANG)) != (0, 0):
            if found[0] == child:
                return os.waitstatus_to_exitcode(found[1])
    return None


def _adopt_orphans() -> None:
    """Become the parent of what lies below a child that ends."""
    _prctl(_CHILD_SUBREAPER, 1)


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, f"prctl {option}: {os.strerror(number)}")
