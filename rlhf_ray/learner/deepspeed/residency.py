"""Where a rank's model is: on its device, or on the host while others need the device.

DeepSpeed 0.19.8 has `offload_states`, which does not do: ZeRO-3's wants its own FusedAdam, stage 1
in bfloat16 and engines without an optimizer have none, and none moves frozen weights. Here what a
learner holds is found by looking through it, at every stage alike, quantized or not.

A storage is emptied where it is (`UntypedStorage.resize_(0)`), as FSDP does with gathered weights;
no tensor changes. Every view of it, whoever holds it, is whole again when the storage is.
"""

from __future__ import annotations

import types
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from deepspeed import DeepSpeedEngine
from deepspeed.runtime.base_optimizer import ZeROOptimizer
from deepspeed.utils.tensor_fragment import tensor_fragment

from rlhf_ray.errors import RunError

# A parameter knows its optimizer, and its places in what that holds.
_OF_OPTIMIZERS = (torch.optim.Optimizer, ZeROOptimizer, tensor_fragment)
# What leads from any object to the whole program; and values, of which there are many.
_LEADS_AWAY = (
    type, types.ModuleType, types.FunctionType, types.MethodType, types.BuiltinFunctionType,
    str, bytes, int, float, bool, type(None), torch.dtype, torch.device, torch.Size,
)  # fmt: skip
Storages = dict[int, torch.UntypedStorage]
# A power of two: PyTorch rounds pinned memory up to the next one. All storages lie in such pieces
# end to end, however large they are.
CHUNK_BYTES = 2**28
# A view of a storage's bytes starts where any dtype may.
ALIGNMENT_BYTES = 16


class Holder(Protocol):
    """An engine: whatever holds a model."""

    @property
    def module(self) -> torch.nn.Module:
        """What is read and, perhaps, trained."""

    @property
    def engine(self) -> DeepSpeedEngine | None:
        """DeepSpeed's, where it holds the model."""


class HostResidency:
    """See `Residency`.

    *Weights* are parameters, buffers, the scales of quantized weights; under ZeRO-3 a rank's own
    part of them. *States* are float32 copies, the optimizer's moments, gradients.

    Between two calls of an engine there is nothing else of it on the device. What gradients are
    summed in holds nothing between optimizer steps and comes back as zeros; what they are sent in
    may hold anything. No rank waits for others here, but all must leave between the same two
    passes: what ZeRO-3 has gathered is released, and ranks that still had it would not take part in
    gathering it anew.
    """

    def __init__(self, holder: Holder, device: torch.device) -> None:
        """All is on the device; the model and everything about it is found under `holder`."""
        self.holder, self.device = holder, device
        self.has_weights = self.has_states = True
        self._weights, self._states = HostCopy(device), HostCopy(device)

    @property
    def host_bytes(self) -> int:
        """That wait on the host at the moment."""
        return self._weights.num_bytes + self._states.num_bytes

    def offload(self, *, keep_weights: bool = False) -> None:
        """Leave the device; with `keep_weights` the model can still be read there.

        Raises:
            RunError: The host has no memory for it.
        """
        if self.has_states:
            self._release_gathered()
            everything, weights = self._find_all(), self._find_weights()
            sums, buckets = self._find_sums(), self._find_buckets()
            elsewhere = weights.keys() | sums.keys() | buckets.keys()
            kept = [storage for key, storage in everything.items() if key not in elsewhere]
            self._states.offload(kept, sums=sums.values(), scratch=buckets.values())
            self.has_states = False
        if self.has_weights and not keep_weights:
            self._release_gathered()
            self._weights.offload(self._find_all().values())
            self.has_weights = False

    def reload(self, *, weights_only: bool = False) -> None:
        """Come back to the device; with `weights_only` to be read there."""
        if not self.has_weights:
            self._weights.reload()
            self.has_weights = True
        if not self.has_states and not weights_only:
            self._states.reload()
            self.has_states = True

    @property
    def _optimizer(self) -> ZeROOptimizer | None:
        return getattr(self.holder.engine, "optimizer", None)

    def _find_all(self) -> Storages:
        return storages_of(self.holder, self.device, stop=(HostCopy,))

    def _find_weights(self) -> Storages:
        return storages_of(self.holder.module, self.device, stop=_OF_OPTIMIZERS, gradients=False)

    # DeepSpeed's optimizers have what follows under these names. Their other fields may name
    # parameters.

    def _find_sums(self) -> Storages:
        """What gradients are added up in."""
        names = ("grad_partitions_flat_buffer", "fp32_groups_gradients_flat")
        sums = [getattr(self._optimizer, name, None) for name in names]
        return storages_of(sums, self.device, gradients=False)

    def _find_buckets(self) -> Storages:
        """What gradients are copied into to be sent."""
        buckets = getattr(self._optimizer, "ipg_buckets", {}).values()
        return storages_of([x.buffer for x in buckets], self.device, gradients=False)

    def _release_gathered(self) -> None:
        """ZeRO-3 keeps weights of other ranks that a pass has gathered."""
        release = getattr(self._optimizer, "empty_partition_cache", None)
        if release is not None:
            release()


@dataclass(frozen=True, kw_only=True)
class _Away:
    """One storage that is empty.

    Attributes:
        start: Where its bytes are on the host, None where they were not worth keeping.
        zeros: Whether it then comes back with zeros; it may hold anything otherwise.
    """

    storage: torch.UntypedStorage
    num_bytes: int
    start: int | None
    zeros: bool = False


class HostCopy:
    """Some storages of a device, there or on the host.

    The host's memory is pinned, which takes longer than to fill it, and therefore kept.
    """

    def __init__(self, device: torch.device, *, chunk_bytes: int = CHUNK_BYTES) -> None:
        """Nothing is away."""
        self.device, self.chunk_bytes = device, chunk_bytes
        self._chunks: list[torch.Tensor] = []
        self._away: list[_Away] = []

    @property
    def num_bytes(self) -> int:
        """That are on the host instead of the device."""
        return sum(away.num_bytes for away in self._away if away.start is not None)

    def offload(
        self,
        storages: Collection[torch.UntypedStorage],
        *,
        sums: Collection[torch.UntypedStorage] = (),
        scratch: Collection[torch.UntypedStorage] = (),
    ) -> None:
        """Empty storages, once their bytes are on the host.

        Args:
            storages: None of them is away.
            sums: These hold nothing yet: they come back with zeros, to be added to.
            scratch: These are written before they are read: nobody touches them meanwhile, as
                they may be large, and a CPU's memory is not taken before it is written.

        Raises:
            RunError: The host has no such memory.
        """
        start, away = 0, []
        self._synchronize()  # whoever wrote them may have done so on a stream of their own
        for storage in storages:
            size = storage.nbytes()
            for host, part in self._pieces(start, size):
                host.copy_(_bytes_of(storage)[part], non_blocking=True)
            away.append(_Away(storage=storage, num_bytes=size, start=start))
            start += -(-size // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        for group, zeros in ((sums, True), (scratch, False)):
            away += [_Away(storage=s, num_bytes=s.nbytes(), start=None, zeros=zeros) for s in group]
        self._synchronize()
        for one in away:
            one.storage.resize_(0)
        self._away += away

    def reload(self) -> None:
        """Bring everything back to the device; nothing where nothing is away."""
        for one in self._away:
            one.storage.resize_(one.num_bytes)
            if one.zeros:
                _bytes_of(one.storage).zero_()
            if one.start is None:
                continue
            for host, part in self._pieces(one.start, one.num_bytes):
                _bytes_of(one.storage)[part].copy_(host, non_blocking=True)
        self._synchronize()
        self._away = []

    def _pieces(self, start: int, num_bytes: int) -> Iterator[tuple[torch.Tensor, slice]]:
        """Host memory for the bytes from `start` on, and which of the storage's they are."""
        done = 0
        while done < num_bytes:
            index, inside = divmod(start + done, self.chunk_bytes)
            if index == len(self._chunks):
                self._chunks.append(self._new_chunk())
            size = min(num_bytes - done, self.chunk_bytes - inside)
            yield self._chunks[index][inside : inside + size], slice(done, done + size)
            done += size

    def _new_chunk(self) -> torch.Tensor:
        pinned = self.device.type == "cuda"
        try:
            return torch.empty(self.chunk_bytes, dtype=torch.uint8, pin_memory=pinned)
        except RuntimeError as error:
            held = len(self._chunks) * self.chunk_bytes
            raise RunError(
                f"{self.chunk_bytes / 2**20:.0f} MiB more of pinned memory must be on the host for "
                f"what leaves the GPU, got none beside {held / 2**30:.1f} GiB: {error}"
            ) from error

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _bytes_of(storage: torch.UntypedStorage) -> torch.Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


def storages_of(
    root: object,
    device: torch.device,
    *,
    stop: tuple[type, ...] = (),
    gradients: bool = True,
) -> Storages:
    """What the tensors under `root` lie in, each storage once, by an identity of its own.

    Args:
        root: Its attributes and the elements of its containers are looked through, and theirs; no
            closures.
        device: Tensors elsewhere are passed over.
        stop: Objects of these types are not entered.
        gradients: Whether a tensor's gradient belongs to it.
    """
    found = {}
    for tensor in _tensors_of(root, stop, gradients):
        if tensor.device == device and tensor.layout is torch.strided:
            storage = tensor.untyped_storage()
            if storage.nbytes():
                found[storage._cdata] = storage
    return found


def _tensors_of(root: object, stop: tuple[type, ...], gradients: bool) -> Iterator[torch.Tensor]:
    ahead, seen = [root], {id(root): root}
    while ahead:
        current = ahead.pop()
        if isinstance(current, torch.Tensor):
            yield current
        for child in _children(current, gradients):
            if isinstance(child, (*_LEADS_AWAY, *stop)) or id(child) in seen:
                continue
            seen[id(child)] = child  # held, so that no other object gets its id meanwhile
            ahead.append(child)


def _children(parent: Any, gradients: bool) -> Iterable[Any]:
    if isinstance(parent, torch.Tensor):
        if gradients and parent.is_leaf and parent.grad is not None:
            yield parent.grad
    elif isinstance(parent, dict):
        yield from parent.values()
    elif isinstance(parent, (list, tuple, set, frozenset)):
        yield from parent
    yield from getattr(parent, "__dict__", {}).values()
