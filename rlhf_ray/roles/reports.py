"""What roles say of their work and of themselves: metrics, publications, hardware."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from rlhf_ray.metrics.usage import UpdateFlops

Metrics: TypeAlias = Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Publication:
    """What one publication of weights moved, and how far engine and trainer then differed.

    Attributes:
        logprob_abs_max: On the probe's worst token, in nats.
        logprob_abs_p99: On the worst but for one in a hundred.
        logprob_abs_mean: In the mean.
    """

    version: int
    seconds: float
    num_bytes: int
    logprob_abs_max: float
    logprob_abs_p99: float
    logprob_abs_mean: float


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """What a group's utilisation is counted from.

    Attributes:
        flops: Of an update of its model.
        device_name: As the vendor calls it; `cpu` where there is no GPU.
        num_devices: Of the group.
        shares_prompts: Whether its model computes a prompt once for several sequences of a pass.
    """

    flops: UpdateFlops
    device_name: str
    num_devices: int
    shares_prompts: bool = False


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """What held-out rows showed.

    Attributes:
        metrics: Means over all rows, by the names of training's metrics.
        outcomes_B: What the model makes of each row, in order: an SFT example's loss, the scores of
            a ranking's answers, the implicit rewards of DPO.
    """

    metrics: Metrics
    outcomes_B: Sequence[tuple[float, ...]]
