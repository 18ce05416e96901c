"""What glibc's heap makes of tensors on the CPU: freed small blocks stay, and leave holes."""

from __future__ import annotations

# glibc returns blocks from this size on to the system when they are freed.
RETURNED_BLOCK_BYTES = 32 * 2**20
# Smaller ones stay with the process: measured, training holds 1.2 to 2.5 times as much as is in
# use at a time, the more the longer it runs and the more its micro-batches differ; passes without
# gradients 1.2 to 1.6 times.
TRAINING_FACTOR, INFERENCE_FACTOR = 2.0, 1.4


def heap_factor(block: int, *, on_gpu: bool, trains: bool) -> float:
    """By how much a tensor of so many bytes takes more than it has."""
    if on_gpu or block >= RETURNED_BLOCK_BYTES:
        return 1.0
    return TRAINING_FACTOR if trains else INFERENCE_FACTOR
