"""What a run takes of its machines: memory, and how much of their peak in arithmetic."""

from __future__ import annotations

import re
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from rlhf_ray.metrics.spans import ProcessSpans

# Dense bfloat16 peaks by the vendors' datasheets, in FLOP/s, by a part of the device's name.
PEAK_FLOPS: Mapping[str, float] = {
    "H200": 989e12,
    "H100": 989e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H20": 148e12,
    "H800": 989e12,
    "A100": 312e12,
    "A800": 312e12,
    "B200": 2250e12,
    "L40S": 362e12,
    "MI300X": 1307e12,
}


def peak_memory_gb() -> float:
    """Since the process began, in GB of 2**30 bytes: of its GPU where it uses one, else of its RAM.

    On a GPU it is what torch's tensors took. Of RAM it is the resident set, libraries included.
    """
    torch = sys.modules.get("torch")  # a process without torch has no tensors on a GPU
    if torch is not None and torch.cuda.is_initialized():
        return float(torch.cuda.max_memory_allocated()) / 2**30
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    [kilobytes] = re.findall(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    return int(kilobytes) / 2**20


def peak_flops(device_name: str) -> float | None:
    """Peak of one device, or None where it is not known."""
    names = sorted(PEAK_FLOPS, key=len, reverse=True)
    return next((PEAK_FLOPS[name] for name in names if name in device_name), None)


@dataclass(frozen=True, kw_only=True)
class UpdateFlops:
    """FLOPs of an update of a model, forward and backward.

    What is computed twice to save memory is not counted, nor what causality and windows hide.
    Source: PaLM, https://arxiv.org/abs/2204.02311, appendix B; its term for attention takes all
    pairs of tokens, about twice as many.

    Attributes:
        per_token: Of the matrices that each token passes through.
        per_scored_token: Of the vocabulary product, which is made for scored tokens alone.
        per_pair: Of a token that attends to one token, itself included, in all layers with a
            window of so many tokens; None for no window.
    """

    per_token: float
    per_scored_token: float
    per_pair: Mapping[int | None, float]

    def of(
        self, lengths_B: Sequence[int], *, num_scored: int, again_B: Sequence[int] = ()
    ) -> float:
        """Of sequences of these tokens, `num_scored` of them scored.

        `again_B` are tokens of prompts in these sequences that others have computed for them.
        """
        passed = self._unscored(lengths_B) - self._unscored(again_B)
        return passed + self.per_scored_token * num_scored

    def _unscored(self, lengths_B: Sequence[int]) -> float:
        return self.per_token * sum(lengths_B) + sum(
            flops * sum(attended_pairs(length, window) for length in lengths_B)
            for window, flops in self.per_pair.items()
        )


def attended_pairs(length: int, window: int | None) -> int:
    """How many tokens the tokens of a sequence attend to, all together.

    Example: `attended_pairs(4, None) == 1 + 2 + 3 + 4`, `attended_pairs(4, 2) == 1 + 2 + 2 + 2`.
    """
    width = length if window is None else min(window, length)
    return width * (width + 1) // 2 + (length - width) * width


def update_mfu(*, num_flops: float, seconds: float, num_devices: int, peak: float) -> float:
    """Share of the devices' peak (FLOP/s each) that an update reaches, all its epochs together."""
    return num_flops / (seconds * num_devices * peak)


@dataclass(frozen=True, kw_only=True)
class Used:
    """What the job's processes needed and did since the last time that they were asked.

    Attributes:
        metrics: `wait/*`, `memory/*`, `engine/*`, and times that models moved.
        spans: Of each process, the driver among them.
    """

    metrics: Mapping[str, float] = field(default_factory=dict)
    spans: Sequence[ProcessSpans] = ()


# Asks all of them.
Usage: TypeAlias = Callable[[], Awaitable[Used]]


async def unknown_usage() -> Used:
    """Where nobody measures."""
    return Used()
