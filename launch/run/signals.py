"""The signals that stop a command: Ctrl-C, SIGTERM (Ray, Kubernetes, Slurm), a terminal that goes.

The first one asks a run that trains to end after its step. A second one, a terminal that goes, and
the first where nothing is trained, raise `KeyboardInterrupt`: actors are ended, the run is marked
as interrupted, and the exit status is 130, as it is of a run that was asked. A terminal, `timeout`
or Slurm may send theirs to Ray's own processes as well; what must be noted in any case is therefore
noted at the signal, not on the way out.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

from rlhf_ray.errors import EXIT_INTERRUPTED

_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# With the process that asked: one that a library forks from it inherits list and handler.
_callbacks: list[tuple[int, Callable[[], None]]] = []
_asked: list[tuple[int, Callable[[], str]]] = []


def interrupt_when_stopped() -> None:
    """Have every one of them interrupt, but those that `nohup` or a shell has us ignore."""
    for number in _heeded():
        # Not Python's own: asyncio would replace it by one that waits for what blocks the loop.
        signal.signal(number, _interrupt)


@contextmanager
def on_stop(call: Callable[[], None]) -> Iterator[None]:
    """Call `call` at the signal itself, before anything is unwound; it must be quick."""
    entry = (os.getpid(), call)
    _callbacks.append(entry)
    try:
        yield
    finally:
        _callbacks.remove(entry)


@contextmanager
def asked_first(ask: Callable[[], str]) -> Iterator[None]:
    """Ask at a signal, and interrupt only where nothing is answered; else the answer is shown.

    With a terminal that goes nobody is there to see it, and what is shown would fail.
    """
    entry = (os.getpid(), ask)
    _asked.append(entry)
    try:
        yield
    finally:
        _asked.remove(entry)


@contextmanager
def exit_when_stopped() -> Iterator[None]:
    """Have them end the process at once, while there is nothing to give back.

    For imports: an exception amid that of a C extension can end in an abort.
    """
    with _answered_by(lambda number, frame: leave()):
        yield


def leave() -> NoReturn:
    """End the process as an interrupt does, and give nothing back."""
    os.write(sys.stderr.fileno(), b"interrupted\n")
    os._exit(EXIT_INTERRUPTED)


@contextmanager
def uninterrupted() -> Iterator[list[int]]:
    """Let nothing interrupt what must not be left half done; yields what came meanwhile."""
    came: list[int] = []
    with _answered_by(lambda number, frame: came.append(number)):
        yield came


@contextmanager
def _answered_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    kept = {number: signal.getsignal(number) for number in _heeded()}
    for number in kept:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, before in kept.items():
            signal.signal(number, before)


def _heeded() -> list[signal.Signals]:
    if threading.current_thread() is not threading.main_thread():
        return []  # only that one may set handlers
    return [number for number in _STOPPING if signal.getsignal(number) is not signal.SIG_IGN]


def _interrupt(number: int, frame: FrameType | None) -> None:
    for owner, call in list(_callbacks):
        if owner == os.getpid():
            call()
    if number != signal.SIGHUP:
        for owner, ask in list(_asked):
            if owner == os.getpid() and (answer := ask()):
                return say(f"{answer}; a second one ends it now", number)
    raise KeyboardInterrupt


def say(text: str, number: int) -> None:
    """Tell of a signal, amid whatever is being written."""
    with suppress(OSError):  # nobody is there to read it
        os.write(sys.stderr.fileno(), f"{signal.Signals(number).name}: {text}\n".encode())
