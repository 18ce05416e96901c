"""A weight-transfer engine for CPU replicas, registered with vLLM as `object_store`.

vLLM ships `nccl` and `ipc`, which need GPUs. Here vLLM's workers are told where a bucket lies, and
load from there: from the memory of the policy's rank 0 where that is on their node, else from that
of the rollout actor, which got the bucket through Ray. The lifecycle is vLLM's own: start, one
update a bucket, finish.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils._pytree import tree_map_only
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)

from actors.weights.adapter import ADAPTER_PREFIX, set_adapter
from actors.weights.bucket import unpack
from actors.weights.segment import Mappings, SegmentPlace, SharedBucket

if TYPE_CHECKING:
    from vllm.model_executor.layers.fused_moe.fused_moe_method_base import FusedMoEMethodBase

BACKEND = "object_store"


@dataclass
class ObjectStoreInitInfo(WeightTransferInitInfo):
    """Nothing to agree on beforehand."""


@dataclass
class ObjectStoreUpdateInfo(WeightTransferUpdateInfo):
    """A `SharedBucket` as vLLM carries it to its workers."""

    names: list[str]
    dtype_names: list[str]
    shapes: list[list[int]]
    place: dict[str, int]
    num_bytes: int


class ObjectStoreWeightTransferEngine(
    WeightTransferEngine[ObjectStoreInitInfo, ObjectStoreUpdateInfo]
):
    """Loads buckets through vLLM's layerwise reload."""

    init_info_cls = ObjectStoreInitInfo
    update_info_cls = ObjectStoreUpdateInfo

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        """As any of vLLM's."""
        super().__init__(*arguments, **keywords)
        self.mappings = Mappings()

    def init_transfer_engine(self, init_info: ObjectStoreInitInfo) -> None:
        """Nothing to connect."""

    def start_weight_update(self) -> None:
        """Nothing has come so far."""
        self.is_reloading = False
        self.adapter: dict[str, torch.Tensor] = {}

    def _start_reload(self) -> None:
        # Put the model back into checkpoint layout, layer by layer as weights arrive.
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        self.is_reloading = True
        initialize_layerwise_reload(self.model)
        if self.device.type == "cpu":
            self._forget_expert_kernels()

    def receive_weights(self, update_info: ObjectStoreUpdateInfo) -> None:
        """Load one bucket; nothing refers to its memory afterwards."""
        shared = SharedBucket(
            names=update_info.names,
            dtype_names=update_info.dtype_names,
            shapes=update_info.shapes,
            place=SegmentPlace(**update_info.place),
            num_bytes=update_info.num_bytes,
        )
        bucket = self.mappings.read(shared)
        weights = dict(unpack(bucket))
        parts = {name for name in weights if name.startswith(ADAPTER_PREFIX)}
        self.adapter |= {name: weights.pop(name).clone() for name in parts}
        if weights:
            if not self.is_reloading:
                self._start_reload()
            self.model.load_weights(list(weights.items()))
            self._keep_unfinished(bucket.data)

    def _keep_unfinished(self, data: npt.NDArray[np.uint8]) -> None:
        # A layer whose weights lie in two buckets waits for the second with views of the first,
        # where the sender writes the next one meanwhile.
        from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

        start = data.ctypes.data

        def kept(tensor: torch.Tensor) -> torch.Tensor:
            is_view = tensor.is_cpu and start <= tensor.data_ptr() < start + len(data)
            return tensor.clone() if is_view else tensor

        for module in self.model.modules():
            for _, loading in get_layerwise_info(module).loaded_weights:
                loading.arguments.update(tree_map_only(torch.Tensor, kept, dict(loading.arguments)))

    def finish_weight_update(self) -> None:
        """Repack what arrived into the layout that vLLM's kernels want.

        Raises:
            RuntimeError: vLLM's own loader of the model does not take part in reloads.
        """
        if not self.is_reloading:
            return
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        finalize_layerwise_reload(self.model, self.model_config)
        if self.device.type == "cpu":
            self._require_expert_kernels()
            self._repack_tied_head()

    def use_adapter(self) -> None:
        """Use the adapter that came; after `finish_weight_update` vLLM drops all that it has.

        Raises:
            RuntimeError: vLLM has no place for some of it.
        """
        set_adapter(self.model, self.adapter)
        self.adapter = {}

    def _forget_expert_kernels(self) -> None:
        # vLLM packs a layer's experts for its CPU kernel only together with the kernel's making,
        # once (`UnquantizedFusedMoEMethod._setup_kernel`): a reload would leave them unpacked, and
        # fails where packing pads them. Without a kernel it makes one, from what has arrived.
        for _, method in self._expert_methods():
            method.moe_kernel = None

    def _require_expert_kernels(self) -> None:
        # Some loaders (gpt-oss) copy experts into place themselves. The reload, which listens to
        # each weight's loader, then takes the layer for one that got nothing and keeps its old one.
        if old := [name for name, method in self._expert_methods() if method.moe_kernel is None]:
            raise RuntimeError(
                f"vLLM's loader of {type(self.model).__name__} leaves the old experts in {old[0]} "
                "when weights are reloaded: no engine on a CPU can follow this model's training"
            )

    def _expert_methods(self) -> Iterator[tuple[str, FusedMoEMethodBase]]:
        from vllm.model_executor.layers.fused_moe.fused_moe_method_base import FusedMoEMethodBase

        for name, module in self.model.named_modules():
            method = getattr(module, "quant_method", None)
            if isinstance(method, FusedMoEMethodBase):
                yield name, method

    def _repack_tied_head(self) -> None:
        # A tied lm_head shares the embedding's tensor, which the reload replaces, but vLLM's CPU
        # kernel keeps its own packed copy of the old one: without this the logits stay stale.
        from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
        from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

        for module in self.model.modules():
            if isinstance(module, VocabParallelEmbedding) and hasattr(module, "cpu_linear"):
                dispatch_cpu_unquantized_gemm(module, remove_weight=False)

    def shutdown(self) -> None:
        """Leave the sender's memory."""
        self.mappings.close()


def register() -> None:
    """Entry point of the `vllm.general_plugins` group; vLLM calls it in each of its processes."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(
            BACKEND, "actors.weights.object_store", "ObjectStoreWeightTransferEngine"
        )
