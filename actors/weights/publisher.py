"""Publication of weights: every rank of the policy sends, every replica acknowledges a version.

Three ways, one interface. `object_store` goes through the memory of hosts and works on any machine;
`nccl` and `ipc` are vLLM's own trainer engines, which move GPU memory directly.
"""

from __future__ import annotations

from typing import Any, Protocol

from actors.weights.host_publisher import HostMemoryPublisher
from actors.weights.sync_spec import Replicas, Sent, SyncSpec
from actors.weights.vllm_publisher import VllmPublisher


class Publisher(Protocol):
    """One rank's side of a publication; all ranks call it together."""

    def publish(self, version: int, replicas: Replicas, *, adapter_alone: bool = False) -> Sent:
        """Send all weights as `version`, or the adapter to engines that have what it changes."""

    def abort(self) -> None:
        """End a publication that hangs, from another thread: `publish` raises then."""

    def close(self) -> None:
        """End the connection."""


def open_publisher(
    lm: Any, spec: SyncSpec, replicas: Replicas, *, rank: int, host: str, port: int
) -> Publisher:
    """The publisher of one rank; all ranks open theirs together."""
    if spec.backend == "object_store":
        return HostMemoryPublisher(lm, spec, replicas, is_sender=rank == 0)
    return VllmPublisher(lm, spec, replicas, rank=rank, host=host, port=port)
