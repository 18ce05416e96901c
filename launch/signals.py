"""The signals that stop a command: Ctrl-C, SIGTERM (Ray, Kubernetes, Slurm), a terminal that goes.

All of them raise `KeyboardInterrupt`: actors are ended, the run is marked as interrupted, and the
exit status is 130.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def interrupt_when_stopped() -> None:
    """Have every one of them interrupt, but those that `nohup` or a shell has us ignore."""
    for number in _heeded():
        # Not Python's own: asyncio would replace it by one that waits for what blocks the loop.
        signal.signal(number, _interrupt)


@contextmanager
def uninterrupted() -> Iterator[list[int]]:
    """Let nothing interrupt what must not be left half done; yields what came meanwhile."""
    came: list[int] = []
    kept = {number: signal.getsignal(number) for number in _heeded()}
    for number in kept:
        signal.signal(number, lambda number, frame: came.append(number))
    try:
        yield came
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def _heeded() -> list[signal.Signals]:
    if threading.current_thread() is not threading.main_thread():
        return []  # only that one may set handlers
    return [number for number in _STOPPING if signal.getsignal(number) is not signal.SIG_IGN]


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
