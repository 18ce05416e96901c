"""`status.json`: how a run is, and the lock that leaves its folder to one process at a time.

The file has its full length from the first moment and is written in place: on a disk that filled
up meanwhile the last word still fits.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeAlias

from rlhf_ray.config.run import STATUS_FILE
from rlhf_ray.errors import ConfigError

logger = logging.getLogger(__name__)

State: TypeAlias = Literal["running", "finished", "interrupted", "failed"]
# A page and a block of every file system, so that a reader finds either word whole.
NUM_BYTES = 4096


@contextmanager
def held(folder: Path, *, job: str) -> Iterator[Callable[[State, str], None]]:
    """Have a folder to oneself; yields what writes its state and the reason.

    Nothing is in the file that was not before until it is called for the first time.

    Raises:
        ConfigError: Another process has the folder.
        OSError: There is no room for the file.
    """
    path = folder / STATUS_FILE
    is_new = not path.exists()
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if not _lock(descriptor):
            raise ConfigError(in_use(folder))
        try:
            _allocate(descriptor)
        except OSError:
            if is_new:
                path.unlink()
            raise

        def write(state: State, reason: str) -> None:
            try:
                os.pwrite(descriptor, _page(job, state, reason), 0)
            except OSError as error:  # of the disk itself; what ended the run is still raised
                logger.error("%s cannot say %s: %s", path, state, error)

        yield write
    finally:
        os.close(descriptor)


def read_status(folder: Path) -> dict[str, Any]:
    """What the file says; nothing where there is none, or where no run has begun."""
    path = folder / STATUS_FILE
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    status: dict[str, Any] = json.loads(text) if text.strip() else {}
    return status


def state_of(run_dir: str) -> str:
    """How a run is, in the file's word; empty where there is none."""
    return str(read_status(Path(run_dir)).get("state", ""))


def is_in_use(folder: Path) -> bool:
    """Whether a process runs in the folder; nothing is written.

    Raises:
        ConfigError: It is another user's.
    """
    path = folder / STATUS_FILE
    if not path.is_file():
        return False
    try:
        descriptor = os.open(path, os.O_RDWR)
    except PermissionError as error:
        raise ConfigError(f"run_dir {str(folder)!r} cannot be written: {error}") from error
    try:
        return not _lock(descriptor)
    finally:
        os.close(descriptor)


def in_use(folder: Path) -> str:
    """Whose the folder is, in words."""
    status = read_status(folder)
    is_known = "host" in status
    owner = f"process {status['process']} on {status['host']}" if is_known else "another process"
    return f"run_dir {str(folder)!r} is in use: {owner} runs a job there"


def _lock(descriptor: int) -> bool:
    """Take the lock, which ends with the process; whether it was free."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:  # some network file systems have no locks
        logger.warning("runs cannot be kept apart here: %s", error)
    return True


def _allocate(descriptor: int) -> None:
    missing = NUM_BYTES - os.fstat(descriptor).st_size
    if missing > 0:
        os.pwrite(descriptor, b" " * missing, NUM_BYTES - missing)
        os.fsync(descriptor)  # file systems that delay allocation find room only now


def _page(job: str, state: State, reason: str) -> bytes:
    status = {"state": state, "reason": reason, "job": job, "process": os.getpid()}
    page = json.dumps({**status, "host": socket.gethostname()}).encode()
    if len(page) > NUM_BYTES:
        return _page(job, state, f"{reason[: len(reason) // 2]} ...")
    return page.ljust(NUM_BYTES)
