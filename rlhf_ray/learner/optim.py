"""AdamW's settings for any engine: learning rates by step, and which parameters decay."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from rlhf_ray.config.base import OptimConfig


def learning_rate(step: int, *, optim: OptimConfig, total_steps: int) -> float:
    """The rate of optimiser step `step`, counted from 0; nothing of a schedule needs saving.

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


def adamw_settings(optim: OptimConfig) -> dict[str, Any]:
    """What AdamW takes beside its groups."""
    return {"lr": optim.lr, "betas": optim.betas, "eps": optim.eps}


def parameter_groups(module: nn.Module, *, weight_decay: float) -> list[dict[str, Any]]:
    """What decays, and what does not: the weights of norms, and biases. No group is empty.

    The groups are the same for every `weight_decay`, 0 included, so that a checkpoint fits.
    """
    spared = {
        f"{owner_name}.{name}" if owner_name else name
        for owner_name, owner in module.named_modules()
        for name, _ in owner.named_parameters(recurse=False)
        if "norm" in type(owner).__name__.lower() or "bias" in name
    }
    trained = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for n, p in trained if n not in spared], "weight_decay": weight_decay},
        {"params": [p for n, p in trained if n in spared], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
