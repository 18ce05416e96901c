"""Run a command so that all processes that come of it end: with it, or with who asked for it.

`kept(command)` is the command to start. It runs this file by itself, in a Python that imports
nothing of this library: it stands between, and the kernel gives it all orphans of the command,
also those with a session of their own. They end once the command has ended, once this process is
asked to (SIGTERM), or once the process is gone that asked for it, killed or not.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Sequence

# linux/prctl.h
_PR_SET_CHILD_SUBREAPER = 36
# Between two looks at whether the process is there that asked for the command.
_WATCH_S = 1.0
# Until all have ended that were killed; one that the kernel holds is left to it.
_END_S = 5.0
# As shells say it: there is no such command; the number of a signal comes on top.
_NOT_FOUND, _BY_SIGNAL = 127, 128
_SIGNALS = (signal.SIGCHLD, signal.SIGTERM)


def kept(command: Sequence[str]) -> list[str]:
    """The command to start in place of `command`, as a child of this process.

    It has the same streams, environment variables and status, or 128 and the number of the signal
    that ended it.
    """
    return [sys.executable, "-I", "-S", "-B", __file__, str(os.getpid()), *command]


def main(parent: int, command: Sequence[str]) -> int:
    """Start it, wait for what ends it, and end what is left.

    Args:
        parent: The process that asked for it.
        command: The program and its arguments.

    Returns:
        A status to end with.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        child = os.posix_spawnp(
            command[0],
            list(command),
            os.environ,
            setsigmask=(),
            setsigdef=(signal.SIGPIPE, signal.SIGXFSZ),  # which Python ignores
        )
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr)
        return _NOT_FOUND
    os.closerange(0, 2)  # whoever reads or writes these waits for the command alone
    statuses: dict[int, int] = {}
    while child not in statuses and os.getppid() == parent:
        found = signal.sigtimedwait(_SIGNALS, _WATCH_S)
        if found is not None and found.si_signo == signal.SIGTERM:
            break
        _has_children(statuses)
    _end_all()
    status = statuses.get(child, -signal.SIGTERM)
    return status if status >= 0 else _BY_SIGNAL - status


def _has_children(statuses: dict[int, int]) -> bool:
    """Whether there are any, but for those that have ended: how is noted by their numbers."""
    try:
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            statuses[ended[0]] = os.waitstatus_to_exitcode(ended[1])
    except ChildProcessError:
        return False
    return True


def _end_all() -> None:
    """Kill its children; theirs are its own then, until there is none."""
    ends_s = time.monotonic() + _END_S
    while time.monotonic() < ends_s:
        for child in _children():
            try:
                os.kill(child, signal.SIGKILL)
            except PermissionError:
                continue  # it runs as somebody else
        if not _has_children({}):
            return
        signal.sigtimedwait([signal.SIGCHLD], 0.02)


def _children() -> list[int]:
    """Of this process. Nobody else has their numbers before it has asked how they ended."""
    found, own = [], os.getpid()
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                text = file.read()
        except OSError:
            continue  # it has ended
        _, parent, *_ = text[text.rindex(b")") + 2 :].split()
        if int(parent) == own:
            found.append(int(name))
    return found


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
