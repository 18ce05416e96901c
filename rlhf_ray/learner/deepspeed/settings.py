"""What DeepSpeed is given: a section of the configuration in its own terms, and AdamW."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import cpp_extension

from rlhf_ray.config.base import laid_over
from rlhf_ray.config.learners import LearnerConfig
from rlhf_ray.config.zero import ZeroConfig
from rlhf_ray.learner.optim import adamw_settings, parameter_groups


def deepspeed_config(zero: ZeroConfig, *, bf16: bool, max_grad_norm: float) -> dict[str, Any]:
    """DeepSpeed's own configuration; `zero.extra`, which leaves all of this alone, comes last."""
    optimization: dict[str, Any] = {"stage": effective_stage(zero, bf16=bf16)}
    for name in ("optimizer", "param"):
        device = getattr(zero, f"offload_{name}")
        if device != "none":
            optimization[f"offload_{name}"] = {"device": device, "pin_memory": True}
            if device == "nvme":
                optimization[f"offload_{name}"]["nvme_path"] = zero.nvme_path
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": max_grad_norm,
        "bf16": {"enabled": bf16},
        "zero_optimization": optimization,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": None,
    }
    if bf16:
        # Micro-batches and ranks add up in float32, or the split of a batch would change its
        # gradient; DeepSpeed sends bfloat16 by default, whatever it adds up in.
        config["data_types"] = {"grad_accum_dtype": "fp32"}
        config["communication_data_type"] = "fp32"
        # Each gradient joins the float32 sum, and is dropped, when autograd has it. Without,
        # stage 1 adds all up after each pass and clears them before the next by hooks on the
        # tensors that `forward` returned. It finds those in tuples, lists and dicts, in no
        # dataclass, and then adds the first micro-batch again with every later one.
        config["bf16"]["immediate_grad_update"] = True
    return laid_over(config, zero.extra)


def effective_stage(zero: ZeroConfig, *, bf16: bool) -> int:
    """ZeRO's stage as it runs: bfloat16 weights need the float32 copies that stage 1 keeps."""
    return zero.stage or int(bf16)


def adamw(module: nn.Module, config: LearnerConfig) -> torch.optim.Optimizer:
    """Over the parameters of `module` that require a gradient; DeepSpeed's where states leave."""
    groups = parameter_groups(module, weight_decay=config.optim.weight_decay)
    settings = adamw_settings(config.optim)
    if config.zero.offload_optimizer != "none":
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        with _alone_in("cpu_adam"):
            optimizer: torch.optim.Optimizer = DeepSpeedCPUAdam(groups, adamw_mode=True, **settings)
        return optimizer
    return torch.optim.AdamW(groups, fused=True, **settings)


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
