"""Publication of weights: every rank of the policy sends, every replica acknowledges a version.

Three ways, one interface. `object_store` carries buckets through Ray and works on any machine;
`nccl` and `ipc` are vLLM's own trainer engines, which move GPU memory directly.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import ray
import torch

from actors.cluster.deadline import get
from actors.cluster.role_handle import Answer
from actors.weights.bucket import pack
from actors.weights.sync_spec import PublishedReplica, Replicas, SyncSpec
from rlhf_ray.errors import RunError
from rlhf_ray.learner.weights import named_weights, weight_infos

P = ParamSpec("P")
T = TypeVar("T")


class Publisher(Protocol):
    """One rank's side of a publication; all ranks call it together."""

    def publish(self, version: int, replicas: Replicas) -> int:
        """Send all weights as `version`; returns the bytes sent by this rank."""

    def close(self) -> None:
        """End the connection."""


class ReplicaClient:
    """Calls every replica under one deadline; has the shape that vLLM's engines drive.

    Attributes:
        replicas: Who is called.
        on_failure: Called where replicas do not receive weights, before the error is raised.
    """

    def __init__(self, spec: SyncSpec, replicas: Replicas) -> None:
        """Nothing is called yet."""
        self.spec = spec
        self.on_failure: Callable[[], None] = lambda: None
        self.begin(-1, replicas)

    def begin(self, version: int, replicas: Replicas) -> None:
        """What is called from now on publishes `version`, and all of it within the deadline."""
        self.version, self.replicas = version, replicas
        self.deadline_s = time.monotonic() + self.spec.timeout_s

    def call(
        self, method: Callable[Concatenate[PublishedReplica, P], Answer[T]]
    ) -> Callable[P, list[T]]:
        """One call to each replica."""

        def ask(*arguments: P.args, **keywords: P.kwargs) -> list[T]:
            return self._answers(
                [
                    self.replicas.start(method, rank)(*arguments, **keywords)
                    for rank in range(len(self.replicas))
                ],
                timeout_s=max(0.0, self.deadline_s - time.monotonic()),
                operation=f"publish version {self.version}: rollout.{method.__name__}",
            )

        return ask

    def _answers(self, refs: Sequence[Any], *, timeout_s: float, operation: str) -> list[Any]:
        names, role = self.replicas.names, self.replicas.name
        return get(refs, timeout_s=timeout_s, actors=names, operation=operation, role=role)

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Connect each replica; over NCCL its workers' ranks follow those of the one before."""
        refs, timeout_s = [], self.spec.timeout_s
        for index in range(len(self.replicas)):
            info = dict(init_info)
            if "rank_offset" in info:
                info["rank_offset"] += index * self.spec.gpus_per_replica
            connect = self.replicas.start(PublishedReplica.init_weight_transfer, index)
            refs.append(connect(info, timeout_s))
        operation = "publish: rollout.init_weight_transfer"
        self._answers(refs, timeout_s=timeout_s, operation=operation)

    def start_weight_update(self) -> None:
        """Freeze running requests."""
        start = self.call(PublishedReplica.start_weight_update)
        start(self.spec.timeout_s, self.spec.keeps_cache)

    def update_weights(self, update: Any) -> None:
        """One bucket, or what a backend needs to receive one."""
        try:
            self.call(PublishedReplica.update_weights)(update)
        except BaseException:
            self.on_failure()
            raise

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Switch over, and check that every replica now has this version.

        Raises:
            RunError: A replica acknowledged another one.
        """
        versions = self.call(PublishedReplica.finish_weight_update)(self.version)
        for name, version in zip(self.replicas.names, versions, strict=True):
            if version != self.version:
                raise RunError(f"{name} acknowledged version {version}, wanted {self.version}")


class ObjectStorePublisher:
    """Buckets through Ray's object store."""

    def __init__(self, lm: Any, spec: SyncSpec, replicas: Replicas, *, is_sender: bool) -> None:
        """Every rank gathers; rank 0 sends."""
        self.lm, self.spec, self.is_sender = lm, spec, is_sender
        self.client = ReplicaClient(spec, replicas)

    def publish(self, version: int, replicas: Replicas) -> int:
        """Send all weights as `version`; returns the bytes sent by this rank."""
        if not self.is_sender:
            for _ in named_weights(self.lm):
                continue
            return 0
        self.client.begin(version, replicas)
        self.client.start_weight_update()
        num_bytes = 0
        for bucket in pack(named_weights(self.lm), bucket_bytes=self.spec.bucket_bytes):
            self.client.update_weights(ray.put(bucket))
            num_bytes += len(bucket.data)
        self.client.finish_weight_update()
        return num_bytes

    def close(self) -> None:
        """There is no connection."""


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
            info, client=self.client, source=_weight_source(lm)
        )
        self.client.on_failure = self._leave_replicas

    def publish(self, version: int, replicas: Replicas) -> int:
        """Send all weights as `version`; returns the bytes sent by this rank."""
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


def open_publisher(
    lm: Any, spec: SyncSpec, replicas: Replicas, *, rank: int, host: str, port: int
) -> Publisher:
    """The publisher of one rank; all ranks open theirs together."""
    if spec.backend == "object_store":
        return ObjectStorePublisher(lm, spec, replicas, is_sender=rank == 0)
    return VllmPublisher(lm, spec, replicas, rank=rank, host=host, port=port)


def _weight_source(lm: Any) -> Any:
    from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource

    class PolicySource(WeightSource):
        """The policy's merged weights, as vLLM's trainer engines iterate them."""

        def metadata(self) -> list[ParamMeta]:
            return [
                ParamMeta(name=info.name, dtype=info.dtype, shape=info.shape)
                for info in weight_infos(lm)
            ]

        def __iter__(self) -> Any:
            return named_weights(lm)

    return PolicySource()
