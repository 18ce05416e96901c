"""Where a rank's model is: on its device, or on the host while others need the device.

DeepSpeed 0.19.8 has `offload_states`, which does not do: ZeRO-3's wants its own FusedAdam, stage 1
in bfloat16 and engines without an optimizer have none, and none moves frozen weights. Here what a
learner holds is found by looking through it, at every stage alike, quantized or not.
"""

from __future__ import annotations

from typing import Protocol

import torch
from deepspeed import DeepSpeedEngine
from deepspeed.runtime.base_optimizer import ZeROOptimizer
from deepspeed.utils.tensor_fragment import tensor_fragment

from rlhf_ray.learner.deepspeed.host_copy import HostCopy, Storages, storages_of

# A parameter knows its optimizer, and its places in what that holds.
_OF_OPTIMIZERS = (torch.optim.Optimizer, ZeROOptimizer, tensor_fragment)


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
