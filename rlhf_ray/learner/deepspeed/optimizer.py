"""AdamW as ZeRO takes it: torch's, or DeepSpeed's own where states are on the host."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from torch.utils import cpp_extension

from rlhf_ray.config.base import LearnerConfig
from rlhf_ray.learner.optim import adamw_settings, parameter_groups


def adamw(module: nn.Module, config: LearnerConfig) -> torch.optim.Optimizer:
    """Over the parameters of `module` that require a gradient, in one group or two."""
    groups = parameter_groups(module, weight_decay=config.optim.weight_decay)
    settings = adamw_settings(config.optim)
    if config.zero.offload_optimizer != "none":
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        with _alone_in("cpu_adam"):
            optimizer: torch.optim.Optimizer = DeepSpeedCPUAdam(groups, adamw_mode=True, **settings)
        return optimizer
    return torch.optim.AdamW(groups, fused=groups[0]["params"][0].is_cuda, **settings)


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
