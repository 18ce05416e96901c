"""Where what one rank hosts lies on an NVMe drive: in a folder of its own, gone when the model is.

DeepSpeed names its files by rank and by a number that each process counts anew, and empties the
folder that it begins with: two roles, or two runs, would write over each other's.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from pathlib import Path
from typing import TypeVar

from rlhf_ray.config.base import ForwardConfig
from rlhf_ray.errors import ConfigError
from rlhf_ray.libaio import libaio_fault

_PREFIX = "rlhf-ray-"
_LOCK = ".lock"

F = TypeVar("F", bound=ForwardConfig)


class DriveFolder:
    """A folder that is one process's, for as long as it holds a lock beside it.

    The kernel gives the lock back however the process ends, so that what a killed one left is known
    and removed by the next one that comes: it may be most of the drive.

    Attributes:
        path: Of the folder.
    """

    def __init__(self, below: Path) -> None:
        """Make a folder, and remove those of processes that are gone."""
        below.mkdir(parents=True, exist_ok=True)
        for lock in below.glob(f"{_PREFIX}*{_LOCK}"):
            _remove_if_left(lock)
        # Held before others can see it: a lock that nobody holds is taken for one that was left.
        self._descriptor: int | None
        self._descriptor, hidden = tempfile.mkstemp(prefix=".", dir=below)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self.path = below / f"{_PREFIX}{Path(hidden).name.removeprefix('.')}"
        self._lock = self.path.with_suffix(_LOCK)
        os.rename(hidden, self._lock)
        self.path.mkdir()

    def close(self) -> None:
        """Remove the folder with all that is in it; once more does nothing."""
        if self._descriptor is None:
            return
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.unlink(missing_ok=True)
        os.close(self._descriptor)
        self._descriptor = None


def _remove_if_left(lock: Path) -> None:
    try:
        descriptor = os.open(lock, os.O_RDWR)
    except OSError:  # gone meanwhile, or another user's
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    else:
        shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
        lock.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def own_folder(section: F) -> tuple[F, DriveFolder | None]:
    """The same section with a folder of its own on the drive, where it offloads to one.

    Raises:
        ConfigError: What DeepSpeed needs for it is not there.
    """
    if not section.zero.offloads_to_nvme:
        return section, None
    if fault := libaio_fault():
        raise ConfigError(f"{os.uname().nodename}: {fault}")
    folder = DriveFolder(Path(section.zero.nvme_path))
    zero = section.zero.model_copy(update={"nvme_path": str(folder.path)})
    return section.model_copy(update={"zero": zero}), folder
