"""Publication through the memory of hosts: a bucket is packed while the one before is loaded.

Rank 0 packs buckets into two segments of memory in turn. The workers of an engine on its node load
from there; another node gets a bucket through Ray's object store. A segment is written again when
every replica has acknowledged what lies in it, each by itself: a slow one holds up the others when
it is two buckets behind.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import ray
import torch

from actors.weights.adapter import ADAPTER_PREFIX
from actors.weights.bucket import Bucket, pack
from actors.weights.replica_client import ReplicaClient
from actors.weights.segment import NUM_SEGMENTS, SegmentRing, SharedBucket
from actors.weights.sync_spec import PublishedReplica, Replicas, SyncSpec
from rlhf_ray.learner.weights import adapter_weights, linear_adapters, named_weights


def node_id() -> str:
    """Ray's name of this node."""
    return str(ray.get_runtime_context().get_node_id())


class HostMemoryPublisher:
    """Every rank gathers; rank 0 sends, and any replica can receive."""

    def __init__(self, lm: Any, spec: SyncSpec, replicas: Replicas, *, is_sender: bool) -> None:
        """There is nothing to connect.

        Raises:
            ConfigError: Adapters are to come apart, and cannot.
        """
        if spec.base:
            linear_adapters(lm)
        self.lm, self.spec, self.is_sender = lm, spec, is_sender
        self.client, self.segments = ReplicaClient(spec, replicas), SegmentRing()

    def publish(self, version: int, replicas: Replicas, *, adapter_alone: bool = False) -> int:
        """Send all weights as `version`, or the adapter to engines that have what it changes.

        Returns the bytes sent by this rank.
        """
        weights = self._weights(adapter_alone=adapter_alone)
        if not self.is_sender:
            for _ in weights:
                continue
            return 0
        self.client.begin(version, replicas)
        try:
            outbox = Outbox(self.client, self.segments)
            self.client.start_weight_update()
            for bucket in pack(weights, bucket_bytes=self.spec.bucket_bytes, room=outbox.room):
                outbox.send(bucket)
            outbox.settle()
            self.client.finish_weight_update()
        except BaseException:
            self.segments.close()  # a replica may still read them
            raise
        self.segments.close(above_bytes=self.spec.bucket_bytes)
        return outbox.num_bytes

    def _weights(self, *, adapter_alone: bool) -> Iterator[tuple[str, torch.Tensor]]:
        gathered_bytes, merged = self.spec.bucket_bytes, not self.spec.base
        if not adapter_alone:
            yield from named_weights(self.lm, gathered_bytes=gathered_bytes, merged=merged)
        if not merged:
            for name, weight in adapter_weights(self.lm, gathered_bytes=gathered_bytes):
                yield ADAPTER_PREFIX + name, weight

    def close(self) -> None:
        """Give the memory back that buckets were packed in."""
        self.segments.close()


class Outbox:
    """Buckets on their way to all replicas.

    Attributes:
        num_bytes: Of the buckets that were sent.
    """

    def __init__(self, client: ReplicaClient, segments: SegmentRing) -> None:
        """Ask which replicas read this process's memory."""
        self.client, self.num_bytes = client, 0
        self._segments, self._segment = segments, segments.next(1)
        reads_memory = client.call(PublishedReplica.reads_memory)
        self._are_near = reads_memory(node_id(), self._segment.place)
        # The replicas' answers to the bucket in each segment, the oldest first.
        self._unanswered: list[list[Any]] = [[] for _ in range(NUM_SEGMENTS)]

    def room(self, num_bytes: int) -> npt.NDArray[np.uint8]:
        """Where the next bucket is packed, once all replicas have what lies there."""
        self._settle()
        self._segment = self._segments.next(num_bytes)
        return self._segment.data

    def send(self, bucket: Bucket) -> None:
        """Have each replica load what lies in the room that was given last."""
        replicas, near = self.client.replicas, SharedBucket.of(bucket, self._segment)
        far: Any = None if all(self._are_near) else ray.put(bucket)
        self._unanswered.append(
            [
                replicas.start(PublishedReplica.update_weights, index)(near if is_near else far)
                for index, is_near in enumerate(self._are_near)
            ]
        )
        self.num_bytes += len(bucket.data)

    def settle(self) -> None:
        """All replicas have loaded all buckets."""
        while self._unanswered:
            self._settle()

    def _settle(self) -> None:
        self.client.answers(self._unanswered.pop(0), PublishedReplica.update_weights)
