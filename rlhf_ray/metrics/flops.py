"""Model FLOPs utilisation: how much of the hardware's peak the update's arithmetic reaches."""

from __future__ import annotations

from collections.abc import Mapping

# Dense bfloat16 peaks by the vendors' datasheets, in FLOP/s, by a part of the device's name.
PEAK_FLOPS: Mapping[str, float] = {
    "H200": 989e12,
    "H100": 989e12,
    "H20": 148e12,
    "H800": 989e12,
    "A100": 312e12,
    "A800": 312e12,
    "B200": 2250e12,
    "L40S": 362e12,
    "MI300X": 1307e12,
}


def peak_flops(device_name: str) -> float | None:
    """Peak of one device, or None where it is not known."""
    names = sorted(PEAK_FLOPS, key=len, reverse=True)
    return next((PEAK_FLOPS[name] for name in names if name in device_name), None)


def update_flops_per_token(*, num_active: float, num_trained: float) -> float:
    """FLOPs of one token in an update, forward and backward.

    2 a parameter forward, 2 for the gradient of its input, 2 for its own gradient. Source: PaLM,
    https://arxiv.org/abs/2204.02311, appendix B, without the attention term.

    Args:
        num_active: Parameters that a token meets, the frozen ones included.
        num_trained: Of those, the ones with a gradient of their own.
    """
    return 4.0 * num_active + 2.0 * num_trained


def update_mfu(
    *, flops_per_token: float, num_tokens: int, seconds: float, num_devices: int, peak: float
) -> float:
    """Share of the peak that an update reaches.

    Args:
        flops_per_token: See `update_flops_per_token`.
        num_tokens: That went forward and backward, prompts included, epochs counted.
        seconds: Of the update.
        num_devices: Of the policy's group.
        peak: Of one device, in FLOP/s.
    """
    return flops_per_token * num_tokens / (seconds * num_devices * peak)
