"""A card's memory: what it is sold with, and what CUDA shows of it."""

from __future__ import annotations

from collections.abc import Mapping

from rlhf_ray.planning.memory import GIB

# By the GB in its name, the GiB that CUDA shows: of cards with as many the one that shows least, as
# a sixteenth of a GDDR6 card's memory may be taken for error correction.
SHOWN_GIB: Mapping[float, float] = {
    16: 14.6,  # T4
    24: 22.0,  # L4, A10G; 23.6 on an RTX 4090
    40: 39.4,  # A100
    48: 44.3,  # A40, L40S
    80: 79.1,  # A100, H100
    141: 139.8,  # H200
}


def shown_bytes(gigabytes: float) -> int:
    """Bytes of a card that is sold with so many GB; any other number is taken as it is, in GiB."""
    return int(SHOWN_GIB.get(gigabytes, gigabytes) * GIB)
