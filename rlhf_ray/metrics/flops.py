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


def update_mfu(
    *, num_parameters: int, num_tokens: int, seconds: float, num_devices: int, peak: float
) -> float:
    """Share of the peak in one update: 6 FLOPs a parameter and token, forward and backward.

    Source: PaLM, https://arxiv.org/abs/2204.02311, appendix B, without the attention term.

    Args:
        num_parameters: Of the model, the frozen ones included.
        num_tokens: That went forward and backward, prompts included, epochs counted.
        seconds: Of the update.
        num_devices: Of the policy's group.
        peak: Of one device, in FLOP/s.
    """
    return 6.0 * num_parameters * num_tokens / (seconds * num_devices * peak)
