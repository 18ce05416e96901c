"""A full disk in words: what did not fit where, and how much room there is."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlhf_ray.errors import RlhfRayError, RunError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_SAID = ("No space left on device", "os error 28", "Disk quota exceeded", "os error 122")
# torch's writer of archives says "file write failed" and no more; it stops where nothing is left.
_NOTHING_LEFT_BYTES = 2**20


@contextmanager
def room_for(what: str, path: Path) -> Iterator[None]:
    """Say of a write that failed on a full disk that it did, whatever the library says.

    Args:
        what: Is written, in words.
        path: The file or folder that is written to.

    Raises:
        RunError: The file system of `path` is full; other errors pass as they are.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, RlhfRayError) or not _is_full(error, path):
            raise
        raise RunError(
            f"the disk is full: no room for {what} in {path}, where {_free_bytes(path)} bytes are "
            f"free ({error})"
        ) from error


def _is_full(error: Exception, path: Path) -> bool:
    if isinstance(error, OSError):
        return error.errno in _FULL
    if any(said in str(error) for said in _SAID):
        return True
    return isinstance(error, RuntimeError) and _free_bytes(path) < _NOTHING_LEFT_BYTES


def _free_bytes(path: Path) -> int:
    there = next(place for place in (path, *path.absolute().parents) if place.exists())
    return shutil.disk_usage(there).free
