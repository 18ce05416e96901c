"""Streams of a card that is not there: which reads nothing orders after the write they need.

A card works through a stream in order, and through several in any order but for what the host
waited for. A read on one stream of what another wrote is right for certain only if the host waited
for that other stream between the write and the read's launch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode


class Stream:
    """One of them.

    Attributes:
        num_launched: Writes so far.
        num_done: Of them, as many as the host knows to be done.
    """

    def __init__(self) -> None:
        self.num_launched = self.num_done = 0

    def synchronize(self) -> None:
        """The host waits."""
        self.num_done = self.num_launched


class Streams:
    """All of one card.

    Attributes:
        current: Where operations are launched.
    """

    def __init__(self) -> None:
        self._all: list[Stream] = []
        # The last write of each storage; a reference keeps its address from being another's.
        self._writes: dict[int, tuple[StorageWeakRef, Stream, int]] = {}
        self._races: list[str] = []
        self.current = self.new()

    def new(self) -> Stream:
        """Another stream."""
        self._all.append(Stream())
        return self._all[-1]

    def synchronize(self) -> None:
        """The host waits for all."""
        for stream in self._all:
            stream.synchronize()

    @contextmanager
    def entered(self, stream: Stream) -> Iterator[None]:
        """What is inside is launched on this stream."""
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def watched(self) -> Iterator[None]:
        """PyTorch's operations inside are looked at."""
        with _Watch(self):
            yield

    def write(self, tensor: torch.Tensor) -> None:
        """An operation that was just launched writes this."""
        self.current.num_launched += 1
        storage = StorageWeakRef(tensor.untyped_storage())
        self._writes[storage.cdata] = storage, self.current, self.current.num_launched

    def read(self, tensor: torch.Tensor, operation: str) -> None:
        """An operation that is about to be launched reads this."""
        write = self._writes.get(StorageWeakRef(tensor.untyped_storage()).cdata)
        if write is None:
            return
        _, stream, number = write
        if stream is not self.current and number > stream.num_done:
            self._races.append(f"{operation} of {list(tensor.shape)}")

    def take_races(self) -> list[str]:
        """Reads since the last time that nothing orders after their writes."""
        races, self._races = self._races, []
        return races


class _Watch(TorchDispatchMode):
    def __init__(self, streams: Streams) -> None:
        super().__init__()
        self.streams = streams

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.is_view:
            return func(*args, **(kwargs or {}))
        written = []
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                written += _tensors(value)
            else:
                for tensor in _tensors(value):
                    self.streams.read(tensor, str(func))
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._local_scalar_dense.default:
            self.streams.current.synchronize()  # the host needs the number
        for tensor in [*written, *_tensors(result)]:
            self.streams.write(tensor)
        return result


def _tensors(value: Any) -> list[torch.Tensor]:
    found = value if isinstance(value, list | tuple) else [value]
    return [one for one in found if isinstance(one, torch.Tensor) and one.device.type == "cpu"]
