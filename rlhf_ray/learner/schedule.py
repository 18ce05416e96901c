"""Learning rates as a function of the step alone, so that nothing of a schedule needs saving."""

from __future__ import annotations

import math

from rlhf_ray.config.base import OptimConfig


def learning_rate(step: int, *, optim: OptimConfig, total_steps: int) -> float:
    """The rate of optimiser step `step`, counted from 0.

    Warm-up rises linearly and is above 0 from the first step; then the schedule runs from `lr` to
    `lr * min_lr_share` over the rest.
    """
    if step < optim.warmup_steps:
        return optim.lr * (step + 1) / (optim.warmup_steps + 1)
    rest = max(1, total_steps - optim.warmup_steps)
    progress = min(1.0, (step - optim.warmup_steps) / rest)
    if optim.schedule == "constant":
        share = 1.0
    elif optim.schedule == "linear":
        share = 1.0 - progress
    else:
        share = 0.5 * (1.0 + math.cos(math.pi * progress))
    return optim.lr * (optim.min_lr_share + (1.0 - optim.min_lr_share) * share)
