"""Publication from GPU to GPU: vLLM's own trainer engines, over NCCL or CUDA IPC."""

from __future__ import annotations

import threading
from typing import Any

import torch

from actors.weights.replica_client import VllmClient
from actors.weights.sync_spec import Replicas, Sent, SyncSpec
from rlhf_ray.errors import RunError
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

        self.client = VllmClient(spec, replicas)
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
        self.client.on_failure = self.abort
        self._ending = threading.Lock()  # taken once, for good

    def publish(self, version: int, replicas: Replicas, *, adapter_alone: bool = False) -> Sent:
        """Send all weights as `version`, always merged; all replicas get them, or it fails.

        Raises:
            RunError: A replica failed, or the publication was aborted. The connection is of no use
                any more.
        """
        self.client.begin(version, replicas)
        # vLLM packs on streams of its own, which do not wait for the optimiser's.
        torch.cuda.synchronize()
        self.engine.send_weights()
        self.client.require_all()
        group = getattr(self.engine, "model_update_group", None)
        # A communicator that was ended sends nothing, and does not say so (PyNccl's `broadcast`).
        if self.client.is_over or (group is not None and group.disabled):
            raise RunError(f"publish version {version}: the way to the engines was closed amid it")
        return Sent(num_bytes=self.num_bytes)

    def abort(self) -> None:
        """Let a publication go to its end without the replicas, from any thread.

        It raises then.
        """
        # vLLM calls the replicas from a thread of its own, while this rank waits in NCCL for all of
        # them, without a deadline: for good, where one has died. The communicator's end lets it go
        # on. What is left goes nowhere, but is gathered, so that the other ranks do not wait for
        # this one.
        if not self._ending.acquire(blocking=False):
            return
        self.client.is_over = True
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
