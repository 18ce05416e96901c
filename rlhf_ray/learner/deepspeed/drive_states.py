"""Checkpoints of an optimiser whose states lie on an NVMe drive.

DeepSpeed copies the drive's files, whose names are numbers of the process that wrote them, and on
the way back leaves out Adam's step and the states of what was too small for the drive: a resumed
run would go on from other weights. Here each part of the states goes through memory, one by one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


def save_states(optimizer: Any, folder: Path, counters: Mapping[str, int]) -> None:
    """Write weights and states of this rank.

    Args:
        optimizer: DeepSpeed's, of ZeRO-3.
        folder: Of the checkpoint; all ranks may write into one.
        counters: Go with them.
    """
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
    """Read what `save_states` wrote, on as many ranks, into optimiser and model.

    Returns:
        The counters.
    """
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
