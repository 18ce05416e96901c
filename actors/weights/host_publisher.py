"""Publication through the memory of hosts: a bucket is packed while the one before is loaded.

Rank 0 packs buckets into two segments of memory in turn. The workers of an engine on its node load
from there; another node gets a bucket through Ray's object store. A segment is written again when
every replica has acknowledged what lies in it, each by itself: a slow one holds up the others when
it is two buckets behind, and not for longer than `late_s`. One that dies, fails or is late drops
out, and the others get the rest.
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
from actors.weights.sync_spec import PublishedReplica, Replicas, Sent, SyncSpec
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

    def publish(self, version: int, replicas: Replicas, *, adapter_alone: bool = False) -> Sent:
        """Send all weights as `version`, or the adapter to engines that have what it changes."""
        weights = self._weights(adapter_alone=adapter_alone)
        try:
            return self._send(weights, version, replicas) if self.is_sender else Sent()
        finally:
            # Under ZeRO-3 the ranks gather each bucket's weights together: who ends before the last
            # one, because nobody is left to send to, would leave the others waiting for it.
            for _ in weights:
                continue

    def _send(
        self, weights: Iterator[tuple[str, torch.Tensor]], version: int, replicas: Replicas
    ) -> Sent:
        client = self.client
        client.begin(version, replicas)
        try:
            outbox = Outbox(client, self.segments)
            client.start_update()
            for bucket in pack(weights, bucket_bytes=self.spec.bucket_bytes, room=outbox.room):
                if not client.left:
                    break
                outbox.send(bucket)
            outbox.settle()
            client.finish_update()
        except BaseException:
            self.segments.close()  # a replica may still read them
            raise
        # What is late may still read them.
        self.segments.close(above_bytes=0 if client.failed else self.spec.bucket_bytes)
        return Sent(num_bytes=outbox.num_bytes, failed=client.failed_by_name)

    def _weights(self, *, adapter_alone: bool) -> Iterator[tuple[str, torch.Tensor]]:
        gathered_bytes, merged = self.spec.bucket_bytes, not self.spec.base
        if not adapter_alone:
            yield from named_weights(self.lm, gathered_bytes=gathered_bytes, merged=merged)
        if not merged:
            for name, weight in adapter_weights(self.lm, gathered_bytes=gathered_bytes):
                yield ADAPTER_PREFIX + name, weight

    def abort(self) -> None:
        """Nothing waits without a deadline."""

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
        self._unanswered: list[dict[int, Any]] = [{} for _ in range(NUM_SEGMENTS)]

    def room(self, num_bytes: int) -> npt.NDArray[np.uint8]:
        """Where the next bucket is packed, once all replicas have what lies there."""
        self._settle()
        self._segment = self._segments.next(num_bytes)
        return self._segment.data

    def send(self, bucket: Bucket) -> None:
        """Have each replica load what lies in the room that was given last."""
        replicas, near = self.client.replicas, SharedBucket.of(bucket, self._segment)
        left = self.client.left
        far: Any = None if all(self._are_near[index] for index in left) else ray.put(bucket)
        self._unanswered.append(
            {
                index: replicas.start(PublishedReplica.update_weights, index)(
                    near if self._are_near[index] else far
                )
                for index in left
            }
        )
        self.num_bytes += len(bucket.data)

    def settle(self) -> None:
        """All replicas that are left have loaded all buckets."""
        while self._unanswered:
            self._settle()

    def _settle(self) -> None:
        self.client.answers(self._unanswered.pop(0), PublishedReplica.update_weights)
