"""What vLLM's transfer engines ask of CUDA and NCCL, answered without a card.

Replaced are the communicator (gloo in place of NCCL), the handles of CUDA memory (files in shared
memory) and what `torch.cuda` and `torch.accelerator` say of devices and streams. Work is done at
once, whatever the stream; `streams.py` knows what a card would have been free to do otherwise.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode

from benchmarks.publication.streams import Streams

# Of this process's card.
STREAMS = Streams()
SHARED_MEMORY = Path("/dev/shm")


class GlooCommunicator:
    """Stands for vLLM's `PyNcclCommunicator`; the rendezvous before it is vLLM's own."""

    disabled = False

    def __init__(self, group: Any, device: Any) -> None:
        store = torch.distributed.PrefixStore("gloo", group.store)
        self.rank = group.rank
        self._group = torch.distributed.ProcessGroupGloo(
            store, group.rank, group.world_size, timedelta(seconds=60)
        )

    def broadcast(self, tensor: torch.Tensor, src: int, stream: Any = None) -> None:
        """From one rank to all."""
        options = torch.distributed.BroadcastOptions()
        options.rootRank = src
        self._group.broadcast([tensor], options).wait()
        if self.rank != src:
            STREAMS.write(tensor)

    def destroy(self) -> None:
        """Hang up."""
        self._group, self.disabled = None, True


class CudaIsCpu(TorchFunctionMode):
    """Tensors that are asked for on a card are made on the CPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if "cuda" in str(kwargs.get("device", "")):
            kwargs["device"] = "cpu"
        return func(*args, **kwargs)


def share_tensor(prefix: str, tensor: torch.Tensor) -> tuple[Any, tuple[Any, ...]]:
    """Stands for `reduce_tensor`: the first arguments are those of CUDA memory, in their order."""
    with tempfile.NamedTemporaryFile(dir=SHARED_MEMORY, prefix=prefix, delete=False) as file:
        path = file.name
    storage = torch.UntypedStorage.from_file(path, shared=True, nbytes=tensor.nbytes)
    shared = torch.empty(0, dtype=tensor.dtype).set_(storage, 0, tensor.shape, tensor.stride())
    tensor.set_(shared.copy_(tensor))
    device = 0
    return rebuild_tensor, (
        torch.Tensor, tensor.shape, tensor.stride(), 0, torch.UntypedStorage, tensor.dtype, device,
        path.encode(), tensor.nbytes,
    )  # fmt: skip


def rebuild_tensor(*arguments: Any) -> torch.Tensor:
    """Stands for `rebuild_cuda_tensor`."""
    _, shape, stride, offset, _, dtype, _, path, num_bytes = arguments
    storage = torch.UntypedStorage.from_file(path.decode(), shared=True, nbytes=num_bytes)
    return torch.empty(0, dtype=dtype).set_(storage, offset, shape, stride)


def replace_transport(name: str) -> None:
    """Have vLLM's transfer engines use the communicator and the handles above.

    Args:
        name: Begins the names of all that the processes share.
    """
    import torch.multiprocessing.reductions as reductions
    import vllm.distributed.device_communicators.pynccl as pynccl
    from vllm.distributed.weight_transfer import ipc_engine, packed_tensor

    pynccl.PyNcclCommunicator = GlooCommunicator
    for module in (reductions, ipc_engine, packed_tensor):
        module.reduce_tensor = functools.partial(share_tensor, f"{name}-")
    reductions.rebuild_cuda_tensor = ipc_engine.rebuild_cuda_tensor = rebuild_tensor


@contextmanager
def on_card(index: int) -> Iterator[None]:
    """What is inside believes in a card, and is watched by `STREAMS`."""
    # Not for good: vLLM's CPU worker lays its own over some of them.
    cuda = mock.patch.multiple(
        torch.cuda,
        get_device_properties=lambda _: SimpleNamespace(uuid=f"GPU-{index}"),
        ipc_collect=lambda: None,
        Stream=lambda device=None: STREAMS.new(),
        stream=STREAMS.entered,
        current_stream=lambda *_: STREAMS.current,
        synchronize=lambda *_: STREAMS.synchronize(),
    )
    accelerator = mock.patch.multiple(
        torch.accelerator,
        current_device_index=lambda: index,
        synchronize=lambda *_: STREAMS.synchronize(),
    )
    with cuda, accelerator, CudaIsCpu(), STREAMS.watched():
        yield


def remove_shared_memory(name: str) -> None:
    """Of all processes, vLLM's own as well, when they have ended."""
    for path in SHARED_MEMORY.glob(f"{name}-*"):
        path.unlink(missing_ok=True)
