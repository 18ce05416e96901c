"""What a rank has on an NVMe drive: a folder of its own, and checkpoints of states kept there.

DeepSpeed names its files by rank and by a number that each process counts anew, and empties the
folder that it begins with: two roles, or two runs, would write over each other's. So each rank has
its own, which is gone when the model is.

Of a checkpoint DeepSpeed copies those files, and on the way back leaves out Adam's step and the
states of what was too small for the drive: a resumed run would go on from other weights. Here each
part of the states goes through memory, one by one.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from rlhf_ray.config.learners import ForwardConfig
from rlhf_ray.errors import ConfigError
from rlhf_ray.libaio import libaio_fault

_PREFIX = "rlhf-ray-"
_LOCK = ".lock"

F = TypeVar("F", bound=ForwardConfig)


class DriveFolder:
    """A folder that is one process's, for as long as it holds a lock beside it.

    The kernel gives the lock back however the process ends, so that what a killed one left is known
    and removed by the next one that comes: it may be most of the drive.
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


def save_states(optimizer: Any, folder: Path, counters: Mapping[str, int]) -> None:
    """Write weights and states of this rank's part of ZeRO-3, and the counters with them."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(dict(counters), _counters(folder))
    for index in range(len(optimizer.fp16_groups)):
        optimizer._prepare_sub_group(index, set())
        flat, state = _part(optimizer, index)
        # A view of the buffer that it was read into would be written with the whole buffer.
        values = {
            key: value.clone() if isinstance(value, torch.Tensor) else value
            for key, value in state.items()
        }
        torch.save({"weights": flat.detach().clone(), "state": values}, _file(folder, index))
        optimizer._release_sub_group(index, set())


def load_states(optimizer: Any, folder: Path) -> Mapping[str, int]:
    """Read what `save_states` wrote, on as many ranks, into optimiser and model: the counters."""
    optimizer.checkpoint_event_prologue()
    for index in range(len(optimizer.fp16_groups)):
        saved = torch.load(_file(folder, index), weights_only=True)
        optimizer._prepare_sub_group(index, set())
        flat, state = _part(optimizer, index)
        flat.data.copy_(saved["weights"])
        for key, value in saved["state"].items():
            if isinstance(state.get(key), torch.Tensor):
                state[key].data.copy_(value)
            else:
                state[key] = value
        optimizer._reassign_or_swap_out_partitioned_parameters(index)
        optimizer._release_sub_group(index, set())
    optimizer.checkpoint_event_epilogue()
    counters: Mapping[str, int] = torch.load(_counters(folder), weights_only=True)
    return counters


def _part(optimizer: Any, index: int) -> tuple[torch.Tensor, dict[str, Any]]:
    flat: torch.Tensor = optimizer.fp32_partitioned_groups_flat[index]
    state: dict[str, Any] = optimizer.optimizer.state[flat]
    return flat, state


def _counters(folder: Path) -> Path:
    return folder / f"counters_rank{dist.get_rank()}.pt"


def _file(folder: Path, index: int) -> Path:
    return folder / f"states{index:05d}_rank{dist.get_rank()}.pt"
