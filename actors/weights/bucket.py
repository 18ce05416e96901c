"""Weights on their way to an engine or into the object store: several tensors laid end to end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """Some weights.

    Attributes:
        data: uint8 array that holds the tensors one after the other.
    """

    names: list[str]
    dtype_names: list[str]
    shapes: list[list[int]]
    data: npt.NDArray[np.uint8]


# A view of a tensor's bytes must start where its dtype may.
ALIGNMENT_BYTES = 16


def padded_bytes(num_bytes: int) -> int:
    """Room that a tensor of so many bytes takes in a bucket."""
    return -(-num_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def pack(weights: Iterable[tuple[str, torch.Tensor]], *, bucket_bytes: int) -> Iterator[Bucket]:
    """Lay tensors into buckets of about `bucket_bytes`; a larger tensor gets one of its own."""
    pending: list[tuple[str, torch.Tensor]] = []
    size = 0
    for name, tensor in weights:
        num_bytes = padded_bytes(tensor.nbytes)
        if pending and size + num_bytes > bucket_bytes:
            yield _bucket(pending, size)
            pending, size = [], 0
        pending.append((name, tensor.detach().to("cpu", copy=True).contiguous()))
        size += num_bytes
    if pending:
        yield _bucket(pending, size)


def unpack(bucket: Any) -> list[tuple[str, torch.Tensor]]:
    """The tensors of a `Bucket`, or of what carries the same fields, as views of one copy.

    Raises:
        ValueError: Shapes and bytes do not add up.
    """
    flat = torch.frombuffer(bytearray(bucket.data), dtype=torch.uint8)
    weights: list[tuple[str, torch.Tensor]] = []
    start = 0
    for name, dtype_name, shape in zip(
        bucket.names, bucket.dtype_names, bucket.shapes, strict=True
    ):
        dtype = getattr(torch, dtype_name)
        num_bytes = dtype.itemsize * torch.Size(shape).numel()
        weights.append((name, flat[start : start + num_bytes].view(dtype).view(shape)))
        start += padded_bytes(num_bytes)
    if start != len(bucket.data):
        raise ValueError(f"a bucket's shapes ask for {start} bytes, got {len(bucket.data)}")
    return weights


def _bucket(weights: list[tuple[str, torch.Tensor]], size: int) -> Bucket:
    data = np.zeros(size, dtype=np.uint8)
    start = 0
    for _, tensor in weights:
        flat = tensor.flatten().view(torch.uint8).numpy()
        data[start : start + len(flat)] = flat
        start += padded_bytes(len(flat))
    return Bucket(
        names=[name for name, _ in weights],
        dtype_names=[str(tensor.dtype).removeprefix("torch.") for _, tensor in weights],
        shapes=[list(tensor.shape) for _, tensor in weights],
        data=data,
    )
