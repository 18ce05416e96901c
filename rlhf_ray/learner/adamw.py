"""AdamW as the configuration asks for it, with weight decay where decay makes sense."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import cpp_extension

from rlhf_ray.config.base import LearnerConfig


def adamw(module: nn.Module, config: LearnerConfig) -> torch.optim.Optimizer:
    """Over the parameters of `module` that require a gradient, in one group or two."""
    groups = parameter_groups(module, weight_decay=config.optim.weight_decay)
    keywords: dict[str, Any] = {
        "lr": config.optim.lr,
        "betas": config.optim.betas,
        "eps": config.optim.eps,
    }
    if config.zero.offload_optimizer != "none":
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        with _alone_in("cpu_adam"):
            optimizer: torch.optim.Optimizer = DeepSpeedCPUAdam(groups, adamw_mode=True, **keywords)
        return optimizer
    return torch.optim.AdamW(groups, fused=groups[0]["params"][0].is_cuda, **keywords)


@contextmanager
def _alone_in(extension: str) -> Iterator[None]:
    """While this is open, no other rank of the node compiles the extension of that name.

    PyTorch compiles at the first use on a machine, minutes long, and marks it by a file. That of a
    process that was killed meanwhile stays, and all later ones wait for it for ever.
    """
    folder = Path(cpp_extension._get_build_directory(extension, verbose=False))
    with (folder / "ranks.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # let go of when its process ends, however it does
        (folder / "lock").unlink(missing_ok=True)
        yield


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
