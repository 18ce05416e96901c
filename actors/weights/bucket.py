"""Weights on their way to an engine or into the object store: several tensors laid end to end."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

# A view of a tensor's bytes must start where its dtype may.
ALIGNMENT_BYTES = 16


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What a bucket holds.

    Attributes:
        names: Those of the family's checkpoints.
        dtype_names: As in `torch`, without the prefix.
        shapes: Full ones.
    """

    names: list[str]
    dtype_names: list[str]
    shapes: list[list[int]]


@dataclass(frozen=True, kw_only=True)
class Bucket(Contents):
    """Some weights.

    Attributes:
        data: uint8 array that holds the tensors one after the other.
    """

    data: npt.NDArray[np.uint8]


def padded_bytes(num_bytes: int) -> int:
    """Room that a tensor of so many bytes takes in a bucket."""
    return -(-num_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def new_room(num_bytes: int) -> npt.NDArray[np.uint8]:
    """Memory of its own for each bucket."""
    return np.empty(num_bytes, dtype=np.uint8)


def pack(
    weights: Iterable[tuple[str, torch.Tensor]],
    *,
    bucket_bytes: int,
    room: Callable[[int], npt.NDArray[np.uint8]] = new_room,
) -> Iterator[Bucket]:
    """Lay tensors into buckets of at most `bucket_bytes`; a larger tensor gets one of its own.

    Args:
        weights: Each is copied before the next is asked for.
        bucket_bytes: Of a bucket.
        room: Where the next bucket of so many bytes lies; a bucket is good until this is called
            again, or for as long as what was returned lasts.
    """
    filling: _Filling | None = None
    for name, tensor in weights:
        num_bytes = padded_bytes(tensor.nbytes)
        if filling is not None and filling.free_bytes < num_bytes:
            yield filling.bucket()
            filling = None
        if filling is None:
            filling = _Filling(room(max(bucket_bytes, num_bytes)))
        filling.add(name, tensor)
    if filling is not None:
        yield filling.bucket()


def unpack(bucket: Bucket) -> list[tuple[str, torch.Tensor]]:
    """The tensors, as views of the bucket's data, which nobody may write to.

    Raises:
        ValueError: Shapes and bytes do not add up.
    """
    weights: list[tuple[str, torch.Tensor]] = []
    start = 0
    for name, dtype_name, shape in zip(
        bucket.names, bucket.dtype_names, bucket.shapes, strict=True
    ):
        dtype = getattr(torch, dtype_name)
        num_bytes = dtype.itemsize * torch.Size(shape).numel()
        weights.append((name, _tensor(bucket.data[start : start + num_bytes], dtype, shape)))
        start += padded_bytes(num_bytes)
    if start != len(bucket.data):
        raise ValueError(f"a bucket's shapes ask for {start} bytes, got {len(bucket.data)}")
    return weights


class _Filling:
    """A bucket in the making."""

    def __init__(self, room: npt.NDArray[np.uint8]) -> None:
        self._room, self._num_bytes = room, 0
        self._weights: list[tuple[str, torch.dtype, list[int]]] = []

    @property
    def free_bytes(self) -> int:
        return len(self._room) - self._num_bytes

    def add(self, name: str, tensor: torch.Tensor) -> None:
        end = self._num_bytes + tensor.nbytes
        place = _tensor(self._room[self._num_bytes : end], tensor.dtype, list(tensor.shape))
        place.copy_(tensor.detach())  # from whichever device, in one pass
        self._num_bytes += padded_bytes(tensor.nbytes)
        self._room[end : self._num_bytes] = 0
        self._weights.append((name, tensor.dtype, list(tensor.shape)))

    def bucket(self) -> Bucket:
        return Bucket(
            names=[name for name, _, _ in self._weights],
            dtype_names=[str(dtype).removeprefix("torch.") for _, dtype, _ in self._weights],
            shapes=[shape for _, _, shape in self._weights],
            data=self._room[: self._num_bytes],
        )


def _tensor(data: npt.NDArray[np.uint8], dtype: torch.dtype, shape: list[int]) -> torch.Tensor:
    with warnings.catch_warnings():
        # PyTorch knows no tensors that cannot be written to: Ray's objects, others' memory.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(data).view(dtype).view(shape)
