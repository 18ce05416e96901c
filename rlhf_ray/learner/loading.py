"""Loading under ZeRO-3: each rank keeps its part of a weight from the moment it is read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import deepspeed
import torch

from rlhf_ray.config.base import ModelConfig, ZeroConfig
from rlhf_ray.learner.engine import deepspeed_config
from rlhf_ray.models.load import resolve_dtype
from rlhf_ray.models.logits import LogprobsHead


@contextmanager
def zero3_loading(zero: ZeroConfig, model: ModelConfig, device: torch.device) -> Iterator[None]:
    """While this is open, transformers loads straight into ZeRO-3 partitions, if stage 3 is on."""
    if zero.stage != 3:
        yield
        return
    from transformers.integrations import HfDeepSpeedConfig

    # DeepSpeed makes every weight float32 unless its own settings say bfloat16.
    bf16 = resolve_dtype(model.dtype, device) is torch.bfloat16
    # transformers holds it by a weak reference: it works for as long as this variable lives.
    active = HfDeepSpeedConfig(deepspeed_config(zero, bf16=bf16, max_grad_norm=0.0))
    try:
        yield
    finally:
        del active


def declare_borrowed(model: torch.nn.Module) -> None:
    """Tell ZeRO-3, before its start, what modules read that belongs to others.

    It would find out at the first read, with an order of gathers on record in which that is not.
    """
    for module in model.modules():
        if isinstance(module, LogprobsHead):
            for parameter in module.borrowed():
                deepspeed.zero.register_external_parameter(module, parameter)
