"""The cluster that is planned for, and what its cards show of their memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rlhf_ray.memory import GIB

# By the GB in a card's name, the GiB that CUDA shows: of cards with as many the one that shows
# least, as a sixteenth of a GDDR6 card's memory may be taken for error correction.
SHOWN_GIB: Mapping[float, float] = {
    16: 14.6,  # T4
    24: 22.0,  # L4, A10G; 23.6 on an RTX 4090
    40: 39.4,  # A100
    48: 44.3,  # A40, L40S
    80: 79.1,  # A100, H100
    141: 139.8,  # H200
}
# Of a GPU's memory: what fragmentation of the caching allocator needs.
FREE_SHARE = 0.05


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Equal nodes.

    Attributes:
        gpu_bytes: Memory of one GPU.
        node_bytes: Memory of one node beside its GPUs'; 0 where it is not known.
    """

    nodes: int
    gpus_per_node: int
    gpu_bytes: int
    node_bytes: int = 0

    @property
    def usable_gpu_bytes(self) -> float:
        """What roles may take of a GPU."""
        return self.gpu_bytes * (1 - FREE_SHARE)


def shown_bytes(gigabytes: float) -> int:
    """Bytes of a card that is sold with so many GB; any other number is taken as it is, in GiB."""
    return int(SHOWN_GIB.get(gigabytes, gigabytes) * GIB)
