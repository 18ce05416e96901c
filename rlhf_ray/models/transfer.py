"""From the host's arrays to a device, without waiting for what runs there."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch


def on_device(
    values: npt.ArrayLike, device: torch.device, *, dtype: npt.DTypeLike | None = None
) -> torch.Tensor:
    """A tensor of `values`, which nobody writes to any more.

    Memory that is not pinned would be copied once all kernels before have run: the host, which is
    ahead of a GPU by some hundred of them, would be so no longer.
    """
    array: Any = np.ascontiguousarray(values, dtype=dtype)
    tensor = torch.from_numpy(array)
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
