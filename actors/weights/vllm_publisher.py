"""Publication from GPU to GPU: vLLM's own trainer engines, over NCCL or CUDA IPC."""

from __future__ import annotations

from typing import Any

import torch

from actors.weights.replica_client import ReplicaClient
from actors.weights.sync_spec import Replicas, SyncSpec
from rlhf_ray.learner.weights import named_weights, weight_infos


class VllmPublisher:
    """vLLM's own trainer side, over NCCL or CUDA IPC."""

    def __init__(
        self, lm: Any, spec: SyncSpec, replicas: Replicas, *, rank: int, host: str, port: int
    ) -> None:
        """Connect to the replicas' workers."""
        from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
        from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

        self.client = ReplicaClient(spec, replicas)
        sizes = [info.num_bytes for info in weight_infos(lm)]
        self.num_bytes = sum(sizes) if rank == 0 else 0
        info: Any
        if spec.backend == "ipc":
            # Over CUDA IPC no weight may be larger than the buffer, as a vocabulary's easily is.
            buffer_bytes = max(spec.bucket_bytes, *sizes)
            info = IPCTrainerInitInfo(rank=rank, packed=True, packed_buffer_size_bytes=buffer_bytes)
        else:
            info = NCCLTrainerInitInfo(
                rank=rank,
                master_address=host,
                master_port=port,
                world_size=1 + len(replicas) * spec.gpus_per_replica,
                packed_buffer_size_bytes=spec.bucket_bytes,
                # With two, vLLM's worker receives on two streams in turn. A layer whose weights
                # lie in two buckets is put together on the second's, which nothing orders after
                # the first's: torn weights. vLLM's trainer tells its worker the same number.
                packed_num_buffers=1,
            )
        self.engine = WeightTransferTrainerFactory.trainer_init(
            info, client=self.client, source=_weight_source(lm, gathered_bytes=spec.bucket_bytes)
        )
        self.client.on_failure = self._leave_replicas

    def publish(self, version: int, replicas: Replicas, *, adapter_alone: bool = False) -> int:
        """Send all weights as `version`, always merged; returns the bytes sent by this rank."""
        self.client.begin(version, replicas)
        # vLLM packs on streams of its own, which do not wait for the optimiser's.
        torch.cuda.synchronize()
        self.engine.send_weights()
        return self.num_bytes

    def _leave_replicas(self) -> None:
        # vLLM calls the replicas from a thread of its own, while this rank waits in NCCL for all of
        # them, without a deadline: for good, where one has died. The communicator's end lets it go
        # on. What is left goes nowhere, but is gathered, so that the other ranks do not wait for
        # this one; then vLLM raises what the replicas' call raised.
        group = getattr(self.engine, "model_update_group", None)
        if group is not None:
            group.broadcast = lambda *_, **__: None  # vLLM's own would use what is freed below
            group.destroy()

    def close(self) -> None:
        """Give the connection's memory back."""
        self.engine.shutdown()


def _weight_source(lm: Any, *, gathered_bytes: int) -> Any:
    from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource

    class PolicySource(WeightSource):
        """The policy's merged weights, as vLLM's trainer engines iterate them."""

        def metadata(self) -> list[ParamMeta]:
            return [
                ParamMeta(name=info.name, dtype=info.dtype, shape=info.shape)
                for info in weight_infos(lm)
            ]

        def __iter__(self) -> Any:
            return named_weights(lm, gathered_bytes=gathered_bytes)

    return PolicySource()
